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
        return max(tied, key=lambda i: (candidates[i].logprob, -i))

    passing = [i for i in judged if candidates[i].passes(config.threshold)]
    if passing:
        with_text = [i for i in passing if candidates[i].text.strip()]
        best = best_of(with_text or passing)
        return Selection(best, _because(candidates, best, config, "passes"))
    best = best_of(judged)
    if config.on_unsafe == "safest":
        return Selection(best, _because(candidates, best, config, "is shown although none passes"))
    lowest = (
        f"the lowest of {len(candidates)} scores is {min(candidates[i].score for i in judged):.2f}"
    )
    none = f"no candidate passes: {lowest}, above the threshold of {config.threshold:g}"
    if config.on_unsafe == "raise":
        raise UnsafeAnswer(none)
    return Selection(None, f"{none}; answered with the fixed refusal")


def _because(candidates: Sequence[Candidate], best: int, config: BeamConfig, how: str) -> str:
    return (
        f"beam {best} {how}: score {candidates[best].score:.2f}, lowest of {len(candidates)} "
        f"within {config.tie_margin:g} (threshold {config.threshold:g})"
    )
