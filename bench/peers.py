"""What people write instead of `mix_topk`: the peers of the kernel bench.

Each takes (anchor_logits, target_logits, table) and returns (token_ids, logprobs) of the linear mix
over the anchor's support.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

ALPHA, TOP_B, TOP_K = 0.5, 50, 3
Answer = tuple[Tensor, Tensor]
Peer = Callable[[Tensor, Tensor, Tensor], Answer]


def eager(anchor_logits: Tensor, target_logits: Tensor, table: Tensor) -> Answer:
    """P1: full softmax on both sides, scatter into the target's vocabulary, top-k."""
    p = torch.softmax(anchor_logits.float(), dim=-1)
    q = torch.softmax(target_logits.float(), dim=-1)
    mass, ids = torch.topk(p, TOP_B, dim=-1)
    to = table[ids].long()
    known = to >= 0
    to = to.clamp(min=0)
    a = torch.zeros_like(q).scatter_add(1, to, mass * known)
    in_support = torch.zeros_like(q).scatter_add(1, to, known.float()) > 0
    f = torch.where(in_support, ALPHA * a + (1 - ALPHA) * q, 0.0)
    best, token_ids = torch.topk(f / f.sum(dim=-1, keepdim=True), TOP_K, dim=-1)
    return token_ids, best.log()


def smart_eager(anchor_logits: Tensor, target_logits: Tensor, table: Tensor) -> Answer:
    """P1s: top-k on logits, two log-sum-exps, a 50-wide merge."""
    logits, ids = torch.topk(anchor_logits, TOP_B, dim=-1)
    return merge(logits, ids, anchor_logits, target_logits, table)


def merge(
    logits: Tensor, ids: Tensor, anchor_logits: Tensor, target_logits: Tensor, table: Tensor
) -> Answer:
    """Mix over the anchor's top B, [R, B], without a tensor as wide as the target's vocabulary."""
    p = torch.exp(logits.float() - torch.logsumexp(anchor_logits.float(), -1, keepdim=True))
    to = table[ids].long()
    known = to >= 0
    log_q = target_logits.gather(1, to.clamp(min=0)).float()
    q = torch.exp(log_q - torch.logsumexp(target_logits.float(), -1, keepdim=True))
    same = (to[:, :, None] == to[:, None, :]) & known[:, None, :]
    a = (same * p[:, None, :]).sum(-1)
    first = known & ~torch.tril(same, diagonal=-1).any(-1)
    f = torch.where(first, ALPHA * a + (1 - ALPHA) * q, 0.0)
    best, at = torch.topk(f / f.sum(dim=-1, keepdim=True), TOP_K, dim=-1)
    return to.gather(1, at), best.log()


class Naive:
    """P0: the paper's loop. Decode each of the top B with one tokenizer, encode with the other."""

    def __init__(self, anchor: Tokenizer, target: Tokenizer, *, memo: bool) -> None:
        self._anchor = anchor
        self._target = target
        self._memo: dict[int, int] | None = {} if memo else None

    def translate(self, anchor_id: int) -> int:
        if self._memo is not None and anchor_id in self._memo:
            return self._memo[anchor_id]
        text = self._anchor.decode([anchor_id])
        ids = self._target.encode(text, add_special_tokens=False).ids if text else []
        target_id = ids[0] if len(ids) == 1 else -1
        if self._memo is not None:
            self._memo[anchor_id] = target_id
        return target_id

    def __call__(self, anchor_logits: Tensor, target_logits: Tensor, _: Tensor) -> Answer:
        p = torch.softmax(anchor_logits.float(), dim=-1)
        q = torch.softmax(target_logits.float(), dim=-1)
        mass, ids = torch.topk(p, TOP_B, dim=-1)
        rows = []
        for row in range(len(p)):
            a: dict[int, float] = {}
            for value, anchor_id in zip(mass[row].tolist(), ids[row].tolist(), strict=True):
                target_id = self.translate(anchor_id)
                if target_id >= 0:
                    a[target_id] = a.get(target_id, 0.0) + value
            f = {i: ALPHA * v + (1 - ALPHA) * float(q[row, i]) for i, v in a.items()}
            total = sum(f.values())
            best = sorted(f.items(), key=lambda item: (-item[1], item[0]))[:TOP_K]
            rows.append([(i, v / total) for i, v in best])
        token_ids = torch.tensor([[i for i, _ in row] for row in rows])
        return token_ids, torch.tensor([[v for _, v in row] for row in rows]).log()

    def table(self, anchor_width: int) -> Tensor:
        """All that the loop would ever find, as int32 [anchor_width]."""
        known = self._anchor.get_vocab_size(with_added_tokens=True)
        ids = [self.translate(i) if i < known else -1 for i in range(anchor_width)]
        return torch.tensor(ids, dtype=torch.int32)


def tokenizer(vocabs: Path, name: str) -> Tokenizer:
    return Tokenizer.from_file(str(vocabs / name / "tokenizer.json"))


def flashinfer_top_k(merging: Callable[..., Answer] = merge) -> Peer:
    """P3: the best library top-k there is, one log-sum-exp per side, the 50-wide merge.

    As the library chooses: unsorted, which `merge` does not mind. ``merging`` is `merge`, or that
    compiled: torch.compile does not see into the library. ImportError where it is not installed.
    """
    from flashinfer.topk import top_k

    def peer(anchor_logits: Tensor, target_logits: Tensor, table: Tensor) -> Answer:
        logits, ids = top_k(anchor_logits, TOP_B)
        return merging(logits, ids.long(), anchor_logits, target_logits, table)

    return peer
