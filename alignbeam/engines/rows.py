"""Rows of a role on an engine: token ids, and what the engine has said of what follows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch

from alignbeam.engines.dialect import Draw, Numbers
from alignbeam.errors import ConfigError

if TYPE_CHECKING:
    from alignbeam.engines.role import RemoteRole, TokenStream

#: Tokens after a row's.
Path = tuple[int, ...]


_Said = TypeVar("_Said")


def _after(step: Path, by_path: Mapping[Path, _Said]) -> dict[Path, _Said]:
    """Return what lies behind ``step``, by the rest of its path."""
    n = len(step)
    return {path[n:]: said for path, said in by_path.items() if path[:n] == step}


class _Row:
    """One row.

    Attributes
    ----------
    ids : list of int
        Its tokens, prompt included.
    salt : str
        See ``Query``.
    known : dict of Path to Numbers
        What the engine says after the row and these further tokens.
    stream : TokenStream or None
        The completion of the row and ``begun_after``.
    begun_after : Path or None
        Where the stream begins; None once it is read, and the row grows by it.
    """

    def __init__(self, ids: Sequence[int], salt: str = "") -> None:
        self.ids, self.salt = list(ids), salt
        self.known: dict[Path, Numbers] = {}
        self.stream: TokenStream | None = None
        self.begun_after: Path | None = None

    def fork(self) -> _Row:
        """Return another row with the same tokens; a stream has one reader, and stays here."""
        row = _Row(self.ids, self.salt)
        row.known = dict(self.known)
        return row

    def grow(self, new: Sequence[int]) -> None:
        """Append tokens; what was said beforehand of what follows them stays."""
        if not new:
            return
        self.ids += new
        self.known = _after(tuple(new), self.known)
        if self.begun_after is not None:
            (self.begun_after,) = _after(tuple(new), {self.begun_after: None}) or (None,)
            if self.begun_after is None:
                self.close()

    def become(self, ids: Sequence[int]) -> None:
        """Take other tokens."""
        held = len(self.ids)
        if list(ids[:held]) == self.ids:
            self.grow(ids[held:])
        else:
            self.ids, self.known = list(ids), {}
            if self.begun_after is not None:
                self.close()

    def close(self) -> None:
        """Abort the stream, if there is one."""
        if self.stream is not None:
            self.stream.close()
        self.stream = self.begun_after = None


class RemoteRows:
    """What ``models.rows.Rows`` is for a model in this process, with streams in place of logits.

    Parameters
    ----------
    role : RemoteRole
    prompts : sequence of sequence of int
    salts : sequence of str
        One a row, of whoever it is decoded for; none leaves them to the scope.
    """

    def __init__(
        self, role: RemoteRole, prompts: Sequence[Sequence[int]], salts: Sequence[str] = ()
    ) -> None:
        self.role = role
        salts = salts or [""] * len(prompts)
        self._rows = [_Row(ids, salt) for ids, salt in zip(prompts, salts, strict=True)]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._rows)

    @property
    def ids(self) -> list[list[int]]:
        """Each row's tokens, prompt included."""
        return [row.ids for row in self._rows]

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

    def salt(self, row: int) -> str:
        """Return what keeps a row's prefix apart from other tenants'; see ``Query``."""
        return self._rows[row].salt

    def known(self, row: int) -> dict[Path, Numbers]:
        """Return what the engine has said after a row and further tokens; callers add to it."""
        return self._rows[row].known

    def select(self, indices: Sequence[int]) -> None:
        """Keep (and repeat) rows: row i becomes the old row ``indices[i]``. In place."""
        old = self._rows
        for n in set(range(len(old))) - set(indices):
            old[n].close()
        first = {row: n for n, row in reversed(list(enumerate(indices)))}
        self._rows = [old[r] if first[r] == n else old[r].fork() for n, r in enumerate(indices)]

    def join(self, other: RemoteRows) -> None:
        """Put another batch's rows below these; ``other`` is used up."""
        self._rows += other._rows

    def extend(self, new: Sequence[Sequence[int]]) -> None:
        """Append ``new[i]`` to row i."""
        for row, tokens in zip(self._rows, new, strict=True):
            row.grow(tokens)

    def replace_suffixes(
        self, starts: Sequence[int], suffixes: Sequence[Sequence[int] | None]
    ) -> None:
        """Make each row hold its first ``starts[i]`` tokens and ``suffixes[i]``; None leaves it."""
        for row, start, suffix in zip(self._rows, starts, suffixes, strict=True):
            if suffix is not None:
                row.become([*row.ids[:start], *suffix])

    def begin(self, row: int, path: Path, max_tokens: int, draw: Draw, interval: int) -> None:
        """Begin to complete a row and ``path``, in case the row comes to hold that."""
        at = self._rows[row]
        if at.stream is None:
            at.stream = self.role.stream([*at.ids, *path], max_tokens, draw, interval)
            at.begun_after = path

    def complete(self, row: int, max_tokens: int, draw: Draw, interval: int) -> TokenStream:
        """Return the stream of what follows a row, begun now unless it runs already."""
        at = self._rows[row]
        if at.begun_after:
            at.close()
        if at.stream is None:
            at.stream = self.role.stream(at.ids, max_tokens, draw, interval)
        at.begun_after = None
        return at.stream
