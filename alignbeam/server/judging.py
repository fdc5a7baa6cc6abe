"""The judge's desk in the server: what waits for a verdict, and the thread that asks."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from alignbeam.judge import FailClosed
from alignbeam.result import Verdict
from alignbeam.server.job import Job


class ServerWatcher(Protocol):
    """Is told what happens; called from both threads."""

    def on_step(self, rows: int, mix_us: float) -> None:
        """One decoding step over ``rows`` beams, with ``mix_us`` of it in the mixing."""

    def on_judged(self, judge_ms: float, verdicts: Sequence[Verdict]) -> None:
        """One call of the judge."""

    def on_recovery(self, reason: str) -> None:
        """Note that a step failed and is tried again with fewer requests."""


class JudgeDesk:
    """Asks the judge about all that waits, in one call at a time.

    Parameters
    ----------
    judge : FailClosed
    wake : threading.Condition
        Held around both trays, and told when one of them fills.
    watcher : ServerWatcher or None

    Attributes
    ----------
    finished : list of Job
        Decoded jobs without their last verdict; bounded by whoever admits, or a slow judge would
        let them pile up without end.
    closed : bool
        Set (with ``wake`` held) to end ``work``.
    """

    def __init__(
        self, judge: FailClosed, wake: threading.Condition, watcher: ServerWatcher | None
    ) -> None:
        self._judge, self._wake, self._watcher = judge, wake, watcher
        self._waiting: deque[tuple[Job, bool]] = deque()
        self.judged: deque[tuple[Job, bool]] = deque()
        self.finished: list[Job] = []
        self.closed = False

    def put(self, job: Job, *, whole: bool) -> None:
        """Have the text of a job's beams judged: as finished, or as far as it could leave."""
        job.to_judge()
        with self._wake:
            if whole:
                self.finished.append(job)
            self._waiting.append((job, whole))
            self._wake.notify_all()

    def take(self) -> list[tuple[Job, bool]]:
        """Return the jobs that got verdicts since, and of what; ``wake`` is held."""
        done = list(self.judged)
        self.judged.clear()
        for job, _ in done:
            job.judging = False
        return done

    def leave(self, job: Job) -> None:
        """Forget a job that was handed over."""
        with self._wake:
            self.finished.remove(job)

    def work(self) -> None:
        """Ask until closed; runs on a thread of its own."""
        while True:
            with self._wake:
                while not self._waiting and not self.closed:
                    self._wake.wait()
                if self.closed:
                    return
                asked = list(self._waiting)
                self._waiting.clear()
            self._score(asked)

    def _score(self, asked: list[tuple[Job, bool]]) -> None:
        flat = [(job, index, text) for job, _ in asked for index, text in job.asked()]
        begin = time.perf_counter()
        verdicts = self._judge.score(
            [job.request.messages for job, _, _ in flat], [text for _, _, text in flat]
        )
        spent = (time.perf_counter() - begin) * 1e3
        if self._watcher is not None:
            self._watcher.on_judged(spent, verdicts)
        with self._wake:
            for (job, index, _), verdict in zip(flat, verdicts, strict=True):
                job.verdicts[index] = verdict
            for job, _ in asked:
                job.judge_ms += spent
            self.judged += asked
            self._wake.notify_all()
