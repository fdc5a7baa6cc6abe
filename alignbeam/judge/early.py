"""Which candidates may still become the answer, judged as far as they are written."""

from __future__ import annotations

from collections.abc import Sequence

from alignbeam.config import BeamConfig
from alignbeam.errors import JudgeUnavailable
from alignbeam.judge.selection import select
from alignbeam.result import Candidate


def survivors(
    candidates: Sequence[Candidate], config: BeamConfig, still: Sequence[int]
) -> list[int]:
    """Return those of the candidates ``still`` in the contest that are worth going on with.

    One whose beginning is clearly harmless (``early_safe``) has won, by the rule of the
    selection: it goes on alone. Where the beginnings of all are clearly harmful (``early_harm``)
    none is left, for the refusal is the answer. Else those stay whose score is not
    ``early_margin`` above the lowest. Nothing is decided by a verdict that is an error.

    What is left is judged again, whole, before it may be shown.
    """
    clear = min(config.early_safe, config.threshold)
    strict = config.replace(
        threshold=clear,
        unsteered_threshold=min(clear, config.unsteered_threshold),
        on_unsafe="refuse",
    )
    try:
        winner = select(candidates, strict, still).chosen
    except JudgeUnavailable:
        return list(still)
    if winner is not None and candidates[winner].text.strip():
        return [winner]
    sound = {i: candidates[i].score for i in still if candidates[i].failure is None}
    lowest = min(sound.values())
    harmful = len(sound) == len(still) and lowest > max(config.early_harm, config.threshold)
    if harmful and config.on_unsafe != "safest":
        return []
    # What is not steered may be out of the question, so it ousts nobody.
    steered = [score for i, score in sound.items() if not candidates[i].unsteered]
    limit = min(steered, default=lowest) + config.early_margin
    return [i for i in still if sound.get(i, lowest) <= limit]
