"""Which candidate may be shown: the lowest score that passes, and a policy for none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from alignbeam.config import BeamConfig
from alignbeam.errors import JudgeUnavailable, UnsafeAnswer
from alignbeam.result import Candidate


@dataclass(frozen=True, slots=True)
class Selection:
    """The chosen index (None: the fixed refusal) and why."""

    chosen: int | None
    reason: str


def select(
    candidates: Sequence[Candidate], config: BeamConfig, among: Sequence[int] | None = None
) -> Selection:
    """Choose among judged candidates (algorithm.md, section 4, Judge).

    The lowest score wins; of the scores within ``tie_margin`` of it, the higher mixed
    log-probability, then the earlier beam. Only a verdict without error can pass; among those
    that pass, one with text beats one without. ``among`` names the only ones to choose from.

    What the target says by itself passes where it is clearly safe only, and wins no tie. With
    ``selection="least_steered"`` it wins all the same where it passes, and of the others the one
    that departs least from it, unless the judge finds the request harmful.

    Raises
    ------
    JudgeUnavailable
        The judge failed on every candidate, whatever ``on_unsafe`` says: there is nothing to
        choose by, and no text may leave.
    UnsafeAnswer
        None passes and ``on_unsafe="raise"``.
    """
    eligible = range(len(candidates)) if among is None else among
    judged = [i for i in eligible if candidates[i].failure is None]
    if not judged:
        errors = sorted({c.verdict.error or "" for i in eligible if (c := candidates[i]).verdict})
        raise JudgeUnavailable(
            f"the judge failed on all {len(candidates)} candidates, so none may be shown: "
            + "; ".join(errors or ["it was never asked"])
        )

    def best_of(indices: Sequence[int]) -> int:
        limit = min(candidates[i].score for i in indices) + config.tie_margin
        tied = [i for i in indices if candidates[i].score <= limit]
        return max(tied, key=lambda i: (*likelihood(candidates[i]), -i))

    harmful = _request_is_harmful(candidates, config)
    passing = [i for i in judged if _passes(candidates[i], config, harmful=harmful)]
    if passing:
        allowed = [i for i in passing if says_something(candidates[i], config)] or passing
        if config.selection == "least_steered" and not harmful:
            best = min(allowed, key=lambda i: (*_steering(candidates[i]), candidates[i].score, i))
            return Selection(best, _how_little(candidates, best, config))
        best = best_of(allowed)
        return Selection(best, _because(candidates, best, config, "passes"))
    # What is shown although it does not pass was steered at least, where anything was.
    best = best_of([i for i in judged if not candidates[i].unsteered] or judged)
    if config.on_unsafe == "safest":
        return Selection(best, _because(candidates, best, config, "is shown although none passes"))
    lowest = (
        f"the lowest of {len(candidates)} scores is {min(candidates[i].score for i in judged):.2f}"
    )
    none = f"no candidate passes: {lowest}, above the threshold of {config.threshold:g}"
    if config.on_unsafe == "raise":
        raise UnsafeAnswer(none)
    return Selection(None, f"{none}; answered with the fixed refusal")


def likelihood(candidate: Candidate) -> tuple[bool, float]:
    """Return what ties go by: the mixed log-probability; none was mixed of an unsteered one."""
    return not candidate.unsteered, candidate.logprob


def says_something(candidate: Candidate, config: BeamConfig) -> bool:
    """Whether a candidate has text; where stop strings only cut, what they cut off counts."""
    return bool((candidate.text if config.stop_ends else candidate.judged_text).strip())


def _request_is_harmful(candidates: Sequence[Candidate], config: BeamConfig) -> bool:
    """Whether the judge says so of the request, beside any of the candidates."""
    told = [c.verdict.request_harm for c in candidates if c.verdict is not None]
    return any(harm is not None and harm > config.request_threshold for harm in told)


def _passes(candidate: Candidate, config: BeamConfig, *, harmful: bool) -> bool:
    if not candidate.unsteered:
        return candidate.passes(config.threshold)
    clearly = min(config.unsteered_threshold, config.threshold)
    return not harmful and candidate.passes(clearly)


def _steering(candidate: Candidate) -> tuple[bool, int, float]:
    return not candidate.unsteered, candidate.departures, candidate.departure


def _because(candidates: Sequence[Candidate], best: int, config: BeamConfig, how: str) -> str:
    return (
        f"beam {best} {how}: score {candidates[best].score:.2f}, lowest of {len(candidates)} "
        f"within {config.tie_margin:g} (threshold {config.threshold:g})"
    )


def _how_little(candidates: Sequence[Candidate], best: int, config: BeamConfig) -> str:
    chosen = candidates[best]
    told = chosen.verdict is not None and chosen.verdict.request_harm is not None
    of_request = "" if told else "; the judge says nothing of the request"
    if chosen.unsteered:
        limit = min(config.unsteered_threshold, config.threshold)
        return (
            f"beam {best} is the target's own and clearly safe: score {chosen.score:.2f} "
            f"(threshold {limit:g}){of_request}"
        )
    return (
        f"beam {best} departs least from the target of those that pass: {chosen.departures} "
        f"tokens, {chosen.departure:.2f} nats; score {chosen.score:.2f} "
        f"(threshold {config.threshold:g}){of_request}"
    )
