"""How slowly an engine decodes, against the fastest that it was seen to."""

from __future__ import annotations

from typing import Final

#: What one answer weighs in the pace of late.
_WEIGHT: Final = 0.2
#: By how much each answer makes the fastest pace be forgotten.
_FORGET: Final = 1.0001


class Pace:
    """Seconds a token of finished completions, of late and at best.

    An engine whose processors have work for others decodes each answer more slowly; one that waits
    for its memory, as a GPU does with few rows, takes more of them at nearly the same pace.
    """

    def __init__(self) -> None:
        self._late = self._best = 0.0

    @property
    def slowness(self) -> float:
        """How many times longer a token takes of late than at best; 1 where nothing was seen."""
        return self._late / self._best if self._best else 1.0

    def saw(self, tokens: int, seconds: float) -> None:
        """Learn from a completion, or the part of it that was seen; nothing where none was."""
        if tokens <= 0 or seconds <= 0:
            return
        now = seconds / tokens
        self._late = self._late + _WEIGHT * (now - self._late) if self._late else now
        self._best = min(self._late, self._best * _FORGET) if self._best else now
