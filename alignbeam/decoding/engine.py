"""Requests that decode together, whoever brings them: the one engine under batch and server.

Requests join the running batch between two steps and leave it when they are finished or given up;
each gets what it would get alone. A step that fails is tried again with half of its requests, down
to one: only a request that fails alone fails.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Sequence

import torch

from alignbeam.decoding.batch import Batch
from alignbeam.decoding.beam import Request
from alignbeam.decoding.clock import Clock
from alignbeam.decoding.steer import Steering
from alignbeam.engines.roles import AnyRole
from alignbeam.errors import AlignBeamError, Cancelled, DecodingFailed, OutOfMemory

_log = logging.getLogger(__name__)


def out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that there was not enough memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError)


class Engine:
    """Decodes whatever is added to it.

    Parameters
    ----------
    target : Role or RemoteRole
    steering : Steering or None
        None for a model alone; then no request may have steps to mix.
    clock : Clock
    on_failure : callable
        Given the error of each step that failed, and how many requests were in it.
    """

    #: Whether ``add`` returns once the prompts are read; no step is taken meanwhile.
    add_holds_up = True

    def __init__(
        self,
        target: AnyRole,
        steering: Steering | None,
        clock: Clock,
        on_failure: Callable[[Exception, int], object] = lambda error, count: None,
    ) -> None:
        self._target, self._steering, self._clock = target, steering, clock
        self._on_failure = on_failure
        self._batch: Batch | None = None
        self._requests: list[Request] = []
        self._retry: deque[list[Request]] = deque()
        self._failed: list[Request] = []

    @property
    def recovering(self) -> bool:
        """Whether requests of a step that failed wait for their turn; add none meanwhile."""
        return bool(self._retry)

    @property
    def growing(self) -> bool:
        """Whether a further ``step`` has something to do."""
        return self.recovering or (self._batch is not None and self._batch.live())

    @property
    def live_rows(self) -> int:
        """How many beams the next step gives a token."""
        return 0 if self._batch is None else sum(b.live for b in self._batch.beams)

    def add(self, requests: Sequence[Request]) -> None:
        """Prefill new requests, or resume those whose beams are open, and let them join."""
        new = [r for r in requests if not r.beams]
        opened = [r for r in requests if any(b.live for b in r.beams)]
        models = self._target, self._steering
        try:
            fresh = [Batch.prime(*models, new, self._clock)] if new else []
            fresh += [Batch.resume(*models, opened, self._clock)] if opened else []
        except Exception as error:  # whatever a model raises must not end the others
            self._halve(list(requests), error)
            return
        self._requests += requests
        try:
            for batch in fresh:
                if self._batch is None:
                    self._batch = batch
                else:
                    self._batch.join(batch)
        except Exception as error:
            self._fall_apart(error)

    def step(self) -> None:
        """Give every live beam a token; after a failure, take the next group up again."""
        if self._retry and not any(self._is_growing(r) for r in self._requests):
            self.add(self._retry.popleft())
        if self._batch is None or not self._batch.live():
            return
        try:
            self._batch.step()
        except Exception as error:
            self._fall_apart(error)

    def at_rest(self, request: Request) -> bool:
        """Whether nothing touches a request between two steps: see ``ApartEngine``."""
        return True

    def take_finished(self) -> list[Request]:
        """Return the requests that grow no longer, failed ones (``error``) included, once each."""
        done = [*self._failed, *(r for r in self._requests if not self._is_growing(r))]
        self._failed = []
        self._requests = [r for r in self._requests if self._is_growing(r)]
        return done

    def drop(self, requests: Collection[Request]) -> None:
        """Let go of requests that nobody waits for; their rows are gone before the next step."""
        for request in requests:
            request.fail(Cancelled("given up between two steps"))
        gone = set(requests)
        self._requests = [r for r in self._requests if r not in gone]
        self._retry = deque(
            kept for group in self._retry if (kept := [r for r in group if r not in gone])
        )
        if self._batch is not None:
            self._batch.leave()

    def run(
        self,
        should_cancel: Callable[[], bool] | None = None,
        between: Callable[[], object] = lambda: None,
    ) -> None:
        """Step until nothing grows; ``between`` is called after each step.

        Raises
        ------
        Cancelled
            ``should_cancel``, asked between steps, said so.
        """
        while self.growing:
            if should_cancel is not None and should_cancel():
                raise Cancelled("cancelled between two steps")
            self.step()
            between()

    @staticmethod
    def _is_growing(request: Request) -> bool:
        return request.error is None and any(b.live for b in request.beams)

    def _fall_apart(self, error: Exception) -> None:
        """Let the batch go; its requests are resumed in halves from what their beams hold."""
        self._batch = None
        growing = [r for r in self._requests if self._is_growing(r)]
        self._requests = [r for r in self._requests if not self._is_growing(r)]
        self._halve(growing, error)

    def _halve(self, requests: list[Request], error: Exception) -> None:
        if not requests:  # all were given up meanwhile
            return
        _log.warning("a step over %d requests failed: %s", len(requests), type(error).__name__)
        _log.debug("the failed step", exc_info=error)
        if out_of_memory(error) and torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._on_failure(error, len(requests))
        if len(requests) == 1:
            (request,) = requests
            request.fail(_failure(error))
            self._failed.append(request)
            return
        middle = (len(requests) + 1) // 2
        self._retry.extendleft(reversed([requests[:middle], requests[middle:]]))


def _failure(error: Exception) -> AlignBeamError:
    """Return the error that a request ends with; the model's own is its cause."""
    if isinstance(error, AlignBeamError):
        return error
    failure: AlignBeamError
    if out_of_memory(error):
        failure = OutOfMemory("not enough memory for this request, even alone")
    else:
        failure = DecodingFailed(f"{type(error).__name__} in a model")
    failure.__cause__ = error
    return failure
