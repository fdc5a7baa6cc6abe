"""Who joins the batch, and who may wait for it: bounds on cells, and a share for each client."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Final

from alignbeam.server.job import Job
from alignbeam.server.problems import Overloaded, TooLarge
from alignbeam.server.queue import FairQueue

#: Share of the batch for clients that have nothing in it, as far as ``share`` leaves so much.
_ASIDE: Final = 1 / 8


class Admission:
    """Decides; the scheduler, which holds its lock around all but ``shrink`` and ``grow``, acts.

    Parameters
    ----------
    queue : FairQueue
        Where jobs wait.
    max_cells : int
        Bound on rows times the longest row (tokens) of the batch: what its KV cache holds.
    share : float
        How much of that, and of as much before the judge, one client may take, 0..1. Of the rest
        some is kept for a job of each client that has none in the batch, or those of several
        others, which fill it, would make it wait until one of their answers ends.
    running : collection of Job
        The batch, as it is whenever somebody asks.
    backlog : callable
        Given a client, how many cells of its jobs the judge has to read.
    """

    def __init__(
        self,
        queue: FairQueue,
        *,
        max_cells: int,
        share: float,
        running: Collection[Job],
        backlog: Callable[[str], int],
    ) -> None:
        self._queue, self._running, self._backlog = queue, running, backlog
        self._max_cells = self._limit = max_cells
        self._share = share
        self._aside = min(_ASIDE, 1 - share)

    def put(self, jobs: Sequence[Job]) -> None:
        """Let the jobs of one client wait, all or none.

        Raises
        ------
        TooLarge
            One of them could never run here.
        Overloaded
            The queue has no room for them.
        """
        most = int(self._share * self._max_cells)
        for job in jobs:
            if job.cost > most:
                raise TooLarge(
                    f"{job.length} tokens times {job.rows} beams exceed the {most} this "
                    "server runs at once; ask for fewer tokens or fewer beams"
                )
        if not self._queue.has_room(jobs):
            raise Overloaded(f"{len(self._queue)} requests are waiting already; try again later")
        for job in jobs:
            self._queue.put(job)

    def next(self) -> Job | None:
        """Return the job that is to join the batch now."""
        job = self._queue.head(self._within_share)
        if job is None:
            return None
        job.aside = False
        if self._fits_beside(job):
            return job
        other = self._queue.head(lambda other: self._fits_aside(other, job))
        if other is not None:
            other.aside = True
        return other

    def shrink(self) -> None:
        """Take half as much at once: memory ran out."""
        self._limit = max(1, self._limit // 2)

    def grow(self) -> None:
        """Take a little more again, up to the operator's bound: a job went well."""
        self._limit = min(self._max_cells, self._limit + self._max_cells // 20)

    def _within_share(self, job: Job) -> bool:
        """Whether a job's client may have more in the batch, and then before the judge."""
        own = [other for other in self._running if other.client == job.client]
        few = self._backlog(job.client) < self._share * self._max_cells
        return few and self._fits(job, own, self._share)

    def _fits_beside(self, job: Job) -> bool:
        """Whether the batch has room for a job without what is kept aside."""
        others = [other for other in self._running if not other.aside]
        return self._fits(job, self._running, 1.0) and self._fits(job, others, 1 - self._aside)

    def _fits_aside(self, job: Job, first: Job) -> bool:
        """Whether a job may pass by the one whose turn it is, into the room that is kept.

        That one joins all the same once those go whose turn came before: never may the room that
        is kept hold more of its length than is kept.
        """
        if any(other.client == job.client for other in self._running):
            return False
        longest = max(other.length for other in (job, first, *self._running))
        rows = job.rows + sum(other.rows for other in self._running if other.aside)
        return (
            rows * longest <= self._aside * self._limit
            and first.rows * longest <= (1 - self._aside) * self._limit
            and self._within_share(job)
            and self._fits(job, self._running, 1.0)
        )

    def _fits(self, job: Job, others: Collection[Job], share: float) -> bool:
        """Whether a share of the batch has room for a job beside others; one always fits alone."""
        rows = job.rows + sum(other.rows for other in others)
        longest = max(other.length for other in (job, *self._running))
        return not others or rows * longest <= share * self._limit
