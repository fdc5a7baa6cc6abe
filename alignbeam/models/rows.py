"""The KV cache of a batch of rows that grow, are taken back, forked and dropped one by one.

All rows share the columns of one cache. A row that has fewer tokens than another, or that had
some taken back, has *gaps*: columns masked out for it alone. With full attention and explicit
positions, a masked column does not exist, so a gap is an exact crop at no cost. Models whose
attention cannot skip columns exactly (sliding windows that have slid, recurrent states, position
by column) never get gaps: their rows are prefilled again instead.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from transformers.cache_utils import DynamicCache, DynamicSlidingWindowLayer

from alignbeam.models.growing import GrowingLayer

if TYPE_CHECKING:
    from alignbeam.models.probe import Probe
    from alignbeam.models.role import Role


def pad_left(
    sequences: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences as one block [R, W] int64, and its mask [R, W] int64 (1 = a real token)."""
    width = max(len(tokens) for tokens in sequences)
    padded = [[pad_id] * (width - len(tokens)) + list(tokens) for tokens in sequences]
    counts = torch.tensor([len(tokens) for tokens in sequences], device=device)
    real = torch.arange(width, device=device)[None] >= width - counts[:, None]
    return torch.tensor(padded, device=device), real.long()


def _gaps_are_exact(cache: DynamicCache, columns: int) -> bool:
    """Whether masking a column of this cache equals the column never having been there."""
    for layer in cache.layers:
        if type(layer) is GrowingLayer:
            continue
        # Until the window slides, a sliding layer is a full one.
        if type(layer) is DynamicSlidingWindowLayer and columns <= layer.sliding_window:
            continue
        return False
    return True


def _widen(block: torch.Tensor, columns: int) -> torch.Tensor:
    """Bring a mask [R, C] to ``columns`` columns: zeros on its left, or nothing of it for 0."""
    if columns == 0:
        return block[:, :0]
    return torch.nn.functional.pad(block, (columns - block.shape[1], 0))


def _join_caches(
    upper: DynamicCache | None, lower: DynamicCache | None, columns: int
) -> DynamicCache | None:
    """Both caches as one with ``columns`` columns, in ``upper``; None where that is not exact."""
    if upper is None or lower is None or len(upper.layers) != len(lower.layers):
        return None
    if not (_gaps_are_exact(upper, columns) and _gaps_are_exact(lower, columns)):
        return None
    for one, two in zip(upper.layers, lower.layers, strict=True):
        if not (one.is_initialized and two.is_initialized):
            continue  # layers that share another's keys hold none of their own
        one.keys = torch.cat([_pad_columns(one.keys, columns), _pad_columns(two.keys, columns)])
        one.values = torch.cat(
            [_pad_columns(one.values, columns), _pad_columns(two.values, columns)]
        )
        if isinstance(one, DynamicSlidingWindowLayer):
            one.cumulative_length = columns
    return upper


def _pad_columns(states: torch.Tensor, columns: int) -> torch.Tensor:
    """Keys or values [R, heads, C, size] with zero columns on the left, ``columns`` in all."""
    return torch.nn.functional.pad(states, (0, 0, columns - states.shape[2], 0))


def _has_recurrent_state(cache: DynamicCache) -> bool:
    known = (GrowingLayer, DynamicSlidingWindowLayer)
    return any(type(layer) not in known for layer in cache.layers)


