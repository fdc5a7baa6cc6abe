"""Cached rows of one model that know whose they are."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from alignbeam.decoding.clock import Clock, Part
from alignbeam.decoding.next_tokens import NextTokens
from alignbeam.decoding.remote import RemoteTokens
from alignbeam.engines.roles import AnyRole
from alignbeam.engines.rows import RemoteRows
from alignbeam.models.rows import Rows


class OwnedRows:
    """A model's cached rows, one per owner; the clock is charged for what they cost.

    Owners are compared by identity: requests before their beams are open, beams afterwards.

    Parameters
    ----------
    role : Role or RemoteRole
    prompts : iterable of (owner, sequence of int)
        What is prefilled for whom, in the order of the rows.
    clock : Clock
    part : {"target", "anchor"}
        What the time is charged to.
    """

    def __init__(
        self,
        role: AnyRole,
        prompts: Iterable[tuple[Any, Sequence[int]]],
        clock: Clock,
        part: Part,
    ) -> None:
        pairs = list(prompts)
        self.role = role
        self._clock, self._part = clock, part
        self.owners: list[Any] = [owner for owner, _ in pairs]
        requests = [getattr(owner, "request", owner) for owner in self.owners]
        salts = [getattr(request, "salt", "") for request in requests]
        with self._charged():
            self._rows: Rows | RemoteRows = role.rows([ids for _, ids in pairs], salts)

    def _charged(self) -> contextlib.AbstractContextManager[None]:
        return self._clock.part(self._part)

    @property
    def logits(self) -> torch.Tensor:
        """Logits [rows, width] of all rows."""
        return self._rows.logits

    def logits_of(self, owners: Sequence[Any]) -> torch.Tensor:
        """Logits [len(owners), width] of these owners' rows."""
        if list(owners) == self.owners:
            return self._rows.logits
        row_of = {owner: row for row, owner in enumerate(self.owners)}
        return self._rows.logits[[row_of[owner] for owner in owners]]

    def next_tokens(self, owners: Sequence[Any]) -> NextTokens:
        """Return what the model says comes next for these owners."""
        if isinstance(self._rows, RemoteRows):
            row_of = {owner: row for row, owner in enumerate(self.owners)}
            return RemoteTokens(self._rows, [row_of[owner] for owner in owners], self._charged)
        return NextTokens(self.role, self.logits_of(owners))

    def lengths(self) -> list[int]:
        """Tokens that each row holds, prompt included."""
        return [len(ids) for ids in self._rows.ids]

    def fork(self, heirs: Callable[[Any], Sequence[Any]]) -> None:
        """Give each owner's row to all of its heirs, in place."""
        inherited = [(row, heir) for row, owner in enumerate(self.owners) for heir in heirs(owner)]
        self._select([row for row, _ in inherited])
        self.owners = [heir for _, heir in inherited]

    def keep(self, wanted: Callable[[Any], bool], *, lazily: bool = False) -> None:
        """Drop the rows of all others.

        Parameters
        ----------
        lazily : bool
            Only once half of the rows or more would go, and some stay: each drop copies the cache.
        """
        rows = [row for row, owner in enumerate(self.owners) if wanted(owner)]
        if len(rows) == len(self.owners) or (lazily and not 0 < 2 * len(rows) <= len(self.owners)):
            return
        self._select(rows)
        self.owners = [self.owners[row] for row in rows]

    def join(self, other: OwnedRows) -> None:
        """Put another batch's rows of the same model below these; ``other`` is used up."""
        with self._charged():
            # Both are of one role, so of one kind.
            self._rows.join(other._rows)  # type: ignore[arg-type]
        self.owners += other.owners

    def extend(self, new: Mapping[Any, Sequence[int]]) -> None:
        """Append tokens to these owners' rows."""
        with self._charged():
            self._rows.extend([new.get(owner, ()) for owner in self.owners])

    def replace_suffixes(
        self, start: Callable[[Any], int], suffixes: Mapping[Any, Sequence[int]]
    ) -> None:
        """Make each of these owners' rows hold its first ``start(owner)`` tokens and the suffix."""
        with self._charged():
            self._rows.replace_suffixes(
                [start(owner) for owner in self.owners],
                [suffixes.get(owner) for owner in self.owners],
            )

    def _select(self, rows: Sequence[int]) -> None:
        with self._charged():
            self._rows.select(rows)
