"""What a mixed step says of one row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Choice:
    """Ids best first (absent ones left out), and how they came; ``alpha`` is what the op had."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    anchor_mass: float
    translated_mass: float
    target_mass: float
    alpha: float
    empty_support: bool
    non_finite: bool

    @property
    def anchor_share(self) -> float:
        """The anchor's real share in the mix, 0..1 (algorithm.md, section 3)."""
        theirs = self.alpha * self.translated_mass
        ours = (1 - self.alpha) * self.target_mass
        return theirs / (theirs + ours) if theirs + ours > 0 else 0.0


_NAN: Final = float("nan")
#: Of a row whose numbers cannot be trusted.
NON_FINITE: Final = Choice((), (), _NAN, _NAN, _NAN, _NAN, empty_support=False, non_finite=True)


def compensated(alpha: float, translated_mass: float, target_mass: float) -> float:
    """Return the weight with which the anchor's share in a linear mix is ``alpha``.

    ``alpha Q / (alpha Q + (1 - alpha) A)`` with ``A`` the anchor's mass in the support and ``Q``
    the target's; ``alpha`` where either is 0, or no number. Below 1 for every ``alpha`` below 1,
    as float32 too.

    Source: algorithm.md, section 3, Compensation.
    """
    if alpha in (0.0, 1.0) or not (translated_mass > 0 and target_mass > 0):
        return alpha
    theirs, ours = alpha * target_mass, (1 - alpha) * translated_mass
    return min(theirs / (theirs + ours), 1 - 2**-24)
