"""What a model says comes next, asked for numbers.

A step needs little of a distribution: whether it can be trusted, its best tokens, the
log-probability of some. A model in this process answers from its logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch

from alignbeam.config import BeamConfig
from alignbeam.decoding.sampling import draw
from alignbeam.models.role import Role
from alignbeam.result import Wish


class NextTokens:
    """Next-token distributions of one model, one row per beam.

    Parameters
    ----------
    role : Role
        Whose they are.
    logits : torch.Tensor [R, width]
    """

    def __init__(self, role: Role, logits: torch.Tensor) -> None:
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

    def best_of(self, row: int, count: int) -> list[int]:
        """Return the ``count`` most probable tokens of a row; of equals the lower id first."""
        order = self.logits[row].float().sort(descending=True, stable=True).indices
        found: list[int] = order[:count].tolist()
        return found

    def logprob(self, row: int, token_id: int) -> float:
        """Log-probability of a token, nats."""
        return float(self.logits[row].float().log_softmax(-1)[token_id])

    def sample(self, row: int, config: BeamConfig, generator: torch.Generator) -> int:
        """Draw one token as ``config`` says."""
        return draw(self.logits[row], config.temperature, config.top_k, config.top_p, generator)

    def wishes(self, row: int, count: int) -> tuple[Wish, ...]:
        """Return the ``count`` most probable tokens for people to read, best first."""
        best = self.logits[row].float().softmax(-1).topk(min(count, self.logits.shape[-1]))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return tuple(Wish(i, self.role.shown([i]), p) for i, p in pairs)
