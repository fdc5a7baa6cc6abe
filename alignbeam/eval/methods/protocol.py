"""What a method is: settings with a name and a citation, and answers to a batch of requests."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from alignbeam.config import BeamConfig, CheckedSettings
from alignbeam.controller import AlignBeam
from alignbeam.engines.roles import local
from alignbeam.eval.run.records import CandidateRecord, StepRecord
from alignbeam.judge import Judge
from alignbeam.models.conversation import Message
from alignbeam.models.role import Role
from alignbeam.result import Candidate, Result, StepTrace, Timings, plain
from alignbeam.vocab.bridge import Bridge

#: Decimals kept of probabilities and scores: more would only record a platform's rounding.
_DIGITS = 6
_TRACE_DIGITS = 4


@dataclass(frozen=True)
class Models:
    """What the methods of one run share.

    Attributes
    ----------
    beam : AlignBeam
        Target, anchor, bridge, the judge that selects, and the settings of every answer
        (length, stop strings, seed).
    antiexpert : Role or None
        The untuned twin of the anchor, with the anchor's tokenizer (``ProxyTuning``).
    guard : Judge or None
        Guard of ``PostHocGuard``; None takes the judge that selects.
    """

    beam: AlignBeam
    antiexpert: Role | None = None
    guard: Judge | None = None

    @property
    def target(self) -> Role:
        """The fine-tuned model."""
        return local(self.beam.target, "an evaluation")

    @property
    def anchor(self) -> Role:
        """The small aligned model."""
        return local(self.beam.anchor, "an evaluation")

    @property
    def config(self) -> BeamConfig:
        """Settings of every answer."""
        return self.beam.config

    @cached_property
    def text_beam(self) -> AlignBeam:
        """The same models over the paper's literal bridge: decode one token, encode its text."""
        target, anchor = self.target, self.anchor
        bridge = Bridge.build(anchor.vocabulary, target.vocabulary, method="text")
        return AlignBeam(target, anchor, self.beam.judge, self.config, bridge=bridge)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a method gives for one request; the fields of ``Generation`` that it decides."""

    text: str | None
    finish_reason: str
    candidates: tuple[CandidateRecord, ...]
    chosen: int | None
    reason: str
    trace: tuple[StepRecord, ...] = ()


@dataclass(frozen=True, slots=True)
class Answers:
    """A batch of answers, and where the batch's time went."""

    answers: list[Answer]
    timings: Timings
    shared: bool = field(default=False)


@dataclass(frozen=True, kw_only=True)
class Method(CheckedSettings, ABC):
    """One way to answer; the fields of a subclass are its settings.

    Attributes
    ----------
    name : str
        How a suite calls it.
    citation : str
        The paper it comes from, or ``""``.
    description : str
        A line for the report.
    depends_on : tuple of str or None
        Which of the run's models decide its answers, by their names in the manifest; None: all.
        Runs that share these share the answers.
    """

    name: ClassVar[str]
    citation: ClassVar[str] = ""
    description: ClassVar[str]
    depends_on: ClassVar[tuple[str, ...] | None] = None

    @property
    def settings(self) -> dict[str, Any]:
        """All settings, defaults included."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    @abstractmethod
    def answer(self, models: Models, prompts: Sequence[list[Message]]) -> Answers:
        """Answer a batch of requests, each as it would be answered alone.

        Raises
        ------
        AlignBeamError
            One of them cannot be answered; the run then asks them one by one.
        """


def candidate_record(candidate: Candidate) -> CandidateRecord:
    """Return a candidate as it stands in a run's file."""
    told = candidate.full(_DIGITS)
    verdict = told["verdict"] or {"score": None, "probs": (), "error": None}
    return CandidateRecord(
        text=told["text"],
        score=verdict["score"],
        probs=tuple(verdict["probs"]),
        label_mass=told["label_mass"],
        logprob=told["logprob"],
        finish_reason=told["finish_reason"],
        new_tokens=len(told["token_ids"]),
        error=verdict["error"],
    )


def step_record(step: StepTrace) -> StepRecord:
    """Return a traced step as it stands in a run's file."""
    told = plain(step, _TRACE_DIGITS)
    return StepRecord(
        step=told["step"],
        candidate=told["beam"],
        source=told["source"],
        text=told["text"],
        prob=probability(step.logprob),
        target=tuple((wish["text"], wish["prob"]) for wish in told["target_wishes"]),
        anchor=tuple((wish["text"], wish["prob"]) for wish in told["anchor_wishes"]),
        anchor_share=told["anchor_share"],
    )


def probability(logprob: float) -> float:
    """Return ``exp(logprob)``, rounded as traces are."""
    return round(math.exp(logprob), _TRACE_DIGITS)


def answer_of(result: Result) -> Answer:
    """Return the controller's result as an answer."""
    return Answer(
        text=result.text,
        finish_reason=result.finish_reason,
        candidates=tuple(candidate_record(c) for c in result.candidates),
        chosen=result.chosen,
        reason=result.reason,
        trace=tuple(step_record(s) for s in result.trace),
    )


def only(candidate: Candidate, reason: str, trace: Sequence[StepRecord] = ()) -> Answer:
    """Return the answer of a method that makes one candidate and judges nothing."""
    record = candidate_record(candidate)
    return Answer(candidate.text, candidate.finish_reason, (record,), 0, reason, tuple(trace))


def with_system(messages: Sequence[Mapping[str, str]], text: str) -> list[Message]:
    """Put a system message before a conversation, or before the text of its own."""
    turns = [dict(message) for message in messages]
    if turns[0]["role"] == "system":
        turns[0]["content"] = f"{text}\n\n{turns[0]['content']}"
        return turns
    return [{"role": "system", "content": text}, *turns]
