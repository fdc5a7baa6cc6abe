"""Which target token stands for which anchor token, and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from functools import cached_property
from typing import NamedTuple

import torch

from alignbeam.vocab.pieces import ByteTrie, Pieces
from alignbeam.vocab.plain_text import PlainEncoder
from alignbeam.vocab.retokenize import Retokenizer, UnspellableBytes
from alignbeam.vocab.tokenizer_file import backend_of
from alignbeam.vocab.vocabulary import Vocabulary


class Kind(IntEnum):
    """Why an anchor id translates as it does."""

    EXACT = 0
    """A target token has the same bytes."""
    END = 1
    """An end of the anchor's; goes to the target's end of turn."""
    SINGLE = 2
    """The target's encoder makes one token with other bytes of it."""
    MULTI = 3
    """The target's encoder needs several; the first of them."""
    NONE = 4
    """Control tokens, unused ids, padded columns, bytes that the target cannot spell."""
    PREFIX = 5
    """Under ``fallback="prefix"`` only: the longest target token that its bytes begin with."""


class Tables(NamedTuple):
    """What a bridge is made of; see `Bridge`.

    Matches int32 [Va], kinds uint8 [Va], starts int32 [Va], pieces int32 of any length. Without
    pieces (a match by text has none) starts are empty too.
    """

    matches: torch.Tensor
    kinds: torch.Tensor
    opening_matches: torch.Tensor
    opening_kinds: torch.Tensor
    pieces: torch.Tensor
    starts: torch.Tensor
    opening_starts: torch.Tensor


# Target ids (-1 for none) int32 [Va] and kinds uint8 [Va].
Columns = tuple[torch.Tensor, torch.Tensor]
Match = tuple[int, Kind]
_NOTHING: Match = (-1, Kind.NONE)


def by_bytes(anchor: Vocabulary, target: Vocabulary) -> Tables:
    """Match by bytes; algorithm.md section 2."""
    finder = _Finder(target)
    texts = opening_texts = anchor.text_bytes
    if anchor.opening or target.opening:
        rests = [piece and piece.removeprefix(anchor.opening) for piece in texts]
        opening_texts = [rest and target.opening + rest for rest in rests]
    usual = opening = finder.find(texts)
    pieces = Pieces(finder.trie)
    starts = opening_starts = pieces.add(texts)
    if opening_texts is not texts:
        opening = finder.opened(finder.find(opening_texts))
        opening_starts = pieces.add(opening_texts)
    if anchor.end_ids:
        # In the opening they have no bytes, as everywhere, and so no pieces.
        starts = starts.clone()
        starts[list(anchor.end_ids)] = pieces.add_one(target.end_ids[0])
    return _tables(anchor, target, usual, opening, (pieces.tensor(), starts, opening_starts))


def by_text(anchor: Vocabulary, target: Vocabulary) -> Tables:
    """Match by the paper's literal round trip: decode one id, encode the text that comes out.

    Kept to be compared with: a piece of a character decodes to U+FFFD, and SentencePiece
    tokenizers add or drop a leading space. SINGLE are its false matches.
    """
    ids = [i for i, piece in enumerate(anchor.token_bytes) if piece is not None]
    backend = backend_of(anchor.tokenizer)
    texts = backend.decode_batch([[i] for i in ids], skip_special_tokens=False)
    rows = target.tokenizer(texts, add_special_tokens=False)["input_ids"]
    matches = [-1] * anchor.width
    kinds = [int(Kind.NONE)] * len(matches)
    for i, row in zip(ids, rows, strict=True):
        if len(row) == 1:
            same = target.token_bytes[row[0]] == anchor.token_bytes[i]
            matches[i], kinds[i] = row[0], Kind.EXACT if same else Kind.SINGLE
        elif row:
            matches[i], kinds[i] = row[0], Kind.MULTI
    found = _columns(matches, kinds)
    none = torch.empty(0, dtype=torch.int32)
    return _tables(anchor, target, found, found, (none, none, none))


