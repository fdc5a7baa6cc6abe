"""What a step leaves for people to read: tokens as text, and what each model wanted."""

from __future__ import annotations

import torch

from alignbeam.models.role import Role
from alignbeam.result import Wish


def top_wishes(role: Role, logits: torch.Tensor, count: int) -> tuple[Wish, ...]:
    """Return the ``count`` most probable tokens of logits [width], best first."""
    best = logits.float().softmax(-1).topk(min(count, logits.shape[-1]))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return tuple(Wish(i, shown_token(role, i), p) for i, p in pairs)


def shown_token(role: Role, token_id: int) -> str:
    """Return a token for people: its text, or the name of a control token."""
    data = role.bytes_of(token_id)
    if data:
        return data.decode("utf-8", errors="replace")
    name = role.tokenizer.convert_ids_to_tokens(token_id)
    return str(name) if name is not None else f"<{token_id}>"
