"""Anchor id -> target id: the table that lets two vocabularies be mixed."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from typing import Any, Literal, get_args

import torch

from alignbeam.errors import BridgeError
from alignbeam.vocab import bridge_cache, matching
from alignbeam.vocab.end_tokens import end_token_ids
from alignbeam.vocab.matching import Kind
from alignbeam.vocab.token_bytes import token_bytes
from alignbeam.vocab.tokenizer_file import added_tokens, backend_of, describe, tokenizer_fingerprint

__all__ = ["Bridge", "Coverage", "Fallback", "Kind", "KindCoverage", "Method"]

Fallback = Literal["drop", "first", "exact"]
Method = Literal["bytes", "text"]

# Sixty times the widest head known; a wider one is a typing error that would eat the memory.
_MAX_WIDTH = 2**24

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
    fingerprint : str
        SHA-256 (hex) over both tokenizers, widths, end ids, openings and method.

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
    fingerprint: str

    @classmethod
    def build(
        cls,
        anchor_tokenizer: Any,
        target_tokenizer: Any,
        anchor_width: int | None = None,
        target_width: int | None = None,
        fallback: Fallback = "drop",
        method: Method = "bytes",
        cache_dir: str | PathLike[str] | Literal[False] | None = None,
        *,
        anchor_end_ids: Sequence[int] | None = None,
        target_end_ids: Sequence[int] | None = None,
        anchor_opening: bytes = b"",
        target_opening: bytes = b"",
    ) -> Bridge:
        """Build the bridge, or load it from the cache.

        Parameters
        ----------
        anchor_tokenizer, target_tokenizer : PreTrainedTokenizerFast
        anchor_width, target_width : int, optional
            Logit columns of the two heads, padding included. Default: highest token id + 1.
        fallback : {"drop", "first", "exact"}
            ``"exact"`` translates EXACT and END; ``"drop"`` also SINGLE; ``"first"`` also MULTI.
        method : {"bytes", "text"}
            ``"text"`` is the paper's literal decode-one, encode-one round trip, with its false
            matches; for comparison only. It knows no openings.
        cache_dir : path, False or None
            None: ``$ALIGNBEAM_CACHE/bridges``, else ``~/.cache/alignbeam/bridges``. False: none.
        anchor_end_ids, target_end_ids : sequence of int, optional
            Ids that end an answer. All of the anchor's go to the target's first. Default:
            `end_token_ids` of the tokenizer (pass the roles' own, which know the generation
            config).
        anchor_opening, target_opening : bytes
            What each template puts between the generation prompt and the answer's first letter.

        Raises
        ------
        TokenizerError
            A tokenizer cannot be served exactly; see `token_bytes`.
        BridgeError
            A width is smaller than a token id, an end id lies outside its head, the anchor can
            end but the target has no end token, an unknown fallback or method.
        """
        _one_of("fallback", fallback, get_args(Fallback))
        _one_of("method", method, get_args(Method))
        anchor_ends = _end_ids("anchor", anchor_tokenizer, anchor_end_ids)
        target_ends = _end_ids("target", target_tokenizer, target_end_ids)
        if anchor_ends and not target_ends:
            raise BridgeError(
                f"target tokenizer {describe(target_tokenizer)}: no end token, so the anchor's "
                "wish to stop has nowhere to go; pass target_end_ids"
            )
        with ThreadPoolExecutor(2) as pool:  # SHA-256 lets go of the interpreter lock
            prints = list(pool.map(tokenizer_fingerprint, (anchor_tokenizer, target_tokenizer)))
        widths = (
            _width("anchor", anchor_tokenizer, anchor_width),
            _width("target", target_tokenizer, target_width),
        )
        _check_ends("anchor", anchor_ends, widths[0])
        _check_ends("target", target_ends, widths[1])
        key = bridge_cache.key(
            prints, widths, anchor_ends, target_ends, anchor_opening, target_opening, method
        )
        folder = bridge_cache.folder(cache_dir)
        tables = bridge_cache.load(folder, key, widths) if folder else None
        if tables is None:
            request = matching.Request(
                anchor_tokenizer,
                target_tokenizer,
                _fitted("anchor", anchor_tokenizer, widths[0]),
                _fitted("target", target_tokenizer, widths[1]),
                anchor_ends,
                target_ends,
            )
            if method == "bytes":
                tables = matching.by_bytes(request, anchor_opening, target_opening)
            else:
                tables = matching.by_text(request)
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


def _end_ids(role: str, tokenizer: Any, given: Sequence[int] | None) -> tuple[int, ...]:
    if given is None:
        return end_token_ids(tokenizer)
    try:
        return tuple(dict.fromkeys(operator.index(i) for i in given))
    except TypeError as error:
        raise BridgeError(f"Bridge: {role}_end_ids must be integers, got {given!r}") from error


def _width(role: str, tokenizer: Any, given: int | None) -> int:
    if given is None:
        # Cheap, as a cached bridge must load in milliseconds; `_fitted` finds the rare exception.
        return max([len(tokenizer), *(i + 1 for i in added_tokens(backend_of(tokenizer)))])
    try:
        width = operator.index(given)
    except TypeError as error:
        raise BridgeError(f"Bridge: {role}_width must be an integer, got {given!r}") from error
    if not 1 <= width <= _MAX_WIDTH:
        raise BridgeError(f"Bridge: {role}_width must be in 1..{_MAX_WIDTH}, got {width}")
    return width


def _check_ends(role: str, end_ids: Sequence[int], width: int) -> None:
    outside = [i for i in end_ids if not 0 <= i < width]
    if outside:
        raise BridgeError(
            f"Bridge: {role} end ids {outside} lie outside its head of {width} columns; "
            f"pass {role}_end_ids and {role}_width that fit the model"
        )


def _fitted(role: str, tokenizer: Any, width: int) -> list[bytes | None]:
    """Return the token bytes, one entry per logit column; refuse ids that the head lacks."""
    table = token_bytes(tokenizer)
    if len(table) > width:
        raise BridgeError(
            f"Bridge: {role} tokenizer {describe(tokenizer)} has ids up to {len(table) - 1}, "
            f"its head only {width} columns; tokenizer and model do not belong together"
        )
    return table + [None] * (width - len(table))