class _Finder:
    """Finds the match of any bytes in one target vocabulary."""

    def __init__(self, target: Vocabulary) -> None:
        self._target = target
        self._encoder = PlainEncoder(target.tokenizer)
        # Text never becomes an end: only END entries lead there.
        self._bytes = target.text_bytes
        self._by_bytes = self._index()

    @cached_property
    def trie(self) -> ByteTrie:
        """The same index, by what bytes begin with."""
        return ByteTrie(self._by_bytes)

    def _index(self) -> dict[bytes, int]:
        index: dict[bytes, int] = {}
        shared: dict[bytes, set[int]] = {}
        for token_id, piece in enumerate(self._bytes):
            if piece and index.setdefault(piece, token_id) != token_id:
                shared.setdefault(piece, {index[piece]}).add(token_id)
        texts = {piece: text for piece in shared if (text := _text(piece)) is not None}
        rows = self._encoder.encode_batch(list(texts.values()))
        for piece, row in zip(texts, rows, strict=True):
            if len(row) == 1 and row[0] in shared[piece]:
                index[piece] = row[0]
        return index

    def find(self, pieces: Sequence[bytes | None]) -> Columns:
        """Return a match per entry; None and empty bytes match nothing."""
        others = self._encoded({p for p in pieces if p and p not in self._by_bytes})
        ids = [-1] * len(pieces)
        kinds = [int(Kind.NONE)] * len(pieces)
        for column, piece in enumerate(pieces):
            if not piece:
                continue
            exact = self._by_bytes.get(piece)
            if exact is not None:
                ids[column], kinds[column] = exact, Kind.EXACT
            else:
                ids[column], kinds[column] = others[piece]
        return _columns(ids, kinds)

    def opened(self, found: Columns) -> Columns:
        """Make EXACT what goes to the token for exactly the target's opening.

        That token says nothing of the answer yet: whatever is spelled with it first is lost in no
        way by it, and is asked for again after it.
        """
        ids, kinds = found
        token_id = self._by_bytes.get(self._target.opening, -1)
        lossless = (ids == token_id) & (ids >= 0) & (kinds == int(Kind.MULTI))
        return ids, torch.where(lossless, int(Kind.EXACT), kinds).to(kinds.dtype)

    def _encoded(self, pieces: Iterable[bytes]) -> dict[bytes, Match]:
        texts: dict[bytes, str] = {}
        broken: list[bytes] = []
        for piece in pieces:
            text = _text(piece)
            if text is None:
                broken.append(piece)
            else:
                texts[piece] = text
        rows = self._encoder.encode_batch(list(texts.values()))
        matches = {
            piece: self._match(row) if self._keeps(text, row) else _NOTHING
            for (piece, text), row in zip(texts.items(), rows, strict=True)
        }
        if broken:
            speller = Retokenizer(self._target)
            matches.update((piece, self._spelled(speller, piece)) for piece in broken)
        return matches

    def _keeps(self, text: str, row: list[int]) -> bool:
        """Whether the ids spell the whole text, as normalised.

        BPE without an unknown token drops a byte that it has no token for (falcon: 0x03) in
        silence; what is left of the text is not its translation.
        """
        joined = b"".join(self._bytes[i] or b"" for i in row)
        if joined == text.encode():
            return True
        normalized = self._encoder.normalize(text)
        return joined in (normalized.encode(), normalized.replace("▁", " ").encode())

    def _match(self, row: list[int]) -> Match:
        if not row or any(self._bytes[i] is None for i in row):  # unknown tokens among them
            return _NOTHING
        return row[0], Kind.SINGLE if len(row) == 1 else Kind.MULTI

    def _spelled(self, speller: Retokenizer, piece: bytes) -> Match:
        try:
            return self._match(speller.encode(piece))
        except UnspellableBytes:
            return _NOTHING


def _text(piece: bytes) -> str | None:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return None


def _columns(ids: list[int], kinds: list[int]) -> Columns:
    return torch.tensor(ids, dtype=torch.int32), torch.tensor(kinds, dtype=torch.uint8)


def _tables(
    anchor: Vocabulary,
    target: Vocabulary,
    usual: Columns,
    opening: Columns,
    pieces: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> Tables:
    matches, kinds = (column.clone() for column in usual)
    opening_matches, opening_kinds = (column.clone() for column in opening)
    ends = list(anchor.end_ids)
    if ends:
        matches[ends] = target.end_ids[0]
        kinds[ends] = int(Kind.END)
        # An answer does not begin with its end (algorithm.md section 4, Prime).
        opening_matches[ends] = -1
        opening_kinds[ends] = int(Kind.NONE)
    return Tables(matches, kinds, opening_matches, opening_kinds, *pieces)
