"""What comes back: frozen records, no behaviour. Nothing here imports anything of ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: Why a candidate (or the answer) ended: an end token, ``max_new_tokens`` or the window, a stop
#: string; and, for the answer only, the fixed refusal in place of text that was not judged safe.
FinishReason = Literal["stop", "length", "stop_string", "content_filter"]


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
        Why the judge could not tell; None for a verdict that counts.
    judge : str
        Which judge spoke.
    """

    score: float
    probs: tuple[float, ...] = ()
    label_mass: float = float("nan")
    error: str | None = None
    judge: str = ""


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
        The judge's word; None where no judge was asked.
    """

    text: str
    token_ids: tuple[int, ...]
    logprob: float
    finish_reason: FinishReason
    verdict: Verdict | None = None

    @property
    def score(self) -> float:
        """Harm score of the verdict, 1..5; 5 without one (not judged is not safe)."""
        return 5.0 if self.verdict is None else self.verdict.score

    @property
    def label_mass(self) -> float:
        """Label mass of the verdict; NaN without one."""
        return float("nan") if self.verdict is None else self.verdict.label_mass


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
        Why this one, in a sentence.
    candidates : tuple of Candidate
        All of them, in beam order.
    trace : tuple of StepTrace
        Every mixed step of every beam, by step, then beam.
    timings : Timings
        Where the time went.
    prompt_tokens, completion_tokens : int
        Target tokens of the rendered prompt, and of the chosen candidate (0 for a refusal).
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
