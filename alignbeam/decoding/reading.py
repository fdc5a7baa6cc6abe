"""A second model reads each beam's text as it grows, tokenised anew as it would read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignbeam.decoding.beam import Beam, Request
from alignbeam.decoding.clock import Clock
from alignbeam.decoding.next_tokens import NextTokens
from alignbeam.decoding.owned_rows import OwnedRows
from alignbeam.engines.roles import AnyRole
from alignbeam.errors import PromptError
from alignbeam.vocab.retokenize import Retokenizer, UnspellableBytes, split_utf8

#: Why a model cannot be asked about a beam now; a full window comes as the error that says so.
Unreadable = str | PromptError


class ReadingRows:
    """The cached rows of a model that reads along.

    Its prompt is rendered with its own template and prefilled once; then its rows are taken back
    to the longest common prefix with what a beam's text has become, and fed the rest.

    Parameters
    ----------
    role : Role or RemoteRole
    retokenizer : Retokenizer
        The role's.
    prompts : mapping of Request to sequence of int
        Each request's prompt for this model.
    clock : Clock
    beams : sequence of Beam
        The beams that are already open; without them the rows belong to the requests until
        ``fork``.
    """

    def __init__(
        self,
        role: AnyRole,
        retokenizer: Retokenizer,
        prompts: Mapping[Request, Sequence[int]],
        clock: Clock,
        beams: Sequence[Beam] = (),
    ) -> None:
        self.role = role
        self._retokenizer = retokenizer
        owned: dict[Any, Sequence[int]] = {b: prompts[b.request] for b in beams} or {**prompts}
        self._start = {owner: len(ids) for owner, ids in owned.items()}
        self.rows = OwnedRows(role, owned.items(), clock, "anchor")

    def fork(self) -> None:
        """Give each beam of each request its own row."""
        self._start = {b: n for request, n in self._start.items() for b in request.beams}
        self.rows.fork(lambda request: request.beams)

    def join(self, other: ReadingRows) -> None:
        """Take in the rows of another batch; ``other`` is used up."""
        self.rows.join(other.rows)
        self._start.update(other._start)

    def show(self, texts: Mapping[Any, bytes]) -> dict[Any, Unreadable]:
        """Show the model what each answer has become.

        Parameters
        ----------
        texts : mapping of owner to bytes
            The answers so far, without any opening.

        Returns
        -------
        dict
            The owners that it cannot be asked about, and why.
        """
        unreadable: dict[Any, Unreadable] = {}
        suffixes: dict[Any, list[int]] = {}
        for owner, text in texts.items():
            complete, unfinished = split_utf8(self.role.opening + text)
            if unfinished:
                unreadable[owner] = "target:unfinished-character"
                continue
            try:
                suffix = self._retokenizer.encode(complete)
                self.role.check_room(self._start[owner], len(suffix))
            except UnspellableBytes:
                unreadable[owner] = "target:unspellable-bytes"
            except PromptError as error:
                unreadable[owner] = error
            else:
                suffixes[owner] = suffix
        if suffixes:
            self.rows.replace_suffixes(self._start.__getitem__, suffixes)
        return unreadable

    def next_tokens(self, owners: Sequence[Any]) -> NextTokens:
        """Return what the model says comes next for these owners."""
        return self.rows.next_tokens(owners)
