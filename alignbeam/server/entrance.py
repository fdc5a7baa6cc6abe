"""Whose prompts are read before the next step: reading them holds up whoever decodes."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Set
from typing import Final

from alignbeam.decoding.apart import ApartEngine
from alignbeam.decoding.beam import Request
from alignbeam.decoding.clock import Clock
from alignbeam.decoding.engine import Engine
from alignbeam.server.job import Job

#: Tokens of the prompts that are read between two steps, padding included, as far as that is more
#: than one prompt. More would fill no further forward, and make the others wait.
FORWARD_CELLS: Final = 1024


class Entrance:
    """Jobs that have their place in the batch, and whose prompts are yet to be read.

    While others decode, a client whose prompts took a second to read has its next ones read after
    a second of steps. So an answer takes its steps, and for each other client as long again at
    most, whatever that one sends. Used from one thread.

    Attributes
    ----------
    waiting : list of Job
    """

    def __init__(self) -> None:
        self.waiting: list[Job] = []
        #: Seconds of steps until a client's next prompt; one that is not here owes none.
        self._owed: dict[str, float] = {}

    def put(self, job: Job) -> None:
        """Let a job wait."""
        self.waiting.append(job)

    def let_in(
        self, engine: Engine | ApartEngine, active: Mapping[Request, Job], clock: Clock
    ) -> None:
        """Have the engine read those that are to be read before its next step."""
        self.waiting = [job for job in self.waiting if job.request in active]
        if engine.recovering or not self.waiting:
            return
        growing = (request for request in active if any(b.live for b in request.beams))
        taken = self.take({active[request].client for request in growing})
        if not taken:
            return
        for job in taken:
            job.start(clock.timings())
        begin = time.perf_counter()
        engine.add([job.request for job in taken])
        if engine.add_holds_up:
            self.charge(taken, time.perf_counter() - begin)

    def take(self, decoding: Set[str]) -> list[Job]:
        """Remove and return the jobs to be read now; where others decode, all may have to wait.

        Parameters
        ----------
        decoding : set of str
            The clients that the next step gives a token.
        """
        may = [
            job for job in self.waiting if job.client not in self._owed or decoding <= {job.client}
        ]
        taken: list[Job] = []
        longest = 0
        for job in sorted(may, key=lambda job: self._owed.get(job.client, 0.0)):
            longest = max(longest, job.prompt)
            if taken and (len(taken) + 1) * longest > FORWARD_CELLS:
                break
            taken.append(job)
        gone = set(taken)
        self.waiting = [job for job in self.waiting if job not in gone]
        return taken

    def charge(self, jobs: Collection[Job], seconds: float) -> None:
        """Have the clients of these owe the time that it took to read them."""
        tokens = sum(job.prompt for job in jobs)
        for client in {job.client for job in jobs}:
            own = sum(job.prompt for job in jobs if job.client == client)
            # Not more than that: what it owed before held up nobody, or it would have waited.
            self._owed[client] = seconds * own / tokens

    def stepped(self, seconds: float) -> None:
        """Let everybody owe less by the time of a step, in which all were served."""
        self._owed = {c: owed - seconds for c, owed in self._owed.items() if owed > seconds}
