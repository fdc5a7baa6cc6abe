"""What may choose a batch's next tokens in the target's place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from alignbeam.decoding.beam import Beam, Request
from alignbeam.decoding.clock import Clock
from alignbeam.decoding.next_tokens import NextTokens
from alignbeam.decoding.remainders import Remainders
from alignbeam.errors import NonFiniteLogits
from alignbeam.result import Wish

_NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Taken:
    """What a steer chose for one beam.

    Attributes
    ----------
    token_ids : tuple of int
        Target tokens, one or more.
    logprob : float
        Their log-probability under what chose them, nats.
    source : str
        Who chose; see ``StepTrace``.
    anchor_wishes : tuple of Wish
        What the steering model wanted most.
    anchor_mass, translated_mass, target_mass, anchor_share : float
        See ``StepTrace``.
    remainders : Remainders or None
        Where the anchor stands afterwards; None: after a token of its own.
    """

    token_ids: tuple[int, ...]
    logprob: float
    source: str
    anchor_wishes: tuple[Wish, ...] = ()
    anchor_mass: float = _NAN
    translated_mass: float = _NAN
    target_mass: float = _NAN
    anchor_share: float = 0.0
    remainders: Remainders | None = None


class Steer(Protocol):
    """The steering of one batch, with whatever it has cached for the batch's beams."""

    def open(self, target: NextTokens) -> list[Sequence[Taken] | None]:
        """Choose the first tokens of each request's beams, best first.

        Parameters
        ----------
        target : NextTokens
            After the prompts, one row per request of the batch.

        Returns
        -------
        list
            One entry per request; None leaves the openings to the target.
        """

    def fork(self) -> None:
        """Give every beam of the requests, now open, what its request had."""

    def choose(self, beams: Sequence[Beam], target: NextTokens) -> list[Taken | None]:
        """Choose what follows; None leaves a beam to the target. A request may be failed."""

    def join(self, other: Steer) -> None:
        """Take in the steering of another batch of the same kind; ``other`` is used up."""

    def leave(self, *, lazily: bool) -> bool:
        """Drop what is cached for beams that are steered no longer; whether any still are."""


class Steering(Protocol):
    """Makes the ``Steer`` of a batch."""

    def begin(self, requests: Sequence[Request], clock: Clock) -> Steer | None:
        """Prefill for new requests; None where none of them is steered."""

    def resume(self, beams: Sequence[Beam], clock: Clock) -> Steer | None:
        """Prefill once more for beams that are open; None where none of them is steered."""


def non_finite(who: str, step: int) -> NonFiniteLogits:
    """Return the error of a model whose numbers cannot be trusted."""
    return NonFiniteLogits(
        f"{who}: NaN or +inf logits at step {step}; no answer is given. "
        "Check the weights and the dtype (float16 overflows where bfloat16 does not)"
    )
