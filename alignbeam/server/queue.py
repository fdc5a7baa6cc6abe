"""The queue before the scheduler: bounded, fair between clients, with room kept for each."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from alignbeam.server.job import Job

#: Share of the bounds that is every client's own, however full the queue is.
_KEPT: Final = 1 / 16


class FairQueue:
    """Jobs that wait, one line per client; the clients take turns.

    Whoever's turn it is goes next or nobody does: a large job at the head is not overtaken by
    small ones, so it cannot starve. Only a client that has its share of what comes after the queue
    lets the others pass. Not thread-safe; the scheduler holds its lock around it.

    Parameters
    ----------
    max_jobs : int
        Bound on the jobs that wait.
    max_cost : int
        Bound on the sum of their ``cost`` (tokens x beams).
    share : float
        How much of both one client may fill, 0..1. A sixteenth of both is each client's own, and
        may come on top.
    """

    def __init__(self, max_jobs: int, max_cost: int, share: float = 1.0) -> None:
        self._max_jobs, self._max_cost, self._share = max_jobs, max_cost, share
        self._lines: OrderedDict[str, deque[Job]] = OrderedDict()
        self.cost = 0

    def __len__(self) -> int:
        """Return how many jobs wait."""
        return sum(len(line) for line in self._lines.values())

    def __iter__(self) -> Iterator[Job]:
        """Yield the jobs, client by client."""
        for line in self._lines.values():
            yield from line

    def has_room(self, jobs: Sequence[Job]) -> bool:
        """Whether all ``jobs`` of one client may wait; who has none waiting always may."""
        own = self._lines.get(jobs[0].client)
        if own is None:
            return True
        added = sum(job.cost for job in jobs)
        count, cost = len(own) + len(jobs), added + sum(job.cost for job in own)

        def within(share: float) -> bool:
            return count <= share * self._max_jobs and cost <= share * self._max_cost

        fits = len(self) + len(jobs) <= self._max_jobs and self.cost + added <= self._max_cost
        return within(_KEPT) or (fits and within(self._share))

    def put(self, job: Job) -> None:
        """Append a job to its client's line."""
        self._lines.setdefault(job.client, deque()).append(job)
        self.cost += job.cost

    def head(self, may: Callable[[Job], bool]) -> Job | None:
        """Return the next job in turn; one that ``may`` not go lets the other clients pass."""
        return next((line[0] for line in self._lines.values() if may(line[0])), None)

    def take(self, job: Job) -> None:
        """Remove a job that is the first of its client."""
        line = self._lines.pop(job.client)
        line.popleft()
        self.cost -= job.cost
        if line:
            self._lines[job.client] = line  # at the end: the others have their turn first

    def drop(self, unwanted: Callable[[Job], bool]) -> list[Job]:
        """Remove and return the jobs that ``unwanted`` names."""
        gone = []
        for client in list(self._lines):
            line = self._lines[client]
            gone += [job for job in line if unwanted(job)]
            kept = deque(job for job in line if not unwanted(job))
            if kept:
                self._lines[client] = kept
            else:
                del self._lines[client]
        self.cost -= sum(job.cost for job in gone)
        return gone
