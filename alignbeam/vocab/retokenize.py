"""A beam's bytes to the anchor's ids; common prefixes; unfinished UTF-8."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from alignbeam.errors import TokenizerError
from alignbeam.vocab.plain_text import PlainEncoder, plain_encode, plain_encode_batch
from alignbeam.vocab.tokenizer_file import describe
from alignbeam.vocab.vocabulary import Vocabulary

__all__ = [
    "Retokenizer",
    "UnspellableBytes",
    "longest_common_prefix",
    "plain_encode",
    "plain_encode_batch",
    "split_utf8",
]

# Spelling is for a few odd bytes; longer tokens would only widen its search.
_MAX_SPELLED_BYTES = 32


class UnspellableBytes(TokenizerError):
    """The tokenizer has no tokens for some bytes: its model cannot be asked about this text."""


def split_utf8(data: bytes) -> tuple[bytes, bytes]:
    r"""Split bytes into the longest complete part and the unfinished last character.

    Parameters
    ----------
    data : bytes

    Returns
    -------
    tuple of bytes
        ``(head, tail)`` with ``head + tail == data``. `tail` (0..3 bytes) is the beginning of one
        well-formed UTF-8 character that more bytes could finish. Bytes that no continuation can
        mend stay in `head`: waiting for the rest of them would be waiting for ever.

    Source
    ------
    algorithm.md section 4, Mix.
    """
    for size in range(1, min(3, len(data)) + 1):
        lead = data[-size]
        if lead & 0xC0 == 0x80:
            continue  # a continuation byte: the lead is further back
        tail = data[-size:]
        return (data[:-size], tail) if _can_be_finished(tail) else (data, b"")
    return data, b""


def _can_be_finished(tail: bytes) -> bool:
    try:
        tail.decode()
    except UnicodeDecodeError as error:
        # CPython reports a truncated character as running to the end of the data.
        return error.reason == "unexpected end of data"
    return False


def longest_common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many leading ids two sequences share."""
    shared = 0
    for left, right in zip(a, b, strict=False):
        if left != right:
            break
        shared += 1
    return shared


class Retokenizer:
    """Turn a beam's bytes into a vocabulary's ids, exactly.

    Parameters
    ----------
    vocabulary : Vocabulary
        The anchor's, as a rule.

    Raises
    ------
    TokenizerError
        See `Vocabulary.token_bytes` and `PlainEncoder`.

    Source
    ------
    algorithm.md section 4, Mix, and section 6, invariant 6.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._table = vocabulary.text_bytes
        self._encoder = PlainEncoder(vocabulary.tokenizer, exact=True)
        self._label = describe(vocabulary.tokenizer)
        self._spelling: dict[bytes, int] = {}
        for token_id, piece in enumerate(self._table):
            if piece and len(piece) <= _MAX_SPELLED_BYTES:
                self._spelling.setdefault(piece, token_id)

    def encode(self, data: bytes) -> list[int]:
        """Return ids whose bytes, joined, are `data`, as the anchor reads text in mid-text.

        The tokenizer's own segmentation wherever it keeps the bytes (normalisers that change text
        are left out). Characters that it cannot keep (``▁`` in a SentencePiece vocabulary, invalid
        UTF-8 that a model emitted) are spelled with the longest tokens that have their bytes,
        byte tokens in the end. Control-token text stays plain text; no BOS, no leading space.

        Raises
        ------
        UnspellableBytes
            No token has some byte of `data`: the anchor cannot be asked about this beam.
        """
        ids: list[int] = []
        for valid, run in _utf8_runs(data):
            ids += self._encode_text(run.decode()) if valid else self._spell(run)
        return ids

    def _encode_text(self, text: str) -> list[int]:
        ids = self._encoder.encode(text)
        if self._joined(ids) == text.encode():
            return ids
        letters = sorted(set(text))
        rows = self._encoder.encode_batch(letters)
        kept = {
            letter
            for letter, row in zip(letters, rows, strict=True)
            if self._joined(row) == letter.encode()
        }
        ids = []
        for safe, group in groupby(text, kept.__contains__):
            run = "".join(group)
            row = self._encoder.encode(run) if safe else []
            ids += row if self._joined(row) == run.encode() else self._spell(run.encode())
        return ids

    def _spell(self, data: bytes) -> list[int]:
        ids = []
        start = 0
        while start < len(data):
            for end in range(min(len(data), start + _MAX_SPELLED_BYTES), start, -1):
                token_id = self._spelling.get(data[start:end])
                if token_id is not None:
                    ids.append(token_id)
                    start = end
                    break
            else:
                raise UnspellableBytes(
                    f"tokenizer {self._label}: no token for byte 0x{data[start]:02X}; "
                    "its model cannot be asked about this text"
                )
        return ids

    def _joined(self, ids: Sequence[int]) -> bytes | None:
        pieces = [self._table[i] for i in ids]
        return None if None in pieces else b"".join(piece for piece in pieces if piece)


def _utf8_runs(data: bytes) -> Iterator[tuple[bool, bytes]]:
    """Yield ``(valid, bytes)`` runs of complete characters and of bytes that are none."""
    while data:
        try:
            data.decode()
        except UnicodeDecodeError as error:
            if error.start:
                yield True, data[: error.start]
            yield False, data[error.start : error.end]
            data = data[error.end :]
        else:
            yield True, data
            return
