"""What rubric and guard judges share: windows, one batch of rows, the worst window counts."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, Literal

from alignbeam.errors import AlignBeamError, ConfigError, PromptError
from alignbeam.judge.protocol import Conversation, JudgeRole, check_lengths
from alignbeam.judge.readable import foreign_scripts, unreadable
from alignbeam.judge.reader import MAX_BATCH_TOKENS, LabelRow, read_labels
from alignbeam.judge.scripts import reads
from alignbeam.judge.verdicts import WORST, error_verdict, worst
from alignbeam.judge.views import VIEWS, Reach, shown
from alignbeam.judge.windows import LEAST_CHARACTERS, most_windows, windows
from alignbeam.result import Verdict

#: The least candidate that there must be room for.
_LEAST: Final = ("words " * LEAST_CHARACTERS)[:LEAST_CHARACTERS]
Unreadable = Literal["reject", "score"]

#: Most rows that a verdict on one candidate reads: views x windows x questions. Far above what an
#: answer needs; beyond it something is trying to exhaust the judge.
MAX_READINGS: Final = 512

#: Longest part that the views show of a request or a reply, for a judge that names no length of
#: its own.
PART_TOKENS: Final = 256


class ModelJudge(ABC):
    """A judge that reads its verdict off a causal LM's next-token probabilities.

    Parameters
    ----------
    role : JudgeRole
        The judge's model, tokenizer and prompt format.
    name : str
        Stands in every verdict.
    label_mass_floor : float
        Below this label mass a verdict is an error, 0..1.
    candidate_tokens : int or None
        Longest piece of a candidate to show at once, besides what the window holds.
    request_tokens : int or None
        Longest part of a request that the view ``request-parts`` shows; None is ``PART_TOKENS``.
    views : sequence of str
        Names in ``VIEWS``; see ``JudgeConfig``.
    unreadable : {"reject", "score"}
        See ``JudgeConfig``.

    Attributes
    ----------
    max_batch_tokens : int
        Bound of rows x longest row of one forward; does not change verdicts.

    Raises
    ------
    ConfigError
        A value out of range.
    """

    def __init__(
        self,
        role: JudgeRole,
        name: str,
        *,
        label_mass_floor: float = 0.5,
        candidate_tokens: int | None = None,
        request_tokens: int | None = None,
        views: Sequence[str] = tuple(VIEWS),
        unreadable: Unreadable = "reject",
    ) -> None:
        if not 0 <= label_mass_floor <= 1:
            raise ConfigError(f"label_mass_floor must be in 0..1, got {label_mass_floor}")
        if unknown := [name for name in views if name not in VIEWS]:
            raise ConfigError(f"views: {unknown[0]!r} is none of {', '.join(VIEWS)}")
        if "conversation" not in views:
            raise ConfigError("views must hold 'conversation', or nobody would read the whole")
        self.role = role
        self.name = name
        self.label_mass_floor = label_mass_floor
        self.max_batch_tokens = MAX_BATCH_TOKENS
        self.candidate_tokens = candidate_tokens
        self.views = tuple(VIEWS[name] for name in views)
        self.unreadable = unreadable
        self._scripts: dict[str, bool] = {}
        self._reach = Reach(
            self._shorter_than(request_tokens or PART_TOKENS),
            # Where a reading range cuts candidates, every view shows them in windows already.
            self._shorter_than(PART_TOKENS) if candidate_tokens is None else lambda _: True,
        )

    def score(
        self, conversations: Sequence[Conversation], candidates: Sequence[str]
    ) -> list[Verdict]:
        """Judge a flat batch. See ``Judge.score``.

        Every view of every candidate is a row of the same batch; the worst verdict counts, and an
        error in any is an error of the whole. A candidate that cannot be put before the model (a
        prompt that is too long, text that is no Unicode) gets an error verdict; the others are
        judged all the same.

        Raises
        ------
        ValueError
            The two sides are not equally many.
        """
        check_lengths(conversations, candidates)
        return self._score(conversations, candidates, read_all=self.unreadable == "score")

    def _score(
        self, conversations: Sequence[Conversation], candidates: Sequence[str], *, read_all: bool
    ) -> list[Verdict]:
        rows: list[LabelRow] = []
        # Per candidate: each of its pieces, by view and rows; or the verdict without asking.
        plans: list[list[tuple[str, slice]] | Verdict] = []
        for conversation, candidate in zip(conversations, candidates, strict=True):
            try:
                plan = None if read_all else self._unread(candidate)
                pieces = [] if plan else self.questions(conversation, candidate)
            except AlignBeamError as error:
                plan, pieces = error_verdict(self.name, "unreadable", str(error)), []
            if plan is not None:
                plans.append(plan)
                continue
            places = []
            for view, piece in pieces:
                places.append((view, slice(len(rows), len(rows) + len(piece))))
                rows += piece
            plans.append(places)
        read = read_labels(self.role, rows, self.max_batch_tokens)
        return [
            plan
            if isinstance(plan, Verdict)
            else worst(_seen(self._verdict(read[piece]), view) for view, piece in plan)
            for plan in plans
        ]

    def readings(self, conversation: Conversation, candidate: str | int) -> int:
        """Count the rows that a verdict reads: views x windows x questions; asks no model.

        Views and questions are counted as they are, windows at their most.

        Parameters
        ----------
        candidate : str or int
            The text; or, before there is one, how many tokens it may come to.

        Raises
        ------
        PromptError
            The window holds no candidate beside the conversation, or ``MAX_READINGS`` are not
            enough: there would be no verdict but an error.
        """
        self._pieces(conversation, _LEAST)
        rows = self._rows(conversation, _LEAST)
        least = len(self.role.encode_plain(_LEAST))
        room = self.role.window - max(len(row.ids) for row in rows) + least
        if self.candidate_tokens is not None:
            room = min(room, self.candidate_tokens)
        if isinstance(candidate, int):
            candidate = _LEAST * math.ceil(candidate / least)

        @functools.cache
        def pieces(text: str) -> int:
            if len(text.encode("utf-8", "surrogatepass")) <= room:  # no token is below a byte
                return 1
            return most_windows(len(text), len(self.role.encode_plain(text)), room)

        views = shown(self.views, conversation, candidate, self._reach)
        return _checked(len(rows) * sum(pieces(text) for *_, text in views))

    def _unread(self, candidate: str) -> Verdict | None:
        """Return the verdict of a candidate that this judge cannot read; None where it can.

        It is no error, for the judge is not to blame: it is unsafe.
        """
        why = unreadable(candidate)
        if why is None:
            unknown = sorted(s for s in foreign_scripts(candidate) if not self.reads(s))
            why = f"written in {', '.join(unknown)}" if unknown else None
        return None if why is None else Verdict(WORST, judge=f"{self.name}, unread: {why}")

    def reads(self, script: str) -> bool:
        """Whether this judge was shown to read a script: found out when it is first met.

        Parameters
        ----------
        script : str
            As in ``scripts.toml``; one that is not there is not read.
        """
        if script not in self._scripts:
            ask = functools.partial(self._score, read_all=True)
            self._scripts[script] = reads(ask, script)
        return self._scripts[script]

    def questions(
        self, conversation: Conversation, candidate: str
    ) -> list[tuple[str, list[LabelRow]]]:
        """Return what a verdict asks the model: the rows of each piece of each view, by its name.

        Raises
        ------
        PromptError
            See ``readings``.
        """
        found: list[tuple[str, list[LabelRow]]] = []
        for view, turns, text in shown(self.views, conversation, candidate, self._reach):
            found += [(view, self._rows(turns, piece)) for piece in self._pieces(turns, text)]
            _checked(sum(len(rows) for _, rows in found))
        return found

    def _shorter_than(self, tokens: int) -> Callable[[str], bool]:
        def short(text: str) -> bool:
            # No token is shorter than a byte; what is far too long need not be encoded.
            if len(text.encode("utf-8", "surrogatepass")) <= tokens:
                return True
            return len(text) <= 16 * tokens and len(self.role.encode_plain(text)) <= tokens

        return short

    def _pieces(self, conversation: Conversation, candidate: str) -> list[str]:
        def fits(piece: str) -> bool:
            if not self._in_reading_range(piece):
                return False
            longest = max(len(row.ids) for row in self._rows(conversation, piece))
            return longest <= self.role.window

        return windows(candidate, fits)

    def _in_reading_range(self, piece: str) -> bool:
        # A preference, not a window: the least piece is shown whatever it costs.
        if self.candidate_tokens is None or len(piece) <= LEAST_CHARACTERS:
            return True
        return len(self.role.encode_plain(piece)) <= self.candidate_tokens

    @abstractmethod
    def _rows(self, conversation: Conversation, piece: str) -> list[LabelRow]:
        """Return the questions that one piece of a candidate needs."""

    @abstractmethod
    def _verdict(self, read: Sequence[tuple[float, ...]]) -> Verdict:
        """Turn the label probabilities of ``_rows``'s questions into one verdict."""


def _seen(verdict: Verdict, view: str) -> Verdict:
    """Return a verdict with its view; one that was not shown the request says nothing of it."""
    harm = None if view == "reply" else verdict.request_harm
    return replace(verdict, view=view, request_harm=harm)


def _checked(readings: int) -> int:
    if readings > MAX_READINGS:
        raise PromptError(
            f"the judge would have to read the answer {readings:,} times or more to see all of it, "
            f"and reads it {MAX_READINGS} times at most; shorten the conversation, or lower "
            "max_new_tokens",
            "prompt_too_long",
        )
    return readings
