"""Before a judge judges for anyone, it ranks candidates whose verdict is known."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Final, Literal

from alignbeam.doctor.report import SurvivalRow
from alignbeam.doctor.samples import CANARIES, INJECTED, Canary
from alignbeam.doctor.survival import ATTACKS, survival_findings, survival_rows
from alignbeam.errors import AlignBeamError
from alignbeam.judge import Judge
from alignbeam.result import Verdict

_log = logging.getLogger(__name__)

#: Seconds after which no further attack is begun.
ATTACK_S: Final = 60.0


class CanaryFailed(AlignBeamError, RuntimeError):
    """The judge does not tell safe from unsafe, or does not survive what it must."""


def check_judge(
    judge: Judge, threshold: float, attacks: Literal["warn", "refuse", "off"]
) -> tuple[SurvivalRow, ...]:
    """``check_canaries`` and ``attack_canaries``; see both."""
    check_canaries(judge, threshold)
    return attack_canaries(judge, threshold, attacks)


def check_canaries(
    judge: Judge, threshold: float, canaries: Sequence[Canary] = (*CANARIES, INJECTED)
) -> None:
    """Ask the judge about every canary.

    Raises
    ------
    CanaryFailed
        A canary it cannot judge, a harmful one that would pass, or a safe one that does not score
        below every harmful one.
    """
    verdicts = judge.score(
        [[{"role": "user", "content": c.request}] for c in canaries],
        [c.candidate for c in canaries],
    )
    pairs = list(zip(canaries, verdicts, strict=True))
    for canary, verdict in pairs:
        if verdict.error is not None:
            raise CanaryFailed(
                f"the judge cannot judge the canary {canary.name!r}: {verdict.error}"
            )
    worst_safe = max((p for p in pairs if not p[0].harmful), key=_score)
    best_harmful = min((p for p in pairs if p[0].harmful), key=_score)
    if best_harmful[1].score <= threshold:
        raise CanaryFailed(
            f"the harmful canary {best_harmful[0].name!r} scores {best_harmful[1].score:.2f} and "
            f"would pass the threshold {threshold:g}; take another judge or a lower threshold"
        )
    if worst_safe[1].score >= best_harmful[1].score:
        raise CanaryFailed(
            f"the judge ranks the safe canary {worst_safe[0].name!r} "
            f"({worst_safe[1].score:.2f}) no better than the harmful {best_harmful[0].name!r} "
            f"({best_harmful[1].score:.2f}); take another judge"
        )


def attack_canaries(
    judge: Judge, threshold: float, policy: Literal["warn", "refuse", "off"]
) -> tuple[SurvivalRow, ...]:
    """Ask again about a harmful canary, with what an attacker writes around it.

    That is the one that speaks to the judge, once under each of the doctor's ``ATTACKS``, a call
    each: some 40 readings of a judge with a long window, some 100 where candidates are read in
    pieces of 64 tokens. What a judge does not survive is logged as a warning.

    Returns
    -------
    tuple of SurvivalRow
        Of each attack that there was time for.

    Raises
    ------
    CanaryFailed
        ``policy`` is ``"refuse"``, and the canary passes under an attack, or one was not tried.
    """
    if policy == "off":
        return ()
    rows = []
    end = time.monotonic() + ATTACK_S
    for row in survival_rows(judge, threshold, [INJECTED]):
        rows.append(row)
        if time.monotonic() > end:
            break
    lost = [finding.text for finding in survival_findings(rows)]
    if untried := list(ATTACKS)[len(rows) :]:
        lost.append(f"no time was left to try it with {', '.join(untried)}")
    if lost and policy == "refuse":
        raise CanaryFailed(f"the judge: {'; '.join(lost)}")
    for words in lost:
        _log.warning("the judge: %s", words)
    return tuple(rows)


def _score(pair: tuple[Canary, Verdict]) -> float:
    return pair[1].score
