"""Anchor tokens as strings of target tokens: each time the longest that the rest begins with."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence

import torch

#: What follows the last piece of a token.
OVER = -2
#: In the place of a piece: no target token begins like this.
STUCK = -1


class ByteTrie:
    """The tokens of a vocabulary in the order of their bytes, each with its longest prefix.

    Parameters
    ----------
    ids : mapping of bytes to int
        No empty bytes.
    """

    def __init__(self, ids: Mapping[bytes, int]) -> None:
        self._whole = ids
        self._tokens = sorted(ids)
        self._ids = [ids[token] for token in self._tokens]
        self._longest = max(map(len, self._tokens), default=0)
        self._parents: list[int] = []
        open_: list[int] = []
        for i, token in enumerate(self._tokens):
            while open_ and not token.startswith(self._tokens[open_[-1]]):
                open_.pop()
            self._parents.append(open_[-1] if open_ else -1)
            open_.append(i)

    def cut(self, data: bytes) -> list[int]:
        """Return the ids that spell ``data``, longest first token first.

        ``STUCK`` ends the list where no token begins like the rest.
        """
        if (whole := self._whole.get(data)) is not None:
            return [whole]
        ids: list[int] = []
        start = 0
        while start < len(data):
            found = self._find(data[start : start + self._longest])
            if found < 0:
                return [*ids, STUCK]
            ids.append(self._ids[found])
            start += len(self._tokens[found])
        return ids

    def _find(self, data: bytes) -> int:
        """Return the place of the longest token that ``data`` begins with, -1 for none."""
        # Whatever sorts between a prefix of ``data`` and ``data`` begins with that prefix too.
        place = bisect_right(self._tokens, data) - 1
        while place >= 0 and not data.startswith(self._tokens[place]):
            place = self._parents[place]
        return place


class Pieces:
    """Strings of target ids one after the other, each up to ``OVER`` or ``STUCK``.

    The string at 0 is that of everything without bytes: ``STUCK`` at once.
    """

    def __init__(self, trie: ByteTrie) -> None:
        self._trie = trie
        self._flat = array("i", [STUCK])

    def add(self, texts: Sequence[bytes | None]) -> torch.Tensor:
        """Cut texts; return where the pieces of each begin, int32 [len(texts)]."""
        starts = array("i", bytes(4 * len(texts)))
        for i, text in enumerate(texts):
            if text:
                starts[i] = self._append(self._trie.cut(text))
        return torch.tensor(starts, dtype=torch.int32)

    def add_one(self, token_id: int) -> int:
        """Add a string of one id; return where it begins."""
        return self._append([token_id])

    def tensor(self) -> torch.Tensor:
        """Return all of them, int32."""
        return torch.tensor(self._flat, dtype=torch.int32)

    def _append(self, ids: Iterable[int]) -> int:
        start = len(self._flat)
        self._flat.extend(ids)
        if self._flat[-1] != STUCK:
            self._flat.append(OVER)
        return start
