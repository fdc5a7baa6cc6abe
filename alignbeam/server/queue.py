"""The queue before the scheduler: bounded, and fair between clients."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence

from alignbeam.server.job import Job


class FairQueue:
    """Jobs that wait, one line per client; the clients take turns.

    Whoever's turn it is goes next or nobody does: a large job at the head is not overtaken by
    small ones, so it cannot starve. Not thread-safe; the scheduler holds its lock around it.

    Parameters
    ----------
    max_jobs : int
        Bound on the jobs that wait.
    max_cost : int
        Bound on the sum of their ``cost`` (tokens x beams).
    """

    def __init__(self, max_jobs: int, max_cost: int) -> None:
        self._max_jobs, self._max_cost = max_jobs, max_cost
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
        """Whether all ``jobs`` may wait; an empty line takes any."""
        cost = self.cost + sum(job.cost for job in jobs)
        count = len(self) + len(jobs)
        return len(self) == 0 or (count <= self._max_jobs and cost <= self._max_cost)

    def put(self, job: Job) -> None:
        """Append a job to its client's line."""
        self._lines.setdefault(job.client, deque()).append(job)
        self.cost += job.cost

    @property
    def head(self) -> Job | None:
        """The next job in turn."""
        return next(iter(self), None)

    def take(self) -> Job:
        """Remove and return ``head``; there must be one."""
        client, line = next(iter(self._lines.items()))
        job = line.popleft()
        self.cost -= job.cost
        del self._lines[client]
        if line:
            self._lines[client] = line  # at the end: the others have their turn first
        return job

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
