"""One mixed step for a set of beams: which table, one call of the op per kind of setting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from alignbeam.config import BeamConfig
from alignbeam.ops import Flags, mix_topk
from alignbeam.vocab.bridge import Bridge, Fallback


@dataclass(frozen=True, slots=True)
class Choice:
    """What the op says of one row: ids best first (absent ones left out), and how it came."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    anchor_mass: float
    translated_mass: float
    target_mass: float
    empty_support: bool
    non_finite: bool

    def anchor_share(self, alpha: float) -> float:
        """Return the anchor's real share in the mix, 0..1 (algorithm.md, section 3)."""
        theirs = alpha * self.translated_mass
        ours = (1 - alpha) * self.target_mass
        return theirs / (theirs + ours) if theirs + ours > 0 else 0.0


class Mixer:
    """Calls ``mix_topk`` for rows with different settings; holds the tables on the device.

    Parameters
    ----------
    bridge : Bridge
    device : torch.device
        The target's.
    after_opening : torch.Tensor [Va] bool
        The anchor's columns that may follow its opening token: see ``AnchorRows.opening_logits``.
    """

    def __init__(
        self, bridge: Bridge, device: torch.device, *, after_opening: torch.Tensor
    ) -> None:
        self._bridge = bridge
        self._device = device
        self._after_opening = after_opening
        self._tables: dict[tuple[str, int], torch.Tensor] = {}

    def __call__(
        self,
        anchor_logits: torch.Tensor,
        target_logits: torch.Tensor,
        configs: Sequence[BeamConfig],
        *,
        opening: bool,
        top_k: int,
    ) -> list[Choice]:
        """Mix one row per entry of ``configs``.

        Parameters
        ----------
        anchor_logits : torch.Tensor [R, Va]
            In the first step [R, Va] or [R, 2 Va]: see ``AnchorRows.opening_logits``.
        target_logits : torch.Tensor [R, Vt]
        configs : sequence of BeamConfig
            One per row; rows that differ only in alpha go through the op together.
        opening : bool
            Whether this is the first step (``Bridge.opening_table``).
        top_k : int
            Ids wanted per row.
        """
        groups: dict[tuple[object, ...], list[int]] = {}
        for row, c in enumerate(configs):
            key = (c.fallback, c.mix, c.support, c.top_b, c.backend)
            groups.setdefault(key, []).append(row)
        choices: dict[int, Choice] = {}
        for rows in groups.values():
            shared = configs[rows[0]]
            halves = anchor_logits.shape[1] // self._bridge.anchor_width if opening else 0
            whole = len(rows) == len(configs)
            out = mix_topk(
                (anchor_logits if whole else anchor_logits[rows]).to(self._device),
                target_logits if whole else target_logits[rows],
                self._table(shared.fallback, halves),
                alpha=torch.tensor([configs[r].alpha for r in rows], device=self._device),
                top_b=min(shared.top_b, anchor_logits.shape[1]),
                top_k=top_k,
                mix=shared.mix,
                support=shared.support,
                backend=shared.backend,
            )
            columns = zip(
                rows,
                out.token_ids.tolist(),
                out.logprobs.tolist(),
                out.anchor_mass.tolist(),
                out.translated_mass.tolist(),
                out.target_mass.tolist(),
                out.flags.tolist(),
                strict=True,
            )
            for row, ids, logprobs, anchor, translated, target, flags in columns:
                found = sum(i >= 0 for i in ids)  # absent ids (-1) come last
                choices[row] = Choice(
                    token_ids=tuple(ids[:found]),
                    logprobs=tuple(logprobs[:found]),
                    anchor_mass=anchor,
                    translated_mass=translated,
                    target_mass=target,
                    empty_support=bool(flags & Flags.EMPTY_SUPPORT),
                    non_finite=bool(flags & Flags.NON_FINITE),
                )
        return [choices[row] for row in range(len(configs))]

    def _table(self, fallback: Fallback, halves: int) -> torch.Tensor:
        """Return the table of an ordinary step (``halves`` 0), or of a first one."""
        # Kept, not only for speed: the op checks a table once, and knows it again by its storage.
        key = (fallback, halves)
        if key not in self._tables:
            bridge = self._bridge.with_fallback(fallback)
            table = bridge.table
            if halves > 0:
                table = bridge.opening_table
            if halves > 1:
                table = torch.cat([table, torch.where(self._after_opening, table, -1)])
            self._tables[key] = table.to(self._device)
        return self._tables[key]
