"""What a model says comes next, asked for numbers.

A step needs little of a distribution: whether it can be trusted, its best tokens, the
log-probability of some. A model in this process answers from its logits (``NextTokens``), one on
an engine over HTTP (``decoding.remote.RemoteTokens``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch

from alignbeam.config import BeamConfig
from alignbeam.decoding.beam import Beam
from alignbeam.decoding.sampling import draw
from alignbeam.models.bare import BareRole
from alignbeam.result import Wish


class NextTokens:
    """Next-token distributions of one model, one row per beam.

    Parameters
    ----------
    role : BareRole
        Whose they are.
    logits : torch.Tensor [R, width]
    """

    #: Whether they can be had as logits.
    local = True

    def __init__(self, role: BareRole, logits: torch.Tensor) -> None:
        self.role, self.logits = role, logits

    def rows(self, indices: Sequence[int]) -> NextTokens:
        """Return some of the rows."""
        if list(indices) == list(range(len(self.logits))):
            return self
        return NextTokens(self.role, self.logits[list(indices)])

    def without_ends(self) -> NextTokens:
        """Return the same without the role's end tokens."""
        ends = torch.tensor(self.role.end_ids, device=self.logits.device)
        return NextTokens(self.role, self.logits.index_fill(1, ends, float("-inf")))

    @cached_property
    def finite(self) -> list[bool]:
        """Per row: no NaN, no +inf, not all -inf. The maximum shows all three."""
        found: list[bool] = self.logits.amax(-1).isfinite().tolist()
        return found

    @cached_property
    def best(self) -> list[int]:
        """The most probable token of each row."""
        found: list[int] = self.logits.argmax(-1).tolist()
        return found

    def best_token(self, row: int) -> int:
        """Return the most probable token of a row."""
        return self.best[row]

    def top(self, count: int) -> list[list[tuple[int, float]]]:
        """Return each row's ``count`` best ids with their log-probabilities.

        They are in the op's order: by logit, of equals the lower id first.
        """
        order = self.logits.sort(descending=True, stable=True).indices[:, :count]
        logprobs = self.logits.double().log_softmax(-1).gather(1, order)
        pairs = zip(order.tolist(), logprobs.tolist(), strict=True)
        return [list(zip(ids, values, strict=True)) for ids, values in pairs]

    def best_pairs(self, row: int, count: int) -> list[tuple[int, float]]:
        """Return the ``count`` most probable tokens of a row and their log-probabilities."""
        return self.rows([row]).top(count)[0]

    def named(self, names: Sequence[Sequence[int]]) -> list[dict[int, float]]:
        """Return the log-probabilities of each row's own ``names``."""
        logprobs = self.logits.double().log_softmax(-1)
        return [
            dict(zip(ids, logprobs[row, list(ids)].tolist(), strict=True))
            for row, ids in enumerate(names)
        ]

    def best_of(self, row: int, count: int) -> list[int]:
        """Return the ``count`` most probable tokens of a row; of equals the lower id first."""
        order = self.logits[row].float().sort(descending=True, stable=True).indices
        found: list[int] = order[:count].tolist()
        return found

    def logprob(self, row: int, token_id: int) -> float:
        """Log-probability of a token, nats."""
        return float(self.logits[row].float().log_softmax(-1)[token_id])

    def samples(
        self, row: int, config: BeamConfig, generators: Sequence[torch.Generator]
    ) -> list[int]:
        """Draw one token with each generator, as ``config`` says."""
        how = config.temperature, config.top_k, config.top_p
        return [draw(self.logits[row], *how, generator) for generator in generators]

    def prefill(self) -> Callable[[], None]:
        """Begin whatever must be read first; what is returned waits for it."""
        return lambda: None

    def begin(self, beams: Sequence[Beam]) -> None:
        """Say which beams, one per row, are about to be given the model's own choice."""

    def choose(self, row: int, beam: Beam) -> int:
        """Return the model's own choice for a beam: its best token, or a draw."""
        config = beam.request.config
        if config.temperature > 0:
            return self.samples(row, config, [beam.generator])[0]
        return self.best[row]

    def wishes(self, row: int, count: int) -> tuple[Wish, ...]:
        """Return the ``count`` most probable tokens for people to read, best first."""
        best = self.logits[row].float().softmax(-1).topk(min(count, self.logits.shape[-1]))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return tuple(Wish(i, self.role.shown([i]), p) for i, p in pairs)
