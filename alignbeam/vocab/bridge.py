"""Anchor id -> target id: the table that lets two vocabularies be mixed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from typing import Literal, get_args

import torch

from alignbeam.errors import BridgeError
from alignbeam.vocab import bridge_cache, matching
from alignbeam.vocab.matching import Kind, Tables
from alignbeam.vocab.tokenizer_file import describe
from alignbeam.vocab.vocabulary import Vocabulary

__all__ = ["Bridge", "Coverage", "Fallback", "Kind", "KindCoverage", "Method"]

Fallback = Literal["drop", "first", "exact"]
Method = Literal["bytes", "text"]

_USED: dict[str, frozenset[Kind]] = {
    "exact": frozenset({Kind.EXACT, Kind.END}),
    "drop": frozenset({Kind.EXACT, Kind.END, Kind.SINGLE}),
    "first": frozenset({Kind.EXACT, Kind.END, Kind.SINGLE, Kind.MULTI}),
}


@dataclass(frozen=True)
class KindCoverage:
    """How much of the anchor falls to one kind.

    Parameters
    ----------
    count : int
        Anchor logit columns of this kind.
    share : float
        ``count / Va``, 0..1.
    mass : float or None
        Their probability, 0..1, where a probability vector was given.
    """

    count: int
    share: float
    mass: float | None


@dataclass(frozen=True)
class Coverage:
    """How much of the anchor translates.

    Parameters
    ----------
    kinds : dict of Kind to KindCoverage
        All five kinds; counts add up to Va, masses to the sum of the probabilities.
    translated : KindCoverage
        The columns that the bridge's fallback sends somewhere.
    """

    kinds: dict[Kind, KindCoverage]
    translated: KindCoverage


@dataclass(frozen=True, eq=False)
class Bridge:
    """A precomputed map from anchor logit columns to target ids. Made by `build`.

    Parameters
    ----------
    matches, opening_matches : Tensor int32 [Va]
        The target id of each anchor column under the widest fallback, -1 for none; for ordinary
        steps and for the first mixed step.
    kinds, opening_kinds : Tensor uint8 [Va]
        A `Kind` per column, for the same two steps.
    fallback : {"drop", "first", "exact"}
        Which kinds are used.
    anchor_width, target_width : int
        Logit columns of the two heads, Va and Vt.
    key : str
        SHA-256 (hex) over all that the tables depend on: both tokenizers, widths, end ids,
        openings and method. The name of its file in the cache.

    Source
    ------
    algorithm.md section 2; the paper's LBM-Drop, LBM-First and LBM-Exact.
    """

    matches: torch.Tensor
    kinds: torch.Tensor
    opening_matches: torch.Tensor
    opening_kinds: torch.Tensor
    fallback: Fallback
    anchor_width: int
    target_width: int
    key: str

    @classmethod
    def build(
        cls,
        anchor: Vocabulary,
        target: Vocabulary,
        fallback: Fallback = "drop",
        method: Method = "bytes",
        cache_dir: str | PathLike[str] | Literal[False] | None = None,
    ) -> Bridge:
        """Build the bridge, or load it from the cache.

        Parameters
        ----------
        anchor, target : Vocabulary
            All ends of the anchor's go to the target's first.
        fallback : {"drop", "first", "exact"}
            ``"exact"`` translates EXACT and END; ``"drop"`` also SINGLE; ``"first"`` also MULTI.
        method : {"bytes", "text"}
            ``"text"`` is the paper's literal decode-one, encode-one round trip, with its false
            matches; for comparison only. It knows no openings.
        cache_dir : path, False or None
            None: ``$ALIGNBEAM_CACHE/bridges``, else ``~/.cache/alignbeam/bridges``. False: none.

        Raises
        ------
        TokenizerError
            A tokenizer cannot be served exactly; see `Vocabulary.token_bytes`.
        BridgeError
            The anchor can end but the target has no end token, an unknown fallback or method.
        """
        _one_of("fallback", fallback, get_args(Fallback))
        _one_of("method", method, get_args(Method))
        if anchor.end_ids and not target.end_ids:
            raise BridgeError(
                f"the {target.name}'s tokenizer {describe(target.tokenizer)} names no end token, "
                "so an end of the anchor's has nowhere to go; give its end_ids"
            )
        key = bridge_cache.key(anchor, target, method)
        folder = bridge_cache.folder(cache_dir)
        widths = (anchor.width, target.width)
        tables = bridge_cache.load(folder, key, widths) if folder else None
        if tables is None:
            match = matching.by_bytes if method == "bytes" else matching.by_text
            tables = match(anchor, target)
            if folder:
                bridge_cache.save(folder, key, tables)
        return cls(*tables, fallback, *widths, key)

    def with_fallback(self, fallback: Fallback) -> Bridge:
        """Return the same bridge under another fallback; the matches are shared, not copied.

        Raises
        ------
        BridgeError
            Unknown fallback.
        """
        _one_of("fallback", fallback, get_args(Fallback))
        return replace(self, fallback=fallback)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over ``key`` and the tables in use, whatever their file says of itself.

        Tables that were tampered with have another one than the same pair's, built anew.
        """
        tables = Tables(self.matches, self.kinds, self.opening_matches, self.opening_kinds)
        return bridge_cache.checksum(tables, self.key)

    @cached_property
    def table(self) -> torch.Tensor:
        """Target id per anchor column, int32 [Va], -1 where it does not translate."""
        return self._masked(self.matches, self.kinds)

    @cached_property
    def opening_table(self) -> torch.Tensor:
        """`table` for the first mixed step: openings exchanged, END entries -1. int32 [Va]."""
        return self._masked(self.opening_matches, self.opening_kinds)

    def _masked(self, matches: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        used = torch.isin(kinds, torch.tensor(sorted(_USED[self.fallback]), dtype=torch.uint8))
        return torch.where(used, matches, torch.full_like(matches, -1))

    def coverage(self, probs: torch.Tensor | None = None) -> Coverage:
        """Tell, per kind, how many anchor columns there are and how much mass they hold.

        Parameters
        ----------
        probs : Tensor float [Va], optional
            The anchor's next-token probabilities, padded columns included.

        Raises
        ------
        BridgeError
            `probs` has another shape, or a value that is negative or not finite.
        """
        weights = None if probs is None else self._checked_probs(probs)

        def cover(columns: torch.Tensor) -> KindCoverage:
            count = int(columns.sum())
            mass = None if weights is None else float(weights[columns].sum())
            return KindCoverage(count, count / max(self.anchor_width, 1), mass)

        by_kind = {kind: cover(self.kinds == kind) for kind in Kind}
        return Coverage(by_kind, cover(self.table >= 0))

    def _checked_probs(self, probs: torch.Tensor) -> torch.Tensor:
        if tuple(probs.shape) != (self.anchor_width,):
            raise BridgeError(
                f"coverage: probs must have shape ({self.anchor_width},), got {tuple(probs.shape)}"
            )
        weights = probs.detach().to("cpu", torch.float64)
        if not bool(torch.isfinite(weights).all() and (weights >= 0).all()):
            raise BridgeError("coverage: probs must be finite and not negative")
        return weights


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise BridgeError(f"Bridge: {name} must be one of {', '.join(allowed)}, got {value!r}")
