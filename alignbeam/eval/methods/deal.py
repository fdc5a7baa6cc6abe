"""DeAL: each token is chosen by what it leads to, as the judge finds it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from alignbeam.config import Count, Range
from alignbeam.decoding.clock import Clock
from alignbeam.eval.methods.decoding import Tried, answer_steered, continuations, grown, requests_of
from alignbeam.eval.methods.protocol import Answers, Method, Models, probability
from alignbeam.eval.run.records import StepRecord
from alignbeam.models.conversation import Message


@dataclass(frozen=True, kw_only=True)
class Deal(Method):
    """Search with lookahead: ``argmax log q(d) + weight * reward(answer so far, d, lookahead)``.

    At each of the first ``steps`` tokens, each of the target's ``width`` best goes on greedily for
    ``lookahead`` tokens, and the judge reads what comes out: the reward is ``(5 - score) / 4``. The
    rest of the answer is greedy.

    The paper searches the whole answer, with rewards of its own models and, for harm, of a reward
    model for harmlessness; here the judge is that model, and the search is bounded.

    Attributes
    ----------
    width : int
        Tokens that are tried, 1..16.
    lookahead : int
        Greedy tokens behind each.
    steps : int
        Tokens that are searched for.
    weight : float
        How much of a reward outweighs one nat of the target's probability; 0 is greedy decoding.

    Source
    ------
    Huang et al., DeAL: decoding-time alignment for large language models (arXiv 2402.06147).
    """

    name: ClassVar[str] = "deal"
    citation: ClassVar[str] = "Huang et al. 2024 (arXiv 2402.06147)"
    description: ClassVar[str] = "each early token is chosen by the judge's word on its lookahead"
    width: Annotated[int, Range(1, 16)] = 4
    lookahead: Count = 16
    steps: Count = 4
    weight: Annotated[float, Range(0, 1000)] = 5.0

    def answer(self, models: Models, prompts: Sequence[list[Message]]) -> Answers:
        """See ``Method.answer``."""
        target = models.target
        clock = Clock([target.device])
        states = [Tried(request) for request in requests_of(target, models, prompts)]
        for _ in range(self.steps):
            growing = [s for s in states if grown(target, s.request, s.kept).live]
            if growing:
                self._choose(models, growing, clock)
        for state in states:
            state.request.prefix = state.kept
        found = answer_steered(target, [s.request for s in states], self.description, clock)
        traced = [
            dataclasses.replace(answer, trace=tuple(state.trace))
            for answer, state in zip(found.answers, states, strict=True)
        ]
        return dataclasses.replace(found, answers=traced)

    def _choose(self, models: Models, states: Sequence[Tried], clock: Clock) -> None:
        """Choose one more token of each answer."""
        target = models.target
        held = [s.request.target_ids + s.kept for s in states]
        with clock.part("target"):
            log_q = target.next_token_logits(held).float().log_softmax(-1)
            tails = continuations(target, held, self.width, 1 + self.lookahead)
        texts = [
            grown(target, state.request, [*state.kept, *tail]).candidate().judged_text
            for state, row in zip(states, tails, strict=True)
            for tail in row
        ]
        messages = [s.request.messages for s in states for _ in range(self.width)]
        with clock.part("judge"):
            verdicts = models.beam.judge.score(messages, texts)
        rewards = [(5 - verdict.score) / 4 for verdict in verdicts]
        for n, state in enumerate(states):
            firsts = [tail[0] for tail in tails[n]]
            logprobs = [float(log_q[n, token_id]) for token_id in firsts]
            values = [
                logprob + self.weight * reward
                for logprob, reward in zip(
                    logprobs, rewards[n * self.width : (n + 1) * self.width], strict=True
                )
            ]
            # Of equals the target's more probable one.
            best = max(range(self.width), key=lambda i: (values[i], -i))
            state.trace.append(
                StepRecord(
                    step=len(state.kept),
                    candidate=0,
                    source="lookahead",
                    text=target.shown([firsts[best]]),
                    prob=probability(logprobs[best]),
                )
            )
            state.kept.append(firsts[best])
