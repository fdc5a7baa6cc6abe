"""What a mixed step says of one row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Choice:
    """Ids best first (absent ones left out), and how they came."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    anchor_mass: float
    translated_mass: float
    target_mass: float
    empty_support: bool
    non_finite: bool

    def anchor_share(self, alpha: float) -> float:
        """Return the anchor's real share in the mix, 0..1 (algorithm.md, section 3)."""
        theirs = alpha * self.translated_mass
        ours = (1 - alpha) * self.target_mass
        return theirs / (theirs + ours) if theirs + ours > 0 else 0.0


_NAN: Final = float("nan")
#: Of a row whose numbers cannot be trusted.
NON_FINITE: Final = Choice((), (), _NAN, _NAN, _NAN, empty_support=False, non_finite=True)
