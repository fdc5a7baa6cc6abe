"""One role: a causal language model with its tokenizer, prompt format and exact bytes."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Final, Self

import torch
from transformers.cache_utils import DynamicCache

from alignbeam.config import RoleConfig
from alignbeam.errors import ModelLoadError
from alignbeam.models.bare import BareRole
from alignbeam.models.growing import growing_cache
from alignbeam.models.loading import (
    load_tokenizer,
    load_weights,
    template_text,
    tokenizer_source,
    window_of,
)
from alignbeam.models.probe import NO_LIMIT, holds_cached_rows
from alignbeam.models.rows import Rows, pad_left
from alignbeam.models.shared import shared_logits

_log = logging.getLogger(__name__)

#: Rotary scalings whose angles depend on how long the longest row of a forward is.
_ROPE_BY_LENGTH: Final = ("longrope", "dynamic")


class Role(BareRole):
    """A model in this process that plays target, anchor or judge.

    Parameters
    ----------
    name : str
        See ``BareRole``.
    model : PreTrainedModel
        Any causal LM of transformers, in evaluation mode.
    tokenizer : PreTrainedTokenizerFast
        Its tokenizer, with a declared decoder.
    system_prompt, chat_template, thinking, fold_turns
        See ``RoleConfig``.

    Attributes
    ----------
    cached_up_to : int
        Tokens up to which rows may share a forward and a cache. Beyond, a rotary scaling by
        length gives earlier tokens other angles, so every row is run by itself, uncached.

    Raises
    ------
    TokenizerError
        See ``BareRole``.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        tokenizer: Any,
        *,
        system_prompt: str | None = None,
        chat_template: str | None = None,
        thinking: bool = False,
        fold_turns: bool | None = None,
    ) -> None:
        self.model = model.eval()
        text_config = model.config.get_text_config()
        self.cached_up_to = _cached_up_to(text_config)
        head = model.get_output_embeddings()
        super().__init__(
            name,
            tokenizer,
            width=text_config.vocab_size if head is None else head.weight.shape[0],
            window=window_of(text_config),
            generation_config=getattr(model, "generation_config", None),
            system_prompt=system_prompt,
            chat_template=chat_template,
            thinking=thinking,
            fold_turns=fold_turns,
        )
        accepted = inspect.signature(model.forward).parameters
        takes_rest = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
        self._takes_positions = "position_ids" in accepted
        self._takes_keep = "logits_to_keep" in accepted
        self._takes_mask = "attention_mask" in accepted or takes_rest

    @classmethod
    def from_config(cls, name: str, config: RoleConfig) -> Self:
        """Load a role; ``config.model`` must be set.

        Raises
        ------
        ModelLoadError
            The model, tokenizer or adapter cannot be loaded; says which and why.
        TokenizerError
            See the class.
        """
        if config.model is None:
            raise ModelLoadError(f"no model is named for the {name}; set {name}.model")
        source, revision = tokenizer_source(config, name)
        tokenizer = load_tokenizer(source, name=name, revision=revision)
        model = load_weights(name, config)
        return cls(
            name,
            model,
            tokenizer,
            system_prompt=config.system_prompt,
            chat_template=template_text(config.chat_template),
            thinking=config.thinking,
            fold_turns=config.fold_turns,
        )

    @property
    def device(self) -> torch.device:
        """Where inputs go and logits come from."""
        device: torch.device = self.model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the weights."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    @property
    def n_params(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def pad_id(self) -> int:
        """An id to fill masked places with; which one cannot matter."""
        return self.end_ids[0]

    def rows(self, prompts: Sequence[Sequence[int]], salts: Sequence[str] = ()) -> Rows:
        """Prefill prompts into a new batch of rows.

        ``salts`` keep apart whose prefixes an engine holds; here each row's cache is its own.
        """
        return Rows(self, prompts)

    def next_token_logits(self, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
        """Logits after the last token of each sequence; a common beginning is computed once.

        Returns
        -------
        torch.Tensor [R, width] float32
        """
        if self.rows_alone or max(map(len, sequences)) > self.cached_up_to:
            return torch.cat([self.forward_alone(ids) for ids in sequences]).float()
        if len(sequences) > 1 and self.gaps_are_exact:
            shared = shared_logits(self, sequences)
            if shared is not None:
                return shared.float()
        block, mask = pad_left(sequences, self.pad_id, self.device)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        return self.forward(block, mask, positions, None).float()

    def new_cache(self) -> DynamicCache:
        """Return an empty KV cache for this model."""
        return growing_cache(self.model.config)

    @torch.inference_mode()
    def forward(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor,
        cache: DynamicCache | None,
    ) -> torch.Tensor:
        """One forward; logits of the last column.

        Parameters
        ----------
        ids, positions : torch.Tensor [R, W] int64
            New tokens and their positions.
        mask : torch.Tensor [R, columns + W] int64
            1 where a column, cached or new, holds a token of the row.
        cache : DynamicCache or None
            Extended in place.

        Returns
        -------
        torch.Tensor [R, width]
        """
        keywords: dict[str, Any] = {"input_ids": ids, "use_cache": cache is not None}
        if cache is not None:
            keywords["past_key_values"] = cache
        if self._takes_mask:
            keywords["attention_mask"] = mask
        if self._takes_positions:
            keywords["position_ids"] = positions
        if self._takes_keep:
            keywords["logits_to_keep"] = 1
            if ids.shape[1] > 1:
                # Of several columns, 1 keeps a view of the states, whose head is much slower.
                last = torch.tensor([ids.shape[1] - 1], device=self.device)
                keywords["logits_to_keep"] = last
        logits: torch.Tensor = self.model(**keywords).logits
        return logits[:, -1, :]

    def forward_alone(self, ids: Sequence[int]) -> torch.Tensor:
        """Logits [1, width] after one sequence: no cache, no padding. What the rest must equal."""
        row = torch.tensor([list(ids)], device=self.device)
        positions = torch.arange(row.shape[1], device=self.device)[None]
        return self.forward(row, torch.ones_like(row), positions, None)

    @cached_property
    def gaps_are_exact(self) -> bool:
        """Whether this model takes masked columns for absent ones (probed once, by running it)."""
        # GPT-Neo's local windows count columns, and are longer than the probe.
        if "local" in getattr(self.model.config, "attention_layers", ()):
            return False
        return holds_cached_rows(self, gaps=True)

    @cached_property
    def rows_alone(self) -> bool:
        """Whether each row must be run by itself, uncached (probed once, by running it).

        So it is where even left padding and caching change this model's logits.
        """
        alone = not holds_cached_rows(self, gaps=False)
        if alone:
            _log.warning(
                "%s: padding or caching changes this model's logits; every row is run by itself, "
                "uncached. Correct, and slow.",
                self.name,
            )
        return alone


def _cached_up_to(text_config: Any) -> int:
    scaling = getattr(text_config, "rope_parameters", None) or {}
    # One for all layers, or one for each kind of layer.
    each = [scaling, *(part for part in scaling.values() if isinstance(part, dict))]
    limits = [
        part.get("original_max_position_embeddings") or text_config.max_position_embeddings
        for part in each
        if part.get("rope_type") in _ROPE_BY_LENGTH
    ]
    return min(map(int, limits), default=NO_LIMIT)
