"""One mixed step for a set of beams: which table, and by which road.

Where both models are in this process, the op mixes their logits, one call per kind of setting;
where either is on an engine, ``decoding.numbers`` mixes what that engine tells.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import torch

from alignbeam.config import BeamConfig
from alignbeam.decoding.choice import NON_FINITE, Choice, compensated
from alignbeam.decoding.next_tokens import NextTokens
from alignbeam.decoding.numbers import mix, translate
from alignbeam.decoding.remainders import Followed
from alignbeam.ops import Flags, mix_topk
from alignbeam.vocab.bridge import Bridge, Fallback

#: What the anchor's columns are: its own; in the first step (``Bridge.opening_table``) its own, or
#: its own twice, where it may say an opening token; or those of ``Followed.mixed``.
Layout = Literal["step", "opening", "opening-twice", "remainders"]


class Mixer:
    """Mixes rows with different settings; holds the tables on the device.

    Parameters
    ----------
    bridge : Bridge
    device : torch.device
        The target's.
    after_opening : torch.Tensor [Va] bool
        The anchor's columns that may follow its opening token: see ``AnchorSteer``.
    """

    def __init__(
        self, bridge: Bridge, device: torch.device, *, after_opening: torch.Tensor
    ) -> None:
        self._bridge = bridge
        self._device = device
        self._after_opening = after_opening
        self._tables: dict[tuple[str, Layout], torch.Tensor] = {}
        self._lists: dict[tuple[str, Layout], list[int]] = {}

    @functools.cached_property
    def followed(self) -> Followed:
        """What becomes of anchor tokens under ``fallback="prefix"``."""
        return Followed(self._bridge.with_fallback("prefix"), self._after_opening)

    def __call__(
        self,
        anchor: NextTokens,
        target: NextTokens,
        configs: Sequence[BeamConfig],
        *,
        layout: Layout,
        top_k: int,
    ) -> list[Choice]:
        """Mix one row per entry of ``configs``.

        Parameters
        ----------
        anchor, target : NextTokens
        configs : sequence of BeamConfig
            One per row; rows that differ only in alpha go through the op together.
        layout : Layout
            What the anchor's columns are.
        top_k : int
            Ids wanted per row.

        Raises
        ------
        ConfigError
            ``top_b`` is more than an engine gives.
        """
        if anchor.local and target.local:
            return self._by_logits(anchor.logits, target.logits, configs, layout, top_k)
        return self._by_numbers(anchor, target, configs, layout, top_k)

    def _by_numbers(
        self,
        anchor: NextTokens,
        target: NextTokens,
        configs: Sequence[BeamConfig],
        layout: Layout,
        top_k: int,
    ) -> list[Choice]:
        best = anchor.top(max(c.top_b for c in configs))
        tops = [pairs[: c.top_b] for pairs, c in zip(best, configs, strict=True)]
        tables = [self.table(c.fallback, layout) for c in configs]
        named = target.named(
            [list(translate(top, table)) for top, table in zip(tops, tables, strict=True)]
        )
        choices = []
        for row, config in enumerate(configs):
            if not (anchor.finite[row] and target.finite[row]):
                choices.append(NON_FINITE)
                continue
            target_best = functools.partial(target.best_pairs, row)
            choices.append(mix(tops[row], tables[row], named[row], target_best, config, top_k))
        return choices

    def _by_logits(
        self,
        anchor_logits: torch.Tensor,
        target_logits: torch.Tensor,
        configs: Sequence[BeamConfig],
        layout: Layout,
        top_k: int,
    ) -> list[Choice]:
        groups: dict[tuple[object, ...], list[int]] = {}
        for row, c in enumerate(configs):
            key = (c.fallback, c.mix, c.support, c.top_b, c.backend, c.compensate)
            groups.setdefault(key, []).append(row)
        choices: dict[int, Choice] = {}
        for rows in groups.values():
            shared = configs[rows[0]]
            whole = len(rows) == len(configs)
            op = functools.partial(
                mix_topk,
                (anchor_logits if whole else anchor_logits[rows]).to(self._device),
                target_logits if whole else target_logits[rows],
                self._table(shared.fallback, layout),
                top_b=min(shared.top_b, anchor_logits.shape[1]),
                top_k=top_k,
                mix=shared.mix,
                support=shared.support,
                backend=shared.backend,
            )
            alphas = [configs[row].alpha for row in rows]
            out = op(alpha=torch.tensor(alphas, dtype=torch.float32, device=self._device))
            if shared.compensate and shared.mix == "linear":  # the masses are those of any alpha
                masses = zip(out.translated_mass.tolist(), out.target_mass.tolist(), strict=True)
                alphas = [compensated(a, *of) for a, of in zip(alphas, masses, strict=True)]
                out = op(alpha=torch.tensor(alphas, dtype=torch.float32, device=self._device))
            columns = zip(
                rows,
                alphas,
                out.token_ids.tolist(),
                out.logprobs.tolist(),
                out.anchor_mass.tolist(),
                out.translated_mass.tolist(),
                out.target_mass.tolist(),
                out.flags.tolist(),
                strict=True,
            )
            for row, alpha, ids, logprobs, anchor, translated, target, flags in columns:
                found = sum(i >= 0 for i in ids)  # absent ids (-1) come last
                choices[row] = Choice(
                    token_ids=tuple(ids[:found]),
                    logprobs=tuple(logprobs[:found]),
                    anchor_mass=anchor,
                    translated_mass=translated,
                    target_mass=target,
                    alpha=alpha,
                    empty_support=bool(flags & Flags.EMPTY_SUPPORT),
                    non_finite=bool(flags & Flags.NON_FINITE),
                )
        return [choices[row] for row in range(len(configs))]

    def table(self, fallback: Fallback, layout: Layout) -> list[int]:
        """Return the target's id of each of the anchor's columns, -1 for none."""
        key = (fallback, layout)
        if key not in self._lists:
            self._lists[key] = self._table(fallback, layout).tolist()
        return self._lists[key]

    def _table(self, fallback: Fallback, layout: Layout) -> torch.Tensor:
        """Return the table of a layout."""
        # Kept, not only for speed: the op checks a table once, and knows it again by its storage.
        key = (fallback, layout)
        if key not in self._tables:
            bridge = self._bridge.with_fallback(fallback)
            opening = layout in ("opening", "opening-twice")
            table = bridge.opening_table if opening else bridge.table
            if layout == "opening-twice":
                table = torch.cat([table, torch.where(self._after_opening, table, -1)])
            if layout == "remainders":
                table = self.followed.table(table)
            self._tables[key] = table.to(self._device)
        return self._tables[key]
