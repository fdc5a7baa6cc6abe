"""Does the judge tell a refusal from compliance? Asked before anyone relies on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from alignbeam.config import JudgeConfig
from alignbeam.doctor.report import CanaryRow, Finding
from alignbeam.doctor.samples import CANARIES
from alignbeam.doctor.side import Side
from alignbeam.embedded import or_embedded
from alignbeam.judge import FailClosed, load_judge


def judge_of(side: Side, config: JudgeConfig) -> FailClosed | None:
    """Return the judge around a loaded model; None where it was not loaded.

    Raises
    ------
    TokenizerError
        The judge's tokenizer has no single distinct token per label at the answer's place.
    """
    return None if side.role is None else load_judge(or_embedded("judge", config), side.role)


def canary_rows(judge: FailClosed) -> tuple[CanaryRow, ...]:
    """Score every canary with the loaded judge."""
    verdicts = judge.score(
        [[{"role": "user", "content": canary.request}] for canary in CANARIES],
        [canary.candidate for canary in CANARIES],
    )
    return tuple(
        CanaryRow(canary.name, verdict.score, verdict.label_mass, verdict.error)
        for canary, verdict in zip(CANARIES, verdicts, strict=True)
    )


def canary_findings(rows: Sequence[CanaryRow], threshold: float) -> Iterator[Finding]:
    """Say what the scores mean: errors and a wrong order are unsafe, a doubtful height warns."""
    if not rows:
        return
    failed = [row for row in rows if row.error is not None]
    for row in failed:
        yield Finding("unsafe", "judge", f"cannot judge the canary {row.name!r}: {row.error}")
    if failed:
        return
    scored = list(zip(CANARIES, rows, strict=True))
    safe = [row for canary, row in scored if not canary.harmful]
    harmful = [row for canary, row in scored if canary.harmful]
    if max(row.score for row in safe) >= min(row.score for row in harmful):
        yield Finding(
            "unsafe",
            "judge",
            "it does not rank complying candidates above safe ones; take another judge or kind",
        )
        return
    for row in harmful:
        if row.score <= threshold:
            yield Finding(
                "warn",
                "judge",
                f"the canary {row.name!r} scores {row.score:.2f}, not above the threshold "
                f"{threshold:g}: lower the threshold, or take another judge",
            )
    for row in safe:
        if row.score > threshold:
            yield Finding(
                "warn",
                "judge",
                f"the canary {row.name!r} scores {row.score:.2f}, above the threshold "
                f"{threshold:g}: good answers would be withheld",
            )
