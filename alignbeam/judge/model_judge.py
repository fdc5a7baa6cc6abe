"""What rubric and guard judges share: windows, one batch of rows, the worst window counts."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Literal

from alignbeam.errors import AlignBeamError, ConfigError
from alignbeam.judge.protocol import Conversation, JudgeRole, check_lengths
from alignbeam.judge.readable import foreign_scripts, unreadable
from alignbeam.judge.reader import MAX_BATCH_TOKENS, LabelRow, read_labels
from alignbeam.judge.scripts import reads
from alignbeam.judge.verdicts import WORST, error_verdict, worst
from alignbeam.judge.views import VIEWS, Reach, shown
from alignbeam.judge.windows import LEAST_CHARACTERS, windows
from alignbeam.result import Verdict

Unreadable = Literal["reject", "score"]

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

    @property
    def rows_per_candidate(self) -> int:
        """Forwards of a candidate that each view shows in one piece: views times questions.

        Views that show nothing new are left out, so most cost less; a long request or candidate
        costs as much again for each of its parts (``View.most``).
        """
        return len(self.views) * len(self._rows([{"role": "user", "content": ""}], ""))

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
        # Per candidate: the rows of each of its pieces, or the verdict without asking.
        plans: list[list[slice] | Verdict] = []
        for conversation, candidate in zip(conversations, candidates, strict=True):
            try:
                plan = None if read_all else self._unread(candidate)
                pieces = [] if plan else self._questions_about(conversation, candidate)
            except AlignBeamError as error:
                plan, pieces = error_verdict(self.name, "unreadable", str(error)), []
            if plan is not None:
                plans.append(plan)
                continue
            plans.append([slice(len(rows) + n, len(rows) + m) for n, m in _spans(pieces)])
            rows.extend(row for piece in pieces for row in piece)
        read = read_labels(self.role, rows, self.max_batch_tokens)
        return [
            plan
            if isinstance(plan, Verdict)
            else worst(self._verdict(read[piece]) for piece in plan)
            for plan in plans
        ]

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

    def _questions_about(self, conversation: Conversation, candidate: str) -> list[list[LabelRow]]:
        """Return the rows of each piece of each view."""
        return [
            self._rows(turns, piece)
            for turns, text in shown(self.views, conversation, candidate, self._reach)
            for piece in self._pieces(turns, text)
        ]

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


def _spans(pieces: Sequence[Sequence[object]]) -> Iterator[tuple[int, int]]:
    """Yield where each piece begins and ends when all are laid end to end."""
    end = 0
    for piece in pieces:
        end, begin = end + len(piece), end
        yield begin, end
