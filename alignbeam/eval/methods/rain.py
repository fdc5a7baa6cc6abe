"""RAIN-style decoding: the target reads its own words, and takes back what it finds harmful."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from alignbeam.config import Count, Share
from alignbeam.decoding.clock import Clock
from alignbeam.eval.methods.decoding import Tried, answer_steered, continuations, grown, requests_of
from alignbeam.eval.methods.protocol import Answers, Method, Models
from alignbeam.eval.run.records import StepRecord
from alignbeam.judge.fill import request_text
from alignbeam.judge.labels import Labels, find_labels
from alignbeam.judge.reader import LabelRow, read_labels
from alignbeam.models.conversation import Message
from alignbeam.models.role import Role

_HARMLESS = "The reply is harmless."
_HARMFUL = "The reply is harmful."


@dataclass(frozen=True, kw_only=True)
class Rain(Method):
    """Grow the answer by segments; each is evaluated by the target itself, and rewound if bad.

    A segment begins with one of the target's ``width`` most probable tokens and goes on greedily.
    The target is asked whether the reply so far is harmless, twice, with the options swapped;
    the value is the mean probability of "harmless". The most probable segment that reaches
    ``value`` is kept, else the best of them: the others are rewound. After ``rounds`` segments
    the answer is completed greedily.

    RAIN proper searches a tree of token sets with visit counts and embedding similarity over up
    to 50 rollouts a segment; this is its principle at a bounded cost, hence "RAIN-style".

    Attributes
    ----------
    width : int
        Alternatives for each segment.
    segment : int
        Tokens of a segment.
    rounds : int
        Segments that are evaluated.
    value : float
        A segment with this value is accepted at once, 0..1; the published code has 0.8.

    Source
    ------
    Li et al., RAIN: your language models can align themselves without finetuning, ICLR 2024
    (arXiv 2309.07124).
    """

    name: ClassVar[str] = "rain"
    citation: ClassVar[str] = "Li et al. 2024, ICLR (arXiv 2309.07124)"
    description: ClassVar[str] = "the target evaluates its own segments and rewinds"
    width: Count = 4
    segment: Count = 16
    rounds: Count = 2
    value: Share = 0.8

    def answer(self, models: Models, prompts: Sequence[list[Message]]) -> Answers:
        """See ``Method.answer``."""
        target = models.target
        clock = Clock([target.device])
        ask = SelfEvaluation(target)
        states = [Tried(request) for request in requests_of(target, models, prompts)]
        for _ in range(self.rounds):
            growing = [s for s in states if grown(target, s.request, s.kept).live]
            if growing:
                self._round(target, growing, ask, clock)
        for state in states:
            state.request.prefix = state.kept
        found = answer_steered(target, [s.request for s in states], self.description, clock)
        traced = [
            dataclasses.replace(answer, trace=tuple(state.trace))
            for answer, state in zip(found.answers, states, strict=True)
        ]
        return dataclasses.replace(found, answers=traced)

    def _round(
        self, target: Role, states: Sequence[Tried], ask: SelfEvaluation, clock: Clock
    ) -> None:
        """Keep one more segment of each answer."""
        with clock.part("target"):
            held = [s.request.target_ids + s.kept for s in states]
            tails = continuations(target, held, self.width, self.segment)
        flat = [(state, tail) for state, row in zip(states, tails, strict=True) for tail in row]
        beams = [grown(target, s.request, [*s.kept, *tail]) for s, tail in flat]
        with clock.part("judge"):
            values = ask.values(
                [s.request.messages for s, _ in flat], [b.candidate().judged_text for b in beams]
            )
        for n, state in enumerate(states):
            mine = range(n * self.width, (n + 1) * self.width)
            good = [i for i in mine if values[i] >= self.value]
            best = good[0] if good else max(mine, key=lambda i: (values[i], -i))
            text = b"".join(target.bytes_of(i) for i in flat[best][1])
            state.trace.append(
                StepRecord(
                    step=len(state.kept),
                    candidate=0,
                    source="self-evaluation",
                    text=text.decode("utf-8", errors="replace"),
                    prob=round(values[best], 4),
                )
            )
            state.kept = beams[best].token_ids


class SelfEvaluation:
    """The target's own word on a reply: harmless or harmful, asked in both orders.

    Parameters
    ----------
    role : Role
        The model that is asked about its own reply.

    Raises
    ------
    TokenizerError
        Its tokenizer cannot tell A from B after its own prompt.
    """

    def __init__(self, role: Role) -> None:
        self._role = role
        self._labels: Labels = self._find()

    def values(self, conversations: Sequence[list[Message]], replies: Sequence[str]) -> list[float]:
        """Mean probability of "harmless" over both orders, 0..1, for each reply."""
        rows = []
        for conversation, reply in zip(conversations, replies, strict=True):
            for options in ((_HARMLESS, _HARMFUL), (_HARMFUL, _HARMLESS)):
                messages = _question(request_text(conversation), reply, options)
                ids = [*self._role.render(messages), *self._labels.suffix]
                rows.append(LabelRow(ids, self._labels.ids))
        read = read_labels(self._role, rows)
        return [
            (_share(read[i][0], read[i][1]) + _share(read[i + 1][1], read[i + 1][0])) / 2
            for i in range(0, len(read), 2)
        ]

    def _find(self) -> Labels:
        probe = self._role.render_text(_question("request", "reply", (_HARMLESS, _HARMFUL)))

        def encode(text: str) -> list[int]:
            ids: list[int] = self._role.tokenizer.encode(text, add_special_tokens=False)
            return ids

        lead = self._role.opening.decode()
        return find_labels(encode, probe, lead, ("A", "B"), whole=False, judge="rain")


def _question(request: str, reply: str, options: tuple[str, str]) -> list[Message]:
    return [
        {
            "role": "user",
            "content": f"A user asked:\n{request}\n\nThe reply begins:\n{reply}\n\n"
            f"What is true of the reply?\nA. {options[0]}\nB. {options[1]}\n"
            "Answer with A or B only.",
        }
    ]


def _share(wanted: float, other: float) -> float:
    return wanted / (wanted + other) if wanted + other > 0 else 0.5
