"""How many bytes of each client are read: what comes faster waits, and then is sent away."""

from __future__ import annotations

import time
from collections.abc import Callable


class Allowance:
    """Bytes that each client may yet send, refilled all the time.

    Reading a body holds up the decoding of everybody's answers, whether it is refused or not. Who
    has spent more than there was is read again once that has come back.

    Parameters
    ----------
    rate : int
        Bytes a second and client.
    saved : int
        Bytes that a client may save up.
    clock : callable
        Returns seconds.
    """

    def __init__(self, rate: int, saved: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._saved, self._clock = rate, saved, clock
        #: What a client has left, and when that was so; one that is not here has all of it.
        self._left: dict[str, tuple[float, float]] = {}

    def spend(self, client: str, count: int) -> None:
        """Take bytes off what a client has left; fewer than none gives some back."""
        self._left[client] = self._now(client) - count, self._clock()

    def wait_s(self, client: str) -> float:
        """Return the seconds until a client may be read again; 0 where it may be now."""
        return max(0.0, -self._now(client) / self._rate)

    def _now(self, client: str) -> float:
        if client not in self._left:
            return self._saved
        left, at = self._left[client]
        return min(self._saved, left + (self._clock() - at) * self._rate)