class Rows:
    """R token sequences of one model, and the logits that follow each.

    Attributes
    ----------
    ids : list of list of int
        Each row's tokens, prompt included.
    logits : torch.Tensor [R, width]
        Logits after each row's last token, as the model gives them (its dtype).
    """

    def __init__(self, model: Role | Probe, prompts: Sequence[Sequence[int]]) -> None:
        self._model = model
        self.ids: list[list[int]] = [[] for _ in prompts]
        self.logits = torch.empty(0)
        self._cache: DynamicCache | None = None
        # [R, columns], 1 where a column holds a token of the row.
        self._mask = torch.zeros(len(prompts), 0, dtype=torch.long, device=model.device)
        self.extend([list(p) for p in prompts])

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.ids)

    def select(self, indices: Sequence[int]) -> None:
        """Keep (and repeat) rows: row i becomes the old row ``indices[i]``. In place."""
        if list(indices) == list(range(len(self.ids))):
            return
        index = torch.tensor(list(indices), dtype=torch.long, device=self._mask.device)
        if self._cache is not None:
            self._cache.reorder_cache(index)
        self._mask = self._mask.index_select(0, index)
        self.logits = self.logits.index_select(0, index.to(self.logits.device))
        self.ids = [list(self.ids[i]) for i in indices]

    def fork(self) -> Rows:
        """Return the same rows once more: what becomes of either changes nothing of the other."""
        forked = copy.copy(self)
        if self._cache is not None:  # its layers change nothing that was given
            forked._cache = copy.copy(self._cache)
            forked._cache.layers = [copy.copy(layer) for layer in self._cache.layers]
        forked.ids = [list(ids) for ids in self.ids]
        return forked

    def join(self, other: Rows) -> None:
        """Put another batch of this model's rows below these; ``other`` is used up.

        The narrower cache is padded with masked columns on its left, which is what a common
        prefill of both would have done. Caches that cannot take such columns (a window that has
        slid) are let go, and all rows are prefilled again when they next grow.
        """
        self._trim()
        other._trim()
        self.ids += other.ids
        self.logits = torch.cat([self.logits, other.logits])
        columns = max(self._mask.shape[1], other._mask.shape[1])
        joined = _join_caches(self._cache, other._cache, columns)
        if joined is None and not self._model.rows_alone:
            columns = 0
        self._cache = joined
        self._mask = torch.cat([_widen(self._mask, columns), _widen(other._mask, columns)])

    def _trim(self) -> None:
        """Cut the leading columns that no row holds any longer."""
        if self._cache is None or any(type(la) is not GrowingLayer for la in self._cache.layers):
            return
        held = self._mask.any(0).nonzero()
        lead = int(held[0]) if len(held) else 0
        if lead == 0:
            return
        self._mask = self._mask[:, lead:]
        for layer in self._cache.layers:
            if layer.is_initialized:
                layer.keys = layer.keys[:, :, lead:]
                layer.values = layer.values[:, :, lead:]

    def replace_suffixes(
        self, starts: Sequence[int], suffixes: Sequence[Sequence[int] | None]
    ) -> torch.Tensor:
        """Make row i hold ``ids[i][:starts[i]] + suffixes[i]``; None leaves a row as it is.

        Only what follows the longest common prefix is fed; the rest is taken back.

        Returns
        -------
        torch.Tensor [R, width]
            ``logits``.
        """
        drops = [0] * len(self.ids)
        news: list[list[int]] = [[] for _ in self.ids]
        for i, suffix in enumerate(suffixes):
            if suffix is None:
                continue
            old, start = self.ids[i], starts[i]
            wanted = old[:start] + list(suffix)
            if wanted == old:
                continue
            same = start
            while same < min(len(old), len(wanted)) and old[same] == wanted[same]:
                same += 1
            if same == len(wanted):
                same -= 1  # its last token is fed again, for the logits after it
            drops[i], news[i] = len(old) - same, wanted[same:]
        return self.extend(news, drops)

    @torch.inference_mode()
    def extend(
        self, new: Sequence[Sequence[int]], drop: Sequence[int] | None = None
    ) -> torch.Tensor:
        """Take back the last ``drop[i]`` tokens of row i, then append ``new[i]``.

        Rows with nothing new keep their logits.

        Returns
        -------
        torch.Tensor [R, width]
            ``logits``.

        Raises
        ------
        ValueError
            A row gives tokens back and gets none, so nothing says what its logits are.
        """
        drops = list(drop) if drop is not None else [0] * len(self.ids)
        for i, (count, tokens) in enumerate(zip(drops, new, strict=True)):
            if count and not tokens:
                raise ValueError(f"extend: row {i} takes back {count} tokens and has nothing new")
        grown = [i for i, tokens in enumerate(new) if tokens]
        for i, tokens in enumerate(new):
            self.ids[i] = self.ids[i][: len(self.ids[i]) - drops[i]] + list(tokens)
        if not grown:
            return self.logits
        longest = max(len(ids) for ids in self.ids)
        if self._model.rows_alone or longest > self._model.cached_up_to:
            self._cache = None
            fresh = torch.cat([self._model.forward_alone(self.ids[i]) for i in grown])
        elif self._must_prefill(new, drops):
            fresh = self._prefill()[grown]
        else:
            self._take_back(drops)
            fresh = self._feed(new)[grown]
        if self.logits.shape[0] != len(self.ids):
            self.logits = fresh  # the first prefill grows every row
        elif len(grown) == len(self.ids):
            self.logits = fresh
        else:
            self.logits = self.logits.clone()
            self.logits[torch.tensor(grown, device=self.logits.device)] = fresh
        return self.logits

    def _must_prefill(self, new: Sequence[Sequence[int]], drops: Sequence[int]) -> bool:
        """Whether some row that grows would stand on a gap that this model does not skip."""
        if self._cache is None:
            return True
        width = max(len(tokens) for tokens in new)
        columns = self._mask.shape[1] + width
        if self._model.gaps_are_exact and _gaps_are_exact(self._cache, columns):
            return False
        if any(drops) or any(0 < len(tokens) < width for tokens in new):
            return True
        # transformers steps a recurrent state by one token; a longer block starts it anew.
        if width > 1 and _has_recurrent_state(self._cache):
            return True
        # Older gaps count too: a row may have idled while others grew, or a window have slid
        # since. What rows that do not grow stand on never matters: they keep their logits.
        held = self._mask[[i for i, tokens in enumerate(new) if tokens]]
        return bool(((held.cumsum(1) > 0) & (held == 0)).any())

    def _prefill(self) -> torch.Tensor:
        self._cache = self._model.new_cache()
        self._mask = self._mask[:, :0]
        return self._feed(self.ids)

    def _take_back(self, drops: Sequence[int]) -> None:
        if not any(drops):
            return
        # Counting each row's tokens from the right: the last drops[i] of them are masked out.
        from_right = self._mask.flip(1).cumsum(1).flip(1)
        limit = torch.tensor(list(drops), device=self._mask.device)[:, None]
        self._mask = self._mask * (from_right > limit)
        # Columns that no row holds any longer go for good, from the right end only.
        held = self._mask.any(0).nonzero()
        keep = int(held[-1]) + 1 if len(held) else 0
        surplus = self._mask.shape[1] - keep
        if surplus and self._cache is not None:
            self._cache.crop(-surplus)
            self._mask = self._mask[:, :keep]

    def _feed(self, new: Sequence[Sequence[int]]) -> torch.Tensor:
        """Feed a left-padded block; return the logits after its last column."""
        block, real = pad_left(new, self._model.pad_id, self._mask.device)
        # A row's own count of tokens, whatever the columns: padding stands at position 0.
        positions = (self._mask.sum(1, keepdim=True) + real.cumsum(1) - 1).clamp_min(0)
        self._mask = torch.cat([self._mask, real], 1)
        return self._model.forward(block, self._mask, positions, self._cache)
