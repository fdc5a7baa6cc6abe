"""The last guard around every judge: whatever goes wrong, nothing becomes safe by it."""

from __future__ import annotations

import contextvars
import copy
import logging
import threading
import time
from collections.abc import Sequence
from typing import Any, Self

from alignbeam.errors import ConfigError, JudgeDied
from alignbeam.judge.protocol import Conversation, Judge, check_lengths
from alignbeam.judge.verdicts import checked, error_verdict
from alignbeam.result import Failure, Verdict

_log = logging.getLogger(__name__)


class _Call:
    """One batch on its way through the judge, and what came of it."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.verdicts: object = None
        self.error: BaseException | None = None


class FailClosed:
    """Wraps a judge so that a failure is an error verdict, which counts as 5.

    Covered: an exception, a batch that takes too long, the wrong number of verdicts, anything
    that is no ``Verdict``, a score that is NaN or outside 1..5. ``KeyboardInterrupt`` and
    ``SystemExit`` pass through.

    With a timeout the judge runs in a worker thread. Python cannot stop a thread, so a batch that
    times out is *abandoned*: its verdicts are errors, its late answer is thrown away, and the
    thread goes on until the judge returns (as a daemon, so it never keeps the program alive).
    Until then no second thread is started: a later batch waits for the judge within its own
    timeout, and errs if the judge is still busy. So a judge that hangs for ever costs one
    thread, not one per request. For the same reason batches of concurrent callers go through
    one after another.

    Parameters
    ----------
    judge : Judge
        Any.
    timeout_s : float or None
        Seconds for one batch, waiting for the judge included; None sets no limit and starts no
        thread.

    Raises
    ------
    ConfigError
        A negative or NaN timeout.

    Source
    ------
    algorithm.md section 5 (fail closed).
    """

    def __init__(self, judge: Judge, timeout_s: float | None = None) -> None:
        if timeout_s is not None and not timeout_s >= 0:
            raise ConfigError(f"timeout_s must be at least 0, got {timeout_s}")
        self.judge = judge
        self.name = judge.name
        self.timeout_s = timeout_s
        self._busy = threading.Lock()

    @property
    def role(self) -> Any:
        """The model behind the judge; None where there is none (a callable)."""
        return getattr(self.judge, "role", None)

    def around(self, judge: Judge) -> Self:
        """Return the same guard around another judge."""
        other = copy.copy(self)
        other.judge, other.name, other._busy = judge, judge.name, threading.Lock()
        return other

    def readings(self, conversation: Conversation, candidate: str | int) -> int:
        """Count the rows that a verdict reads; 1 where the judge cannot tell.

        Raises
        ------
        PromptError
            There could be no verdict. See ``ModelJudge.readings``.
        """
        count = getattr(self.judge, "readings", None)
        return 1 if count is None else int(count(conversation, candidate))

    def score(
        self, conversations: Sequence[Conversation], candidates: Sequence[str]
    ) -> list[Verdict]:
        """Judge a flat batch; never fewer verdicts than candidates. See ``Judge.score``.

        Raises
        ------
        ValueError
            The two sides are not equally many: the caller's mistake, not the judge's.
        """
        check_lengths(conversations, candidates)
        if not candidates:
            return []
        try:
            if self.timeout_s is None:
                verdicts: object = self.judge.score(conversations, candidates)
            else:
                verdicts = self._within(self.timeout_s, conversations, candidates)
        except Exception as error:  # the one place where any failure must become a verdict
            # The message may hold what was judged, which belongs into no log by default.
            _log.warning("%s failed: %s", self.name, type(error).__name__)
            _log.debug("%s: %s", type(error).__name__, error)
            reason = f"{type(error).__name__}: {error}"
            return self._all_errors(len(candidates), _kind(error), reason)
        if not isinstance(verdicts, list | tuple) or len(verdicts) != len(candidates):
            said = len(verdicts) if isinstance(verdicts, list | tuple) else repr(verdicts)
            reason = f"the judge gave {said} verdicts for {len(candidates)} candidates"
            _log.warning("%s failed: not as many verdicts as candidates", self.name)
            return self._all_errors(len(candidates), "wrong-count", reason)
        return [checked(verdict, self.name) for verdict in verdicts]

    def _all_errors(self, count: int, failure: Failure, reason: str) -> list[Verdict]:
        return [error_verdict(self.name, failure, reason)] * count

    def _within(
        self, timeout_s: float, conversations: Sequence[Conversation], candidates: Sequence[str]
    ) -> object:
        deadline = time.monotonic() + timeout_s
        if not self._busy.acquire(timeout=min(timeout_s, threading.TIMEOUT_MAX)):
            raise TimeoutError(f"still busy with an earlier batch after {timeout_s:g} s")
        call = _Call()

        def work() -> None:
            try:
                call.verdicts = self.judge.score(conversations, candidates)
            except BaseException as error:  # handed to the caller, who raises it
                call.error = error
            finally:
                self._busy.release()
                call.done.set()

        # With what the caller's thread knows of whose question it is.
        worker = threading.Thread(
            target=contextvars.copy_context().run,
            args=(work,),
            name=f"judge {self.name}",
            daemon=True,
        )
        try:
            worker.start()
        except RuntimeError:  # no more threads: the worker will never release the lock
            self._busy.release()
            raise
        if not call.done.wait(max(0.0, deadline - time.monotonic())):
            raise TimeoutError(f"no verdict within {timeout_s:g} s")
        if call.error is not None:
            raise call.error
        return call.verdicts


def _kind(error: Exception) -> Failure:
    if isinstance(error, JudgeDied):
        return "died"
    return "timeout" if isinstance(error, TimeoutError) else "exception"
