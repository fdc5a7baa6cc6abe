"""Reading label probabilities off a model: one forward per row, in batches of bounded size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from alignbeam.judge.protocol import JudgeRole

#: Default bound of rows x longest row, padding included, of one forward.
MAX_BATCH_TOKENS: Final = 16_384


@dataclass(frozen=True, slots=True)
class LabelRow:
    """A question to the model.

    Attributes
    ----------
    ids : list of int
        The prompt; the label is the next token.
    labels : tuple of tuple of int
        Ids that mean each label.
    """

    ids: list[int]
    labels: tuple[tuple[int, ...], ...]


def read_labels(
    role: JudgeRole, rows: Sequence[LabelRow], max_batch_tokens: int = MAX_BATCH_TOKENS
) -> list[tuple[float, ...]]:
    """Return, for each row, the full-softmax probability of each of its labels.

    The softmax runs over all columns of the head in float64. A row whose logits hold NaN or +inf
    gets NaN, and no other row does.

    Parameters
    ----------
    role : JudgeRole
        The judge's model.
    rows : sequence of LabelRow
        In any order; rows that begin alike run together, and what they share is computed once.
    max_batch_tokens : int
        Bound of ``rows * longest row`` of one batch, which is also what its KV cache may hold; a
        longer row runs alone.
    """
    found: list[tuple[float, ...]] = [()] * len(rows)
    for batch in _batches([row.ids for row in rows], max_batch_tokens):
        logits = role.next_token_logits([rows[i].ids for i in batch])
        logprobs = torch.log_softmax(logits.double(), dim=-1)
        for i, row_logprobs in zip(batch, logprobs, strict=True):
            found[i] = tuple(float(row_logprobs[list(ids)].exp().sum()) for ids in rows[i].labels)
    return found


def _batches(prompts: Sequence[list[int]], max_batch_tokens: int) -> Iterator[list[int]]:
    """Yield batches of indices; prompts that begin alike stand together."""
    batch: list[int] = []
    widest = 0
    for i in sorted(range(len(prompts)), key=prompts.__getitem__):
        widest = max(widest, len(prompts[i]))
        if batch and (len(batch) + 1) * widest > max_batch_tokens:
            yield batch
            batch, widest = [], len(prompts[i])
        batch.append(i)
    if batch:
        yield batch
