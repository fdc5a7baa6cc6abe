"""What rubric and guard judges share: windows, one batch of rows, the worst window counts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final

from alignbeam.errors import AlignBeamError, ConfigError
from alignbeam.judge.protocol import Conversation, JudgeRole, check_lengths
from alignbeam.judge.reader import MAX_BATCH_TOKENS, LabelRow, read_labels
from alignbeam.judge.verdicts import error_verdict, worst
from alignbeam.judge.windows import LEAST_CHARACTERS, windows
from alignbeam.result import Verdict

#: The least candidate that there must be room for.
_LEAST: Final = ("words " * LEAST_CHARACTERS)[:LEAST_CHARACTERS]


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
    ) -> None:
        if not 0 <= label_mass_floor <= 1:
            raise ConfigError(f"label_mass_floor must be in 0..1, got {label_mass_floor}")
        self.role = role
        self.name = name
        self.label_mass_floor = label_mass_floor
        self.max_batch_tokens = MAX_BATCH_TOKENS
        self.candidate_tokens = candidate_tokens

    def score(
        self, conversations: Sequence[Conversation], candidates: Sequence[str]
    ) -> list[Verdict]:
        """Judge a flat batch. See ``Judge.score``.

        A candidate that cannot be put before the model (a prompt that is too long, text that is
        no Unicode) gets an error verdict; the others are judged all the same.

        Raises
        ------
        ValueError
            The two sides are not equally many.
        """
        check_lengths(conversations, candidates)
        rows: list[LabelRow] = []
        # Per candidate: the rows of each of its pieces, or why there are none.
        plans: list[list[slice] | str] = []
        for conversation, candidate in zip(conversations, candidates, strict=True):
            try:
                pieces = [
                    self._rows(conversation, p) for p in self._pieces(conversation, candidate)
                ]
            except AlignBeamError as error:
                plans.append(str(error))
                continue
            plan = []
            for piece in pieces:
                plan.append(slice(len(rows), len(rows) + len(piece)))
                rows.extend(piece)
            plans.append(plan)
        read = read_labels(self.role, rows, self.max_batch_tokens)
        return [
            error_verdict(self.name, "unreadable", plan)
            if isinstance(plan, str)
            else worst(self._verdict(read[piece]) for piece in plan)
            for plan in plans
        ]

    def check_room(self, conversation: Conversation) -> None:
        """Refuse a conversation beside which the window holds no candidate; asks no model.

        Raises
        ------
        PromptError
            See ``windows``.
        """
        self._pieces(conversation, _LEAST)

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
