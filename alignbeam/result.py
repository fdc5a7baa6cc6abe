"""What comes back: frozen records, and what each tells. Nothing here imports anything of ours.

``public()`` is what may leave the process: it holds nothing of a candidate that did not pass but
that it did not, and no text that a judge wrote. ``full()`` is everything, for use at home.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

#: Why a candidate (or the answer) ended: an end token, ``max_new_tokens`` or the window, a stop
#: string; for the answer only, the fixed refusal in place of text that was not judged safe; for a
#: candidate only, that it was given up before its end, so that it is never judged nor shown.
FinishReason = Literal["stop", "length", "stop_string", "content_filter", "dropped"]

#: Why there is no verdict that counts: no judge was asked; it raised; it took too long; its process
#: ended; it gave too few or too many verdicts, something else than a verdict, or a score outside
#: 1..5; its logits were not finite; its probability was not on its labels; the candidate could not
#: be put before it; it said so itself.
Failure = Literal[
    "not-judged",
    "exception",
    "timeout",
    "died",
    "wrong-count",
    "no-verdict",
    "bad-score",
    "not-finite",
    "label-mass",
    "unreadable",
    "other",
]
_FAILURES: Final = frozenset(get_args(Failure))

#: What a judge may be shown of a conversation and a candidate.
ViewName = Literal[
    "conversation",
    "last-turn",
    "reply",
    "request-parts",
    "last-sentence",
    "reply-parts",
    "turns",
    "plain-letters",
]
_VIEWS: Final = frozenset(get_args(ViewName))

#: Why an answer is what it is, as far as anyone may know.
PublicReason = Literal[
    "the best that passes",
    "the target's own, clearly safe",
    "no candidate passes",
    "the safest, though none passes",
    "not judged",
    "the judge failed",
]


def plain(value: Any, digits: int | None = None) -> Any:
    """Return ``value`` as strict JSON spells it: records as objects, NaN and infinities as null.

    Parameters
    ----------
    value : object
        Records, mappings, lists, tuples, and what JSON knows.
    digits : int or None
        Decimals kept of every float; None keeps all.
    """
    if dataclasses.is_dataclass(value):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, digits) for item in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return value if digits is None else round(value, digits)
    return value


@dataclass(frozen=True, slots=True)
class Wish:
    """One token that a model wanted, with its probability before mixing."""

    token_id: int
    text: str
    prob: float


@dataclass(frozen=True, slots=True)
class StepTrace:
    """One mixed token of one beam: who wanted what, and what was taken.

    Attributes
    ----------
    step, beam : int
        Position in the answer (0 is the priming step) and index of the beam.
    source : str
        Who chose: ``"mix"``; or the target alone, because the beam stood inside a character
        (``"target:unfinished-character"``), because the anchor has no tokens for its bytes
        (``"target:unspellable-bytes"``), or because nothing of what the anchor wanted could be
        translated (``"target:empty-support"``). Other ways to steer have names of their own.
    token_ids, text : tuple of int, str
        The target tokens that were taken; one, but where a steer inserts a word.
    logprob : float
        Their log-probability under the distribution that chose them (nats).
    target_wishes, anchor_wishes : tuple of Wish
        The most probable tokens of each model, best first; ids are each model's own.
        ``anchor_wishes`` is empty where the anchor was not asked.
    anchor_mass, translated_mass, target_mass : float
        See ``alignbeam.ops.mix_topk``; NaN where the anchor was not asked.
    anchor_share : float
        ``alpha * translated_mass / (alpha * translated_mass + (1 - alpha) * target_mass)``:
        the anchor's real share in the mix, 0..1.
    """

    step: int
    beam: int
    source: str
    token_ids: tuple[int, ...]
    text: str
    logprob: float
    target_wishes: tuple[Wish, ...]
    anchor_wishes: tuple[Wish, ...]
    anchor_mass: float
    translated_mass: float
    target_mass: float
    anchor_share: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the judge says of one candidate.

    Attributes
    ----------
    score : float
        Harm, 1 (safe) to 5. An error counts as 5, always.
    probs : tuple of float
        Probability of the five levels 1..5, summing to 1; empty where there is no histogram
        (an error, or a judge that gives only a score).
    label_mass : float
        Share of the judge's full next-token distribution that lies on its labels, 0..1;
        NaN where the judge has no such thing.
    error : str or None
        Why the judge could not tell; None for a verdict that counts. It may quote what was
        judged, so it is for use at home only.
    judge : str
        Which judge it was.
    failure : Failure or None
        The same as ``error`` in a word of ours, which may be told to anyone.
    request_harm : float or None
        Probability that the request itself is harmful, 0..1; None where the judge does not say.
    view : str
        The view that decided, a ``ViewName``: the worst one counts. Empty where the judge has none,
        or read nothing.
    """

    score: float
    probs: tuple[float, ...] = ()
    label_mass: float = float("nan")
    error: str | None = None
    judge: str = ""
    failure: Failure | None = None
    request_harm: float | None = None
    view: str = ""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One finished beam.

    Attributes
    ----------
    text : str
        The answer's text, without the opening, the end token and the stop string.
    token_ids : tuple of int
        Every token generated, end token included.
    logprob : float
        Sum over the mixed steps of the log-probability of the taken token (nats).
    finish_reason : FinishReason
        Why it ended.
    verdict : Verdict or None
        None where no judge was asked.
    beyond : str
        What was decoded after ``text``: the stop string, and all that came with or after it. It is
        judged, or a stop string would say whether it stands in text that is withheld; it is never
        shown.
    beyond_tokens : int
        How many of the tokens, the last ones, hold some of it.
    unsteered : bool
        Whether it is what the target says by itself, beside candidates that were steered.
    departures : int
        Steered tokens that are not the target's own first choice; counted where the selection
        asks for it.
    departure : float
        How much likelier the target found its own choice, summed over these tokens, nats.
    """

    text: str
    token_ids: tuple[int, ...]
    logprob: float
    finish_reason: FinishReason
    verdict: Verdict | None = None
    beyond: str = ""
    beyond_tokens: int = 0
    unsteered: bool = False
    departures: int = 0
    departure: float = 0.0

    @property
    def judged_text(self) -> str:
        """All that was decoded: what the verdict is about."""
        return self.text + self.beyond

    @property
    def score(self) -> float:
        """Harm score of the verdict, 1..5; 5 without one (not judged is not safe)."""
        return 5.0 if self.verdict is None else self.verdict.score

    @property
    def label_mass(self) -> float:
        """Label mass of the verdict; NaN without one."""
        return float("nan") if self.verdict is None else self.verdict.label_mass

    @property
    def failure(self) -> Failure | None:
        """Why there is no verdict that counts; None where there is one, whatever its score."""
        if self.verdict is None:
            return "not-judged"
        if self.verdict.error is None:
            return None
        # A judge is anyone's code: a word that is not ours goes no further.
        return self.verdict.failure if self.verdict.failure in _FAILURES else "other"

    @property
    def view(self) -> str | None:
        """The view that decided, in a word of ours; None where there is none."""
        # See ``failure``.
        view = "" if self.verdict is None else self.verdict.view
        return view if view in _VIEWS else None

    def passes(self, threshold: float) -> bool:
        """Whether it may be shown: a verdict that counts, with a score of at most ``threshold``."""
        return self.failure is None and self.score <= threshold

    def public(self, threshold: float) -> dict[str, Any]:
        """Return what may be told of it, as JSON: nothing but that where it does not pass."""
        told: dict[str, Any] = {"passed": self.passes(threshold), "failure": self.failure}
        if told["passed"] and self.verdict is not None:
            told |= {
                "score": self.score,
                "probs": self.verdict.probs,
                "label_mass": self.label_mass,
                "view": self.view,
                "logprob": self.logprob,
                "tokens": len(self.token_ids),
                "finish_reason": self.finish_reason,
            }
        return plain(told)  # type: ignore[no-any-return]

    def full(self, digits: int | None = None) -> dict[str, Any]:
        """Return all of it as JSON; ``digits`` as in ``plain``."""
        scores = {"score": self.score, "label_mass": self.label_mass}
        return {**plain(self, digits), **plain(scores, digits)}


@dataclass(frozen=True, slots=True)
class Timings:
    """Wall time of the batch that this request ran in, milliseconds.

    ``target_ms + anchor_ms + mix_ms + judge_ms + other_ms == total_ms``. On a GPU the parts are
    measured between synchronisation points that the loop has anyway.
    """

    target_ms: float
    anchor_ms: float
    mix_ms: float
    judge_ms: float
    other_ms: float
    total_ms: float


@dataclass(frozen=True, slots=True)
class GateReading:
    """What one gate said of a request; see ``GateConfig``.

    Attributes
    ----------
    gate : str
    value, threshold : float
        The value is NaN where the gate could not tell.
    lets_go : bool
        Whether it found no need of steering.
    """

    gate: str
    value: float
    threshold: float
    lets_go: bool


NO_TIME: Final = Timings(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Result:
    """The answer to one request.

    Attributes
    ----------
    text : str
        What may be shown. The fixed refusal where ``finish_reason`` is ``"content_filter"``.
    finish_reason : FinishReason
        Why the text ends.
    chosen : int or None
        Index of the candidate whose text this is; None for the fixed refusal.
    reason : str
        Why this one, in a sentence with scores; ``public_reason`` is the one for strangers.
    candidates : tuple of Candidate
        All of them, in beam order.
    trace : tuple of StepTrace
        Every mixed step of every beam, by step, then beam.
    timings : Timings
        Where the time went.
    prompt_tokens, completion_tokens : int
        Target tokens of the rendered prompt, and of the chosen candidate (0 for a refusal).
    threshold : float
        The score up to which a candidate passes, 1..5; 0 where none does, as none was judged.
    gates : tuple of GateReading
        What the operator's gates said, as they were asked.
    let_go : bool
        Whether they spared the request the steering, or the rest of it.
    """

    text: str
    finish_reason: FinishReason
    chosen: int | None
    reason: str
    candidates: tuple[Candidate, ...]
    trace: tuple[StepTrace, ...]
    timings: Timings
    prompt_tokens: int
    completion_tokens: int
    threshold: float = 0.0
    gates: tuple[GateReading, ...] = ()
    let_go: bool = False

    @property
    def public_reason(self) -> PublicReason:
        """Why the answer is what it is, without a score."""
        if self.chosen is None:
            return "no candidate passes"
        chosen = self.candidates[self.chosen]
        if chosen.passes(self.threshold):
            own = chosen.unsteered
            return "the target's own, clearly safe" if own else "the best that passes"
        if chosen.verdict is None:
            return "not judged"
        return "the safest, though none passes" if chosen.failure is None else "the judge failed"

    def public(self) -> dict[str, Any]:
        """Return what may be told of the answer beside its text, as JSON.

        That is which candidate it is and why, the candidates as ``Candidate.public`` tells them,
        the mixed steps of the answer itself, and where the time went.
        """
        answer: tuple[int, ...] = ()
        if self.chosen is not None:
            chosen = self.candidates[self.chosen]
            answer = chosen.token_ids[: len(chosen.token_ids) - chosen.beyond_tokens]
        steps = [
            {"text": step.text, "source": step.source, "anchor_share": step.anchor_share}
            for step in self.trace
            # Only the answer's own tokens, whatever the trace says of whose they are.
            if step.beam == self.chosen
            and answer[step.step : step.step + len(step.token_ids)] == step.token_ids
        ]
        times = plain(self.timings, 3)
        return {
            "chosen": self.chosen,
            "reason": self.public_reason,
            "finish_reason": self.finish_reason,
            "candidates": [candidate.public(self.threshold) for candidate in self.candidates],
            "steps": plain(steps),
            "timings_ms": {name.removesuffix("_ms"): spent for name, spent in times.items()},
        }

    def full(self) -> dict[str, Any]:
        """Return all of it as JSON, texts of every candidate included: for use at home."""
        return {**plain(self), "candidates": [candidate.full() for candidate in self.candidates]}
