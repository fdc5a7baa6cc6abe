"""Guard classifiers as judges: P(unsafe) at the verdict position, mapped to 1..5."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Final

from alignbeam.errors import TokenizerError
from alignbeam.judge.fill import TURN_NAMES, request_text, transcript
from alignbeam.judge.formats import PLACEHOLDERS, GuardFormat
from alignbeam.judge.labels import Labels, find_labels
from alignbeam.judge.marks import marks_of, quoted
from alignbeam.judge.model_judge import ModelJudge, Unreadable
from alignbeam.judge.prompts import ChatPrompt, GuardPrompt, RawPrompt
from alignbeam.judge.protocol import Conversation, JudgeRole
from alignbeam.judge.reader import LabelRow
from alignbeam.judge.verdicts import LEVELS, level_verdict, worst
from alignbeam.judge.views import VIEWS
from alignbeam.result import Verdict

_PROBE: Final = dict.fromkeys(PLACEHOLDERS, "text")


class GuardJudge(ModelJudge):
    """Scores by ``1 + 4 * P(unsafe)``, read off the words that the guard's answer may hold.

    With a form of several blanks, the probability of a verdict is the sum over all fillings of
    the earlier ones: ``P(verdict) = sum over fillings of P(filling) * P(verdict | filling)``, one
    forward each, in the same batch; a blank that can no longer change the harm is not asked. The
    label mass is the sum over all fillings. Where the first blank asks about the request, its
    answer is the verdict's ``request_harm``; of the views that show one the highest counts.

    Parameters
    ----------
    role : JudgeRole
        The guard's model and tokenizer.
    guard : GuardFormat
        One of ``GUARDS``, or your own.
    label_mass_floor, views, unreadable
        See ``ModelJudge``.

    Raises
    ------
    TokenizerError
        The tokenizer lacks the format's control tokens, or cannot tell its words apart.

    Source
    ------
    algorithm.md section 5.
    """

    def __init__(
        self,
        role: JudgeRole,
        guard: GuardFormat,
        *,
        label_mass_floor: float = 0.5,
        views: Sequence[str] = tuple(VIEWS),
        unreadable: Unreadable = "reject",
    ) -> None:
        super().__init__(
            role,
            guard.name,
            label_mass_floor=label_mass_floor,
            candidate_tokens=guard.candidate_tokens,
            views=views,
            unreadable=unreadable,
        )
        self.guard = guard
        self._marks = marks_of(guard.prompt, (*guard.speakers.values(), *TURN_NAMES.values()))
        self._prompt: GuardPrompt = (ChatPrompt if guard.chat else RawPrompt)(role, guard)
        self._questions = self._find_words()
        self._open = self._find_open()

    def _find_words(self) -> list[Labels]:
        """Labels of each blank after each filling of those before it, breadth first."""
        prompt = self._prompt.text(_PROBE)
        if self._prompt.encode(prompt) != self._prompt.ids(_PROBE):
            raise TokenizerError(f"{self.name}: the prompt's text does not encode to its ids")
        found: list[Labels] = []
        leads = [self._prompt.opening]
        for blank in self.guard.blanks:
            leads = [lead + blank.lead for lead in leads]
            found += [
                find_labels(
                    self._prompt.encode, prompt, lead, blank.words, whole=False, judge=self.name
                )
                for lead in leads
            ]
            leads = [lead + word for lead in leads for word in blank.words]
        return found

    def _find_open(self) -> list[bool]:
        """Whether the answer to each question matters: the first, and all that may change harm."""
        counts = [len(blank.words) for blank in self.guard.blanks]
        every = math.prod(counts)
        harms = [self.guard.harm[n % len(self.guard.harm)] for n in range(every)]
        found, leads = [], 1
        for count in counts:
            size = every // leads
            found += [len(set(harms[i * size : (i + 1) * size])) > 1 for i in range(leads)]
            leads *= count
        return [True, *found[1:]]

    def _rows(self, conversation: Conversation, piece: str) -> list[LabelRow]:
        rows = self.all_rows(conversation, piece)
        return [row for n, row in enumerate(rows) if self._open[n % len(self._open)]]

    def all_rows(self, conversation: Conversation, piece: str) -> list[LabelRow]:
        """Return every question about a piece, those whose answer cannot matter too."""
        turns = _without_system(conversation)
        answered = [*turns, {"role": "assistant", "content": piece}]
        values = {
            "request": request_text(turns, self._marks),
            "candidate": quoted(piece, self._marks),
            "conversation": transcript(answered, self.guard.speakers, self._marks),
        }
        rows: list[LabelRow] = []
        for policy in self.guard.policies or ("",):
            ids = self._prompt.ids({**values, "policy": policy})
            rows += [LabelRow([*ids, *q.suffix], q.ids) for q in self._questions]
        return rows

    def _verdict(self, read: Sequence[tuple[float, ...]]) -> Verdict:
        per_policy = sum(self._open)
        return worst(
            self._policy_verdict(read[i : i + per_policy]) for i in range(0, len(read), per_policy)
        )

    def _policy_verdict(self, read: Sequence[tuple[float, ...]]) -> Verdict:
        answers = iter(read)
        about_request = read[0]
        fillings, is_open = [1.0], iter(self._open)
        for blank in self.guard.blanks:
            certain = (1.0, *[0.0] * (len(blank.words) - 1))
            said = [next(answers) if next(is_open) else certain for _ in fillings]
            fillings = [p * q for p, of in zip(fillings, said, strict=True) for q in of]
        levels = [0.0] * len(LEVELS)
        for n, probability in enumerate(fillings):
            harm = self.guard.harm[n % len(self.guard.harm)]
            levels[round(4 * harm)] += probability
        verdict = level_verdict(self.name, levels, self.label_mass_floor)
        if not self.guard.request_harm or verdict.error is not None:
            return verdict
        weighted = zip(self.guard.request_harm, about_request, strict=True)
        harm = math.fsum(h * p for h, p in weighted) / math.fsum(about_request)
        return dataclasses.replace(verdict, request_harm=min(harm, 1.0))


def _without_system(conversation: Conversation) -> list[dict[str, str]]:
    """Put a system message at the head of the first user message: guards know no third voice."""
    turns = [dict(message) for message in conversation]
    if len(turns) > 1 and turns[0]["role"] == "system":
        system = turns.pop(0)["content"]
        turns[0]["content"] = f"{system}\n\n{turns[0]['content']}"
    return turns
