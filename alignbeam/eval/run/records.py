"""The lines of a run: one record a sample and method, one a score, one a measured time.

Records are frozen dataclasses that go to one line of strict JSON and back. Nothing in
``generations.jsonl`` depends on when or how often a run was interrupted: wall times are kept in a
file of their own.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Self, get_args

from alignbeam.errors import AlignBeamError
from alignbeam.result import plain

#: Raised by one whenever a reader of the old files would misread the new ones.
FORMAT_VERSION: Final = 1

MANIFEST: Final = "manifest.json"
GENERATIONS: Final = "generations.jsonl"
SCORES: Final = "scores.jsonl"
TIMES: Final = "times.jsonl"

#: What a safe and useful system does with a request: refuse, answer, or answer *correctly*.
Label = Literal["harmful", "benign", "utility"]

#: What a score says. Refusal scorers: the first four; harm scorers: ``safe``, ``harmful``;
#: utility scorers: ``correct``, ``wrong``. ``error``: there was no answer, or no verdict.
ScoreClass = Literal[
    "refused",
    "complied",
    "refused_then_complied",
    "empty",
    "safe",
    "harmful",
    "correct",
    "wrong",
    "error",
]


class RecordError(AlignBeamError, ValueError):
    """A line of a run cannot be read: not JSON, a key too many or too few, a wrong value."""


class Line:
    """Base of the records that are a line of a file."""

    __slots__ = ()

    def to_line(self) -> str:
        """Return one line of JSON, without its line break."""
        return dump_line(self)

    @classmethod
    def from_line(cls, line: str | bytes) -> Self:
        """Read one line.

        Raises
        ------
        RecordError
        """
        return cls._read(_fields_of(cls, line))

    @classmethod
    def _read(cls, values: dict[str, Any]) -> Self:
        return cls(**values)


@dataclass(frozen=True, slots=True)
class CandidateRecord:
    """One candidate of an answer, judged or not.

    Attributes
    ----------
    text : str
    score : float or None
        Harm by the judge that selects, 1 (safe) to 5; None where no judge was asked.
    probs : tuple of float
        The judge's probabilities of the five levels; empty without a histogram.
    label_mass : float or None
        Share of the judge's next-token distribution on its labels, 0..1.
    logprob : float
        Sum over the steered tokens, nats; 0 where nothing was steered.
    finish_reason : str
        ``alignbeam.result.FinishReason``.
    new_tokens : int
        Target tokens generated, end token included.
    error : str or None
        Why the judge could not tell; the score is then 5.
    """

    text: str
    score: float | None = None
    probs: tuple[float, ...] = ()
    label_mass: float | None = None
    logprob: float = 0.0
    finish_reason: str = "length"
    new_tokens: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One steered token, as far as a reader of the report wants to know.

    Attributes
    ----------
    step, candidate : int
        Position in the answer, from 0, and which candidate.
    source : str
        Who chose: see ``alignbeam.result.StepTrace``.
    text : str
        The token taken.
    prob : float
        Its probability under the distribution that chose it, 0..1.
    target, anchor : tuple of (str, float)
        What each model wanted most, best first: text and probability.
    anchor_share : float or None
        The anchor's real share in the mix, 0..1.
    """

    step: int
    candidate: int
    source: str
    text: str
    prob: float
    target: tuple[tuple[str, float], ...] = ()
    anchor: tuple[tuple[str, float], ...] = ()
    anchor_share: float | None = None


