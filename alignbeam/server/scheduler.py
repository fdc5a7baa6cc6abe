"""Many requests, one batch of beams: who joins between two steps, who leaves, who is judged.

One thread decodes, another asks the judge, so that a slow judge holds up no decoding. Requests
join the running batch between two steps and leave it when they are finished or given up; each
gets what it would get alone. A step that fails is tried again with half of its requests, down to
one: only a request that fails alone fails.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

import torch

from alignbeam.controller import AlignBeam
from alignbeam.decoding.batch import Batch
from alignbeam.decoding.clock import Clock
from alignbeam.errors import AlignBeamError, Cancelled, JudgeUnavailable
from alignbeam.judge import FailClosed, Judge
from alignbeam.judge.selection import select
from alignbeam.models.render import Prompt
from alignbeam.result import Candidate, Result, Timings, Verdict
from alignbeam.server.job import Answer, Job, Release, Ticket
from alignbeam.server.problems import DecodingFailed, Draining, OutOfMemory, Overloaded, TooLarge
from alignbeam.server.queue import WaitingLine

_log = logging.getLogger(__name__)


class Watcher(Protocol):
    """Is told what happens; called from both threads."""

    def on_step(self, rows: int, mix_us: float) -> None:
        """One decoding step over ``rows`` beams, with ``mix_us`` of it in the mixing."""

    def on_judged(self, judge_ms: float, verdicts: Sequence[Verdict]) -> None:
        """One call of the judge."""

    def on_recovery(self, reason: str) -> None:
        """Note that a step failed and is tried again with fewer requests."""


class Scheduler:
    """Decodes submitted requests together.

    Parameters
    ----------
    beam : AlignBeam
        The trio. While the scheduler runs, nobody else may use its models.
    judge : Judge or None
        Asked in place of ``beam.judge`` (say, one with a timeout).
    max_batch_cells : int
        Bound on rows times the longest row (tokens) of the running batch: what its KV cache holds.
    max_queued, max_queued_cells : int
        Bounds of the line that waits: jobs, and tokens x beams.
    chunk_tokens : int
        Length of the pieces of chunked answers.
    fail_open : bool
        Answer with the most probable candidate when the judge fails on all of them.
    watcher : Watcher or None
    """

    def __init__(
        self,
        beam: AlignBeam,
        *,
        judge: Judge | None = None,
        max_batch_cells: int = 65_536,
        max_queued: int = 256,
        max_queued_cells: int = 1 << 20,
        chunk_tokens: int = 32,
        fail_open: bool = False,
        watcher: Watcher | None = None,
    ) -> None:
        self._beam = beam
        judge = judge or beam.judge
        self._judge = judge if isinstance(judge, FailClosed) else FailClosed(judge)
        self._max_cells = self._limit = max_batch_cells
        self._chunk_tokens = chunk_tokens
        self._fail_open = fail_open
        self._watcher = watcher
        self._clock = Clock([beam.target.device, beam.anchor.device])
        # One lock for the line, the inboxes and the flags; never held while a model runs.
        self._wake = threading.Condition()
        self._line = WaitingLine(max_queued, max_queued_cells)
        self._judged: deque[tuple[Job, list[Candidate], bool]] = deque()
        self._to_judge: deque[tuple[Job, list[Candidate], bool]] = deque()
        self._draining = self._stopped = False
        # Owned by the decoding thread.
        self._batch: Batch | None = None
        self._active: list[Job] = []
        self._retry: deque[list[Job]] = deque()
        # Decoded jobs that the judge has not spoken of; bounded too, or a slow judge would let
        # them pile up without end.
        self._before_judge: dict[int, Job] = {}
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), name=name, daemon=True)
            for work, name in ((self._decode, "alignbeam decode"), (self._ask, "alignbeam judge"))
        ]
        for thread in self._threads:
            thread.start()

    # What callers use ----------------------------------------------------------------------

    @property
    def queued(self) -> int:
        """Jobs that wait."""
        return len(self._line)

    @property
    def running(self) -> int:
        """Jobs that decode or are before the judge."""
        return len(self._active) + sum(map(len, list(self._retry))) + len(self._before_judge)

    @property
    def healthy(self) -> bool:
        """Whether both threads are alive."""
        return all(thread.is_alive() for thread in self._threads)

    def submit(
        self,
        prompt: Prompt,
        overrides: dict[str, Any],
        *,
        client: str = "",
        release: Release = "full",
        on_text: Callable[[str], object] = lambda _: None,
    ) -> Ticket:
        """Queue one request; returns at once.

        Parameters
        ----------
        overrides : dict
            Fields of ``BeamConfig``.
        client : str
            Whose turn it takes.
        on_text : callable
            Given each judged piece of a chunked answer, on a thread of the scheduler.

        Raises
        ------
        PromptError, ConfigError
            What is wrong with the request.
        Overloaded
            The line is full.
        Draining
            The scheduler is being stopped.
        """
        request = self._beam.prepare(prompt, **overrides)
        future: Future[Answer] = Future()
        job = Job(request, client, release, on_text, future, self._chunk_tokens)
        if job.cost > self._max_cells:
            raise TooLarge(
                f"{job.length} tokens times {job.rows} beams exceed the {self._max_cells} this "
                "server runs at once; ask for fewer tokens or fewer beams"
            )
        with self._wake:
            if self._draining:
                raise Draining("the server is about to stop")
            if not self._line.has_room(job):
                raise Overloaded(f"{len(self._line)} requests are waiting already; try again later")
            self._line.put(job)
            self._wake.notify_all()
        return Ticket(job, self._nudge)

    def drain(self, timeout_s: float) -> bool:
        """Take no new job and wait for the others; whether all were done in time."""
        deadline = time.monotonic() + timeout_s
        with self._wake:
            self._draining = True
            self._wake.notify_all()
            while self.queued or self.running:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._wake.wait(min(left, 0.05))
        return True

    def stop(self, timeout_s: float = 5.0) -> None:
        """End both threads; jobs that are not done fail as cancelled."""
        with self._wake:
            self._draining = self._stopped = True
            self._wake.notify_all()
        for thread in self._threads:
            thread.join(timeout_s)

    def _nudge(self) -> None:
        with self._wake:
            self._wake.notify_all()

    # The decoding thread -------------------------------------------------------------------

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:
            _log.exception("the scheduler broke; no request is answered any longer")
            with self._wake:
                self._draining = self._stopped = True
                self._wake.notify_all()
        finally:
            self._abandon()

    def _abandon(self) -> None:
        """Fail whatever is left; runs when a thread ends."""
        with self._wake:
            left = [*self._line.drop(lambda _: True), *self._active]
            left += [job for group in self._retry for job in group]
            left += [job for job, _, _ in (*self._to_judge, *self._judged)]
            left += self._before_judge.values()  # a judge that hangs must not hold its askers
        for job in left:
            _settle(job.future, Cancelled("the server stopped"))

    def _decode(self) -> None:
        while True:
            with self._wake:
                while not self._something_to_do():
                    self._wake.wait()
                if self._stopped:
                    return
                verdicts = list(self._judged)
                self._judged.clear()
                newcomers = self._admit() if not self._retry and self._judge_keeps_up() else []
            for job, candidates, whole in verdicts:
                self._take_verdicts(job, candidates, whole)
            self._drop_cancelled()
            if not self._active and self._retry:
                newcomers = self._retry.popleft()
            if newcomers:
                self._join(newcomers)
            if self._batch is not None and self._batch.live():
                self._step(self._batch)
            for job in list(self._active):
                self._advance(job)

    def _something_to_do(self) -> bool:
        return bool(
            self._stopped
            or self._judged
            or (self._retry and not self._active)
            or any(job.cancelled.is_set() for job in (*self._line, *self._active))
            or (self._batch is not None and self._batch.live())
            or (
                len(self._line)
                and not self._retry
                and self._judge_keeps_up()
                and (not self._active or self._fits_next())
            )
        )

    def _fits_next(self) -> bool:
        rows, longest = self._held()
        head = next(iter(self._line))
        return (rows + head.rows) * max(longest, head.length) <= self._limit

    def _judge_keeps_up(self) -> bool:
        """Whether no more than a batch's worth of answers waits for the judge."""
        return sum(job.cost for job in self._before_judge.values()) < self._max_cells

    def _held(self) -> tuple[int, int]:
        """Rows of the running batch, and the longest of them at its end."""
        return (
            sum(job.rows for job in self._active),
            max((job.length for job in self._active), default=0),
        )

    def _admit(self) -> list[Job]:
        """Take from the line what the batch has room for; one job always fits alone."""
        newcomers: list[Job] = []
        rows, longest = self._held()
        while True:

            def fits(job: Job, rows: int = rows, longest: int = longest) -> bool:
                alone = rows == 0
                return alone or (rows + job.rows) * max(longest, job.length) <= self._limit

            job = self._line.take(fits)
            if job is None:
                return newcomers
            if job.cancelled.is_set():
                _settle(job.future, Cancelled("given up while it waited"))
                continue
            newcomers.append(job)
            rows, longest = rows + job.rows, max(longest, job.length)

    def _join(self, jobs: list[Job]) -> None:
        """Prime new jobs (or resume those whose beams are open) and put them into the batch."""
        now, clock_now = time.monotonic(), self._clock.timings()
        for job in jobs:
            if job.started is None:
                job.started, job.clock_start = now, clock_now
        phases, clock = self._beam.phases, self._clock
        new = [job.request for job in jobs if not job.request.beams]
        opened = [job.request for job in jobs if any(b.live for b in job.request.beams)]
        try:
            fresh: list[Batch] = []
            if new:
                fresh.append(phases.start(new, clock))
            if opened:
                fresh.append(phases.resume(opened, clock))
        except Exception as error:  # whatever a model raises must not end the server
            self._halve(jobs, error)
            return
        self._active += jobs
        try:
            for batch in fresh:
                if self._batch is None:
                    self._batch = batch
                else:
                    self._batch.absorb(batch)
        except Exception as error:
            self._fall_apart(error)

    def _step(self, batch: Batch) -> None:
        before = self._clock.timings().mix_ms
        rows = sum(b.live for job in self._active for b in job.request.beams)
        try:
            batch.step()
        except Exception as error:
            self._fall_apart(error)
            return
        if self._watcher is not None:
            self._watcher.on_step(rows, (self._clock.timings().mix_ms - before) * 1e3)

    def _fall_apart(self, error: Exception) -> None:
        """Let the batch go; its jobs are resumed in halves from what their beams hold."""
        jobs, self._active, self._batch = self._active, [], None
        growing = [job for job in jobs if not job.decoded]
        self._active = [job for job in jobs if job.decoded]  # nothing of theirs was lost
        self._halve(growing, error)

    def _halve(self, jobs: list[Job], error: Exception) -> None:
        memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
        reason = "out_of_memory" if memory else "decoding_failed"
        _log.warning("a step over %d requests failed: %s", len(jobs), type(error).__name__)
        _log.debug("the failed step", exc_info=error)
        if memory:
            self._limit = max(1, self._limit // 2)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        if len(jobs) == 1:
            kind = OutOfMemory if memory else DecodingFailed
            why = "not enough memory" if memory else f"{type(error).__name__} in a model"
            failure: Exception = error if isinstance(error, AlignBeamError) else kind(why)
            _settle(jobs[0].future, failure)
            return
        if self._watcher is not None:
            self._watcher.on_recovery(reason)
        middle = (len(jobs) + 1) // 2
        self._retry.extendleft(reversed([g for g in (jobs[:middle], jobs[middle:]) if g]))

    def _drop_cancelled(self) -> None:
        with self._wake:
            gone = self._line.drop(lambda job: job.cancelled.is_set())
        for job in gone:
            _settle(job.future, Cancelled("given up while it waited"))
        given_up = [job for job in self._active if job.cancelled.is_set()]
        if not given_up:
            return
        for job in given_up:
            self._active.remove(job)
            job.request.fail(Cancelled("given up"))
            _settle(job.future, Cancelled("given up between two steps"))
        if self._batch is not None:
            self._batch.leave()

    def _advance(self, job: Job) -> None:
        """See whether a job is done, or has a piece for the judge."""
        if job.request.error is not None:
            self._active.remove(job)
            _settle(job.future, job.request.error)
        elif job.judging:
            return
        elif job.decoded:
            self._active.remove(job)
            self._finish(job)
        elif job.due():
            job.next_check += job.chunk_tokens
            self._to_the_judge(job, job.candidates(whole=False), whole=False)

    def _finish(self, job: Job) -> None:
        candidates = job.candidates(whole=True)
        if job.release == "bare":
            self._deliver(job, candidates)
        else:
            self._to_the_judge(job, candidates, whole=True)

    def _to_the_judge(self, job: Job, candidates: list[Candidate], *, whole: bool) -> None:
        job.judging = True
        with self._wake:
            if whole:
                self._before_judge[id(job)] = job
            self._to_judge.append((job, candidates, whole))
            self._wake.notify_all()

    def _take_verdicts(self, job: Job, candidates: list[Candidate], whole: bool) -> None:
        """Go on with a job after the judge spoke of some of its text."""
        job.judging = False
        if whole:
            with self._wake:
                self._before_judge.pop(id(job), None)
            self._deliver(job, candidates)
            return
        if job not in self._active:
            return
        try:
            place = self._choose(job, candidates)
        except AlignBeamError as error:
            job.request.fail(error)
            return
        if place is None:  # unsafe: nothing more of it leaves
            self._active.remove(job)
            job.end()
            self._deliver(job, candidates)
            return
        if job.chosen is None:
            job.keep_only(job.request.beams[place])
        text = candidates[place].text
        if text.startswith(job.released) and len(text) > len(job.released):
            job.on_text(text[len(job.released) :])
            job.released = text

    def _choose(self, job: Job, candidates: list[Candidate]) -> int | None:
        try:
            return select(candidates, job.request.config).chosen
        except JudgeUnavailable:
            if not self._fail_open:
                raise
            job.failed_open = True
            return max(range(len(candidates)), key=lambda i: candidates[i].logprob)

    def _deliver(self, job: Job, candidates: list[Candidate]) -> None:
        """Choose, and hand the answer over."""
        timings = self._timings(job)
        try:
            if job.release == "bare":
                result = _bare(job, candidates, timings)
            else:
                result = self._beam.conclude(job.request, candidates, timings)
        except JudgeUnavailable as error:
            if not self._fail_open:
                _settle(job.future, error)
                return
            _log.warning("fail-open: an answer leaves without a verdict")
            best = max(range(len(candidates)), key=lambda i: candidates[i].logprob)
            result = dataclasses.replace(
                _bare(job, candidates, timings, best),
                reason="fail-open: the judge failed on every candidate and the operator lets "
                "answers pass",
            )
            job.failed_open = True
        except Exception as error:
            _settle(job.future, error)
            return
        self._limit = min(self._max_cells, self._limit + self._max_cells // 20)
        now = time.monotonic()
        started = job.started if job.started is not None else now
        answer = Answer(
            result,
            job.released,
            (started - job.submitted) * 1e3,
            (now - job.submitted) * 1e3,
            job.failed_open,
        )
        _settle(job.future, answer)

    def _timings(self, job: Job) -> Timings:
        """Return what the batch spent while the job was in it, the judge's time its own."""
        start, now = job.clock_start, self._clock.timings()
        if start is None:
            return now
        parts = {
            name: getattr(now, name) - getattr(start, name)
            for name in ("target_ms", "anchor_ms", "mix_ms", "total_ms")
        }
        other = parts["total_ms"] - sum(
            (parts["target_ms"], parts["anchor_ms"], parts["mix_ms"], job.judge_ms)
        )
        return Timings(**parts, judge_ms=job.judge_ms, other_ms=max(0.0, other))

    # The judge's thread --------------------------------------------------------------------

    def _ask(self) -> None:
        while True:
            with self._wake:
                while not self._to_judge and not self._stopped:
                    self._wake.wait()
                if self._stopped:
                    return
                asked = list(self._to_judge)
                self._to_judge.clear()
            self._score(asked)

    def _score(self, asked: Sequence[tuple[Job, list[Candidate], bool]]) -> None:
        flat = [(job, candidate) for job, candidates, _ in asked for candidate in candidates]
        begin = time.perf_counter()
        verdicts = self._judge.score(
            [job.request.messages for job, _ in flat], [candidate.text for _, candidate in flat]
        )
        spent = (time.perf_counter() - begin) * 1e3
        if self._watcher is not None:
            self._watcher.on_judged(spent, verdicts)
        spoken = iter(verdicts)
        with self._wake:
            for job, candidates, whole in asked:
                job.judge_ms += spent
                judged = [dataclasses.replace(c, verdict=next(spoken)) for c in candidates]
                self._judged.append((job, judged, whole))
            self._wake.notify_all()


def _bare(job: Job, candidates: list[Candidate], timings: Timings, best: int = 0) -> Result:
    """Return candidate ``best`` as the result, whatever a judge may have said."""
    chosen = candidates[best]
    return Result(
        text=chosen.text,
        finish_reason=chosen.finish_reason,
        chosen=best,
        reason="not judged",
        candidates=tuple(candidates),
        trace=tuple(sorted(job.request.trace, key=lambda step: (step.step, step.beam))),
        timings=timings,
        prompt_tokens=len(job.request.target_ids),
        completion_tokens=len(chosen.token_ids),
    )


def _settle(future: Future[Answer], outcome: Answer | BaseException) -> None:
    """Fulfil a future once; later outcomes are dropped."""
    if future.done():
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
