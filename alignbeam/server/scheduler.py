"""Many requests, one engine: who joins between two steps, who leaves, who is judged.

One thread decodes, another asks the judge, so that a slow judge holds up no decoding. What is here
is when a job begins, goes before the judge, and when its text may leave; ``admission`` says who is
next, the engine decodes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from alignbeam.controller import AlignBeam, assemble
from alignbeam.decoding.beam import Request
from alignbeam.decoding.clock import Clock
from alignbeam.decoding.decode import engine_of
from alignbeam.decoding.engine import out_of_memory
from alignbeam.engines.scope import tenant_salt
from alignbeam.errors import AlignBeamError, Cancelled
from alignbeam.judge.early import survivors
from alignbeam.models.conversation import Prompt
from alignbeam.server.admission import Admission
from alignbeam.server.choice import choose
from alignbeam.server.entrance import Entrance
from alignbeam.server.job import REQUEST, Job, Release, Ticket
from alignbeam.server.judging import JudgeDesk, ServerWatcher
from alignbeam.server.problems import Draining
from alignbeam.server.queue import FairQueue

_log = logging.getLogger(__name__)


class Scheduler:
    """Decodes submitted requests together.

    Parameters
    ----------
    beam : AlignBeam
        The trio. While the scheduler runs, nobody else may use its models.
    max_batch_cells : int
        Bound on rows times the longest row (tokens) of the running batch: what its KV cache holds.
    max_queued, max_queued_cells : int
        Bounds of the queue: jobs, and tokens x beams.
    client_share : float
        How much of the batch, of the queue, and of a batch's worth before the judge one client may
        take, 0..1; the rest is there for the others.
    chunk_tokens : int
        Length of the pieces of chunked answers.
    fail_open : bool
        Answer with the most probable candidate when the judge fails on all of them.
    watcher : ServerWatcher or None
    """

    def __init__(
        self,
        beam: AlignBeam,
        *,
        max_batch_cells: int = 65_536,
        max_queued: int = 256,
        max_queued_cells: int = 1 << 20,
        client_share: float = 1.0,
        chunk_tokens: int = 32,
        fail_open: bool = False,
        watcher: ServerWatcher | None = None,
    ) -> None:
        self._beam = beam
        self._chunk_tokens = chunk_tokens
        self._fail_open = fail_open
        self._watcher = watcher
        self._clock = Clock([beam.target.device, beam.anchor.device])
        # One lock for the queue, the judge's trays and the flags; never held while a model runs.
        self._wake = threading.Condition()
        self._queue = FairQueue(max_queued, max_queued_cells, client_share)
        self._desk = JudgeDesk(beam.judge, self._wake, watcher)
        self._stopped = False
        self._farewell: AlignBeamError = Cancelled("the server stopped")
        # Owned by the decoding thread.
        self._engine = engine_of(
            beam.target,
            beam.steering,
            self._clock,
            on_failure=self._on_failure,
            held=self._is_held,
            wake=self._nudge,
        )
        self._active: dict[Request, Job] = {}
        self._entrance = Entrance()
        self._admission = Admission(
            self._queue,
            max_cells=max_batch_cells,
            share=client_share,
            running=self._active.values(),
            backlog=self._desk.backlog,
        )
        works = (self._decode, "alignbeam decode"), (self._desk.work, "alignbeam judge")
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), name=name, daemon=True)
            for work, name in works
        ]
        for thread in self._threads:
            thread.start()

    # What callers use ----------------------------------------------------------------------

    @property
    def queued(self) -> int:
        """Jobs that wait."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Jobs that decode or are before the judge."""
        return len(self._active) + len(self._desk.finished)

    @property
    def healthy(self) -> bool:
        """Whether both threads are alive."""
        return all(thread.is_alive() for thread in self._threads)

    def prepare(
        self, prompt: Prompt, choices: Sequence[Mapping[str, Any]], *, judged: bool = True
    ) -> list[Request]:
        """Check and render a request: all that takes long before it can be queued.

        Parameters
        ----------
        choices : sequence of mappings
            Fields of ``BeamConfig`` for each answer that is wanted; all but ``seed`` are the first
            one's.
        judged : bool
            The judge must be able to read the prompt too, and the longest answer beside it.

        Raises
        ------
        PromptError, ConfigError
            What is wrong with the request.
        """
        first = self._beam.prepare(prompt, **choices[0])
        if judged:
            self._beam.judge.readings(first.messages, first.max_new_tokens)
        return [first, *(first.drawn_again(choice["seed"]) for choice in choices[1:])]

    def put(
        self,
        requests: Sequence[Request],
        *,
        client: str = "",
        release: Release = "full",
        on_text: Callable[[int, str], object] = lambda index, text: None,
    ) -> list[Ticket]:
        """Queue requests, all or none; returns at once.

        Parameters
        ----------
        client : str
            Whose turn they take.
        on_text : callable
            Given each judged piece of a chunked answer and its request's place, on a thread of the
            scheduler.

        Raises
        ------
        TooLarge, Overloaded
            See ``Admission.put``.
        Draining
            The scheduler is being stopped.
        """
        for request in requests:
            request.salt = tenant_salt(client)
        jobs = [
            Job(request, client, release, partial(on_text, index), Future(), self._chunk_tokens)
            for index, request in enumerate(requests)
        ]
        with self._wake:
            if self._stopped:
                raise Draining("the server is about to stop")
            self._admission.put(jobs)
            self._wake.notify_all()
        return [Ticket(job, self._nudge) for job in jobs]

    def submit(
        self,
        prompt: Prompt,
        overrides: Mapping[str, Any],
        *,
        on_text: Callable[[str], object] = lambda _: None,
        **how: Any,
    ) -> Ticket:
        """``prepare`` and ``put`` for one answer; see both."""
        requests = self.prepare(prompt, [overrides], judged=how.get("release") != "bare")
        return self.put(requests, on_text=lambda _, text: on_text(text), **how)[0]

    def stop(self, timeout_s: float = 5.0) -> None:
        """End both threads; jobs that are not done fail as cancelled."""
        with self._wake:
            self._end()
        for thread in self._threads:
            thread.join(timeout_s)

    def expire(self) -> None:
        """End, and fail now whatever is not done, whoever still works on it."""
        with self._wake:
            self._farewell = Draining("the server is about to stop")
            self._end()
        self._abandon()

    def _nudge(self) -> None:
        with self._wake:
            self._wake.notify_all()

    def _end(self) -> None:
        """Tell both threads to end; the lock is held."""
        self._stopped = self._desk.closed = True
        self._wake.notify_all()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:
            _log.exception("the scheduler broke; no request is answered any longer")
            with self._wake:
                self._end()
        finally:
            self._abandon()

    def _abandon(self) -> None:
        """Fail whatever is left; runs when a thread ends."""
        with self._wake:
            # A judge that hangs must not hold its askers either.
            left = [*self._queue.drop(lambda _: True), *self._active.values(), *self._desk.finished]
        for job in left:
            job.settle(self._farewell)

    def _decode(self) -> None:
        while True:
            with self._wake:
                while not self._something_to_do():
                    self._wake.wait()
                if self._stopped:
                    return
                judged = self._desk.take()
                newcomers = self._admit()
            for job, whole in judged:
                self._go_on(job, whole)
            self._drop_cancelled()
            self._begin(newcomers)
            if self._engine.growing:
                self._step()
            for request in self._engine.take_finished():
                if request in self._active:
                    self._active[request].decoded = True
            for job in list(self._active.values()):
                self._advance(job)

    def _something_to_do(self) -> bool:
        return bool(
            self._stopped
            or self._desk.judged
            or self._engine.growing
            or self._entrance.waiting
            or any(job.cancelled.is_set() for job in (*self._queue, *self._active.values()))
            or self._next() is not None
        )

    def _next(self) -> Job | None:
        """Return the job that is to join the batch now; the lock is held."""
        return None if self._engine.recovering else self._admission.next()

    def _admit(self) -> list[Job]:
        """Take from the queue what the batch has room for; the lock is held."""
        newcomers: list[Job] = []
        while (job := self._next()) is not None:
            self._queue.take(job)
            if job.cancelled.is_set():
                job.settle(Cancelled("given up while it waited"))
                continue
            self._active[job.request] = job
            newcomers.append(job)
        return newcomers

    def _begin(self, newcomers: list[Job]) -> None:
        """Decode what was admitted, unless the judge is to be asked about it before."""
        for job in newcomers:
            if job.request not in self._active:  # given up meanwhile
                continue
            if job.gated:
                job.start(self._clock.timings())
                self._desk.put(job, whole=False)
            else:
                self._entrance.put(job)
        self._entrance.let_in(self._engine, self._active, self._clock)

    def _step(self) -> None:
        before, rows = self._clock.timings().mix_ms, self._engine.live_rows
        begin = time.perf_counter()
        self._engine.step()
        self._entrance.stepped(time.perf_counter() - begin)
        if self._watcher is not None and rows:
            self._watcher.on_step(rows, (self._clock.timings().mix_ms - before) * 1e3)

    def _is_held(self, request: Request) -> bool:
        """Whether a request that decodes apart waits for the judge, or is about to."""
        job = self._active.get(request)
        return job is not None and (job.judging or job.due())

    def _on_failure(self, error: Exception, count: int) -> None:
        memory = out_of_memory(error)
        if memory:
            self._admission.shrink()
        if count > 1 and self._watcher is not None:
            self._watcher.on_recovery("out_of_memory" if memory else "decoding_failed")

    def _drop_cancelled(self) -> None:
        with self._wake:
            gone = self._queue.drop(lambda job: job.cancelled.is_set())
        for job in gone:
            job.settle(Cancelled("given up while it waited"))
        given_up = [job for job in self._active.values() if job.cancelled.is_set()]
        if given_up:
            self._engine.drop([job.request for job in given_up])
        for job in given_up:
            del self._active[job.request]
            job.settle(Cancelled("given up between two steps"))

    def _advance(self, job: Job) -> None:
        """See whether a job is done, or has a piece for the judge."""
        if not self._engine.at_rest(job.request):
            return
        if job.request.error is not None:
            del self._active[job.request]
            job.settle(job.request.error)
        elif job.judging:
            return
        elif job.decoded:
            if job.release == "bare":
                del self._active[job.request]
                self._deliver(job)
            else:
                self._desk.put(job, whole=True)
                del self._active[job.request]
        elif job.due():
            job.next_check += job.chunk_tokens
            job.request.looks += 1
            self._desk.put(job, whole=False)

    def _go_on(self, job: Job, whole: bool) -> None:
        """Go on with a job after the judge spoke of some of its text."""
        if whole:
            self._desk.leave(job)
            if job.cancelled.is_set():
                job.settle(Cancelled("given up before the judge"))
            else:
                self._deliver(job)
            return
        if job.request not in self._active:
            return
        if job.gated:
            verdict = job.verdicts.pop(REQUEST, None)
            job.request.weigh("request", None if verdict is None else verdict.request_harm)
            self._entrance.put(job)
            return
        candidates = job.candidates()
        if job.release == "full":
            still = [beam.index for beam in job.request.contested]
            job.request.keep(survivors(candidates, job.request.config, still))
            return
        try:
            chosen = choose(job, candidates, fail_open=self._fail_open).chosen
        except AlignBeamError as error:
            job.request.fail(error)
            return
        if chosen is None:  # unsafe: nothing more of it leaves
            del self._active[job.request]
            job.keep_only(None)
            self._deliver(job)
            return
        if job.chosen is None:
            job.keep_only(chosen)
        job.let_out(candidates[chosen].text)

    def _deliver(self, job: Job) -> None:
        """Choose, and hand the answer over."""
        candidates, timings = job.candidates(), job.timings(self._clock.timings())
        try:
            selection = choose(job, candidates, fail_open=self._fail_open)
        except AlignBeamError as error:
            job.settle(error)
            return
        result = assemble(job.request, candidates, selection, timings)
        self._admission.grow()
        job.settle(job.delivery(result))
