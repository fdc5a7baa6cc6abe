"""Rows of a role on an engine: token ids only, for the engine keeps the cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from alignbeam.engines.vllm import Draw
from alignbeam.errors import ConfigError

if TYPE_CHECKING:
    from alignbeam.engines.role import RemoteRole, TokenStream


class RemoteRows:
    """What ``models.rows.Rows`` is for a model in this process, with streams in place of logits.

    Parameters
    ----------
    role : RemoteRole
    prompts : sequence of sequence of int

    Attributes
    ----------
    ids : list of list of int
        Each row's tokens, prompt included.
    """

    def __init__(self, role: RemoteRole, prompts: Sequence[Sequence[int]]) -> None:
        self.role = role
        self.ids: list[list[int]] = [list(p) for p in prompts]
        self._streams: list[TokenStream | None] = [None] * len(self.ids)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.ids)

    @property
    def logits(self) -> torch.Tensor:
        """Nothing that an engine gives.

        Raises
        ------
        ConfigError
            Always.
        """
        raise ConfigError(
            f"this needs the {self.role.name}'s whole logits, and an engine gives numbers of some "
            f"tokens only; load the {self.role.name} in this process"
        )

    def select(self, indices: Sequence[int]) -> None:
        """Keep (and repeat) rows: row i becomes the old row ``indices[i]``. In place."""
        kept = set(indices)
        for row, stream in enumerate(self._streams):
            if stream is not None and row not in kept:
                stream.close()
        streams = [self._streams[row] for row in indices]
        # A stream has one reader: of a row that is repeated, the first.
        self._streams = [s if s not in streams[:n] else None for n, s in enumerate(streams)]
        self.ids = [list(self.ids[row]) for row in indices]

    def join(self, other: RemoteRows) -> None:
        """Put another batch's rows below these; ``other`` is used up."""
        self.ids += other.ids
        self._streams += other._streams

    def extend(self, new: Sequence[Sequence[int]]) -> None:
        """Append ``new[i]`` to row i."""
        for ids, tokens in zip(self.ids, new, strict=True):
            ids += tokens

    def replace_suffixes(
        self, starts: Sequence[int], suffixes: Sequence[Sequence[int] | None]
    ) -> None:
        """Make each row hold its first ``starts[i]`` tokens and ``suffixes[i]``; None leaves it."""
        for row, suffix in enumerate(suffixes):
            if suffix is not None:
                self.ids[row] = [*self.ids[row][: starts[row]], *suffix]

    def complete(self, row: int, max_tokens: int, draw: Draw, interval: int) -> TokenStream:
        """Return the stream of what follows a row, begun now unless it runs already."""
        stream = self._streams[row]
        if stream is not None:
            return stream
        stream = self.role.stream(self.ids[row], max_tokens, draw, interval)
        self._streams[row] = stream
        return stream