@dataclass(frozen=True, slots=True)
class Generation(Line):
    """What one method answered to one sample.

    Attributes
    ----------
    key : str
        SHA-256 (hex) of everything that decides the answer; unique in a run.
    method : str
        Label of the method in this run; unique per ``method_settings``.
    method_settings : mapping
        Everything the method was set to, defaults included.
    dataset, sample_id : str
        Where the request comes from.
    category : str
        The data set's own category; empty where it has none.
    label : {"harmful", "benign", "utility"}
    messages : tuple of mapping
        The request, as every role was shown it (before each role's own system prompt).
    reference : str or None
        The right answer, for utility sets.
    answer : str or None
        What the user gets; None where the sample failed.
    finish_reason : str
        Why it ends; ``"content_filter"`` for a fixed refusal; ``"error"`` where it failed.
    candidates : tuple of CandidateRecord
        In beam order; one for methods that make only one.
    chosen : int or None
        Whose text the answer is; None for a fixed refusal or a failure.
    reason : str
        Why this one, in a sentence.
    trace : tuple of StepRecord
        The steered tokens; empty where none was kept.
    new_tokens : int
        Target tokens generated over all candidates.
    error : str or None
        Type and message of what went wrong.
    """

    key: str
    method: str
    method_settings: Mapping[str, Any]
    dataset: str
    sample_id: str
    category: str
    label: Label
    messages: tuple[Mapping[str, str], ...]
    answer: str | None
    finish_reason: str
    candidates: tuple[CandidateRecord, ...] = ()
    chosen: int | None = None
    reason: str = ""
    reference: str | None = None
    trace: tuple[StepRecord, ...] = ()
    new_tokens: int = 0
    error: str | None = None

    @classmethod
    def _read(cls, values: dict[str, Any]) -> Self:
        if values["label"] not in get_args(Label):
            raise RecordError(f"label must be one of {get_args(Label)}, got {values['label']!r}")
        values["messages"] = tuple(values["messages"])
        values["candidates"] = tuple(_candidate(c) for c in values["candidates"])
        values["trace"] = tuple(_step(s) for s in values["trace"])
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Score(Line):
    """What one scorer says of one generation.

    Attributes
    ----------
    key : str
        The generation's.
    scorer : str
        Its name; unique in a run.
    kind : {"refusal", "harm", "utility"}
        What it measures.
    cls : ScoreClass
        Written ``class``.
    value : bool, float or None
        Refusal scorers: whether it counts as a refusal. Harm scorers: 1 (safe) to 5. Utility
        scorers: whether it is right. None with the class ``error``.
    detail : str
        What the scorer saw: a matched string, an extracted answer, a judge's error.
    """

    key: str
    scorer: str
    kind: Literal["refusal", "harm", "utility"]
    cls: ScoreClass
    value: bool | float | None
    detail: str = ""

    @classmethod
    def _read(cls, values: dict[str, Any]) -> Self:
        if values["cls"] not in get_args(ScoreClass):
            raise RecordError(f"class must be a ScoreClass, got {values['cls']!r}")
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Time(Line):
    """Wall time of the batch that a generation ran in; measured on the steered path.

    Attributes
    ----------
    key : str
        The generation's.
    batch : int
        Samples that ran together; the time per sample is ``total_ms / batch``.
    total_ms : float
        Wall time of the whole batch, judging included.
    parts_ms : mapping of str to float
        Split over ``target``, ``anchor``, ``mix``, ``judge``, ``other`` where the method
        measures it; adds up to ``total_ms``. Empty where it does not.
    shared : bool
        Whether the time was spent once for several methods (a sweep that shares its work).
    """

    key: str
    batch: int
    total_ms: float
    parts_ms: Mapping[str, float] = field(default_factory=dict)
    shared: bool = False


def dump_line(record: Any) -> str:
    """Return a record (dataclass or mapping) as one line of strict JSON, NaN as null."""
    values = plain(record)
    if "cls" in values:  # ``class`` is a keyword of Python, not of JSON
        values = {("class" if k == "cls" else k): v for k, v in values.items()}
    # ASCII: no reader can stumble over a line separator or a lone surrogate inside a text.
    return json.dumps(values, allow_nan=False)


def _fields_of(cls: type[Any], line: str | bytes) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise RecordError(f"a line is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise RecordError(f"a line must be a JSON object, got {type(values).__name__}")
    if "class" in values:
        values["cls"] = values.pop("class")
    known = {f.name for f in dataclasses.fields(cls)}
    if set(values) != known:
        odd = sorted(set(values) ^ known)
        raise RecordError(
            f"{cls.__name__}: keys missing or unknown: {', '.join(odd)}; the run was written by "
            f"another version (this one reads format {FORMAT_VERSION})"
        )
    return values


def _candidate(values: Mapping[str, Any]) -> CandidateRecord:
    return CandidateRecord(**{**values, "probs": tuple(values["probs"])})


def _step(values: Mapping[str, Any]) -> StepRecord:
    wishes = {
        who: tuple((str(t), float(p)) for t, p in values[who]) for who in ("target", "anchor")
    }
    return StepRecord(**{**values, **wishes})
