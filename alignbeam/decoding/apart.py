"""Requests whose target is on an engine decode apart: each on a thread of its own.

The engine batches them; here nothing is shared between two requests but the connections, so a slow
one holds up none of the others.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence

from alignbeam.decoding.beam import Request
from alignbeam.decoding.clock import Clock
from alignbeam.decoding.engine import Engine
from alignbeam.decoding.steer import Steering
from alignbeam.engines.roles import AnyRole
from alignbeam.engines.scope import Scope, scope
from alignbeam.errors import Cancelled, DecodingFailed


class _Run:
    """One request on its thread.

    Attributes
    ----------
    at_rest : bool
        Whether the thread has let go of the request, for a while or for good.
    """

    def __init__(self, request: Request) -> None:
        self.request, self.scope = request, Scope(request.salt)
        self.clock = request.clock = Clock([])  # its own: others decode at the same time
        self.at_rest = self.seen = False
        self.go = threading.Event()


class ApartEngine:
    """Decodes whatever is added to it; what ``Engine`` is for a target in this process.

    Parameters
    ----------
    target : RemoteRole
    steering : Steering or None
    held : callable
        Whether a request is to rest as it is: nobody but the caller of ``step`` touches it then.
    wake : callable
        Called, on any thread, when a further ``step`` has something to do.
    """

    #: A step that failed took no other request along.
    recovering = False
    #: The prompts are read on the engine, while others decode.
    add_holds_up = False

    def __init__(
        self,
        target: AnyRole,
        steering: Steering | None,
        held: Callable[[Request], bool] = lambda request: False,
        wake: Callable[[], object] = lambda: None,
    ) -> None:
        self._target, self._steering = target, steering
        self._held, self._wake = held, wake
        self._lock = threading.Condition()
        self._runs: dict[Request, _Run] = {}

    @property
    def growing(self) -> bool:
        """Whether a further ``step`` has something to do."""
        with self._lock:
            return any(self._is_due(run) for run in self._runs.values())

    @property
    def live_rows(self) -> int:
        """How many beams are growing."""
        return sum(b.live for r in list(self._runs) for b in r.beams)

    def at_rest(self, request: Request) -> bool:
        """Whether no thread touches a request now."""
        run = self._runs.get(request)
        return run is None or run.at_rest

    def add(self, requests: Sequence[Request]) -> None:
        """Begin to decode new requests."""
        for request in requests:
            run = _Run(request)
            with self._lock:
                self._runs[request] = run
            name = "alignbeam request"
            threading.Thread(target=self._decode, args=(run,), name=name, daemon=True).start()

    def step(self) -> None:
        """Let the requests that rest, and are held no longer, go on."""
        with self._lock:
            for run in self._runs.values():
                run.seen = run.at_rest
                if run.at_rest and not self._is_over(run) and not self._held(run.request):
                    run.at_rest = run.seen = False
                    run.go.set()

    def take_finished(self) -> list[Request]:
        """Return the requests that grow no longer, failed ones (``error``) included, once each."""
        with self._lock:
            done = [r for r, run in self._runs.items() if run.at_rest and self._is_over(run)]
            for request in done:
                del self._runs[request]
        return done

    def drop(self, requests: Collection[Request]) -> None:
        """Let go of requests that nobody waits for; what the engine does for them is aborted."""
        for request in requests:
            request.fail(Cancelled("given up between two steps"))
            with self._lock:
                run = self._runs.pop(request, None)
            if run is not None:
                run.scope.cancel()
                run.go.set()

    def run(
        self,
        should_cancel: Callable[[], bool] | None = None,
        between: Callable[[], object] = lambda: None,
    ) -> None:
        """Wait until nothing grows; there is no moment between two steps of all.

        Raises
        ------
        Cancelled
            ``should_cancel``, asked now and then, said so.
        """
        while True:
            with self._lock:
                if all(run.at_rest and self._is_over(run) for run in self._runs.values()):
                    return
                self._lock.wait(0.05 if should_cancel is not None else None)
            if should_cancel is not None and should_cancel():
                self.drop(list(self._runs))
                raise Cancelled("cancelled between two steps")
            self.step()

    def _is_due(self, run: _Run) -> bool:
        if not run.at_rest:
            return False
        return not run.seen or (not self._is_over(run) and not self._held(run.request))

    @staticmethod
    def _is_over(run: _Run) -> bool:
        return run.request.error is not None or run.request.decoded

    def _decode(self, run: _Run) -> None:
        scope.set(run.scope)
        request = run.request
        engine = Engine(self._target, self._steering, run.clock)
        try:
            engine.add([request])
            while engine.growing:
                if self._held(request):
                    self._rest(run)
                    run.go.wait()
                    run.go.clear()
                engine.step()
            # A failed step leaves its reason; whoever fails without one must not seem decoded.
            if request.error is None and not request.decoded:
                request.fail(DecodingFailed("the request ended without its beams"))
        except Exception as error:
            failure = DecodingFailed(f"{type(error).__name__} while decoding")
            failure.__cause__ = error
            request.fail(failure)
        finally:
            run.scope.cancel()
            self._rest(run)

    def _rest(self, run: _Run) -> None:
        with self._lock:
            run.at_rest, run.seen = True, False
            self._lock.notify_all()
        self._wake()
