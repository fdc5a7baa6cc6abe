"""Points of a sweep that need not be decoded anew.

Beams are independent of each other, and the K best openings are the first K of any larger
number. So the candidates of K = 3 are the first three of K = 8, word for word; what the target says
by itself is beside them or not; and a threshold only changes the choice among them: one decoding
serves them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, cast

from alignbeam.eval.methods.judged import AlignBeamMethod, beam_of, beam_settings
from alignbeam.eval.methods.protocol import (
    Answer,
    Answers,
    Method,
    Models,
    candidate_record,
    step_record,
)
from alignbeam.judge.selection import select
from alignbeam.models.conversation import Message
from alignbeam.result import Result

#: Settings that change nothing of the candidates that two points have both.
_AFTER: Final = (
    "beams",
    "threshold",
    "tie_margin",
    "on_unsafe",
    "unsteered",
    "unsteered_threshold",
    "request_threshold",
    "selection",
)
#: Selections, those that need more measured of a candidate last.
_MEASURED: Final = ("safest", "least_steered")


def shares_work(first: Method, second: Method) -> bool:
    """Whether the two differ in nothing but what is done with the same candidates.

    Unmixed decoding is left out: with a single beam it may open with an end token, with several
    it may not. So is what gates may let go, for the same reason, and what is given up early.
    """
    if not isinstance(first, AlignBeamMethod) or not isinstance(second, AlignBeamMethod):
        return False
    alone = first.mix_steps == 0 or first.gate or first.early_every > 0
    return not alone and _decoding(first) == _decoding(second)


def answer_together(
    methods: Sequence[Method], models: Models, prompts: Sequence[list[Message]]
) -> list[Answers]:
    """Answer one batch for methods that share their work; one ``Answers`` for each."""
    if len(methods) == 1:
        return [methods[0].answer(models, prompts)]
    points = [cast(AlignBeamMethod, m) for m in methods]
    most = max(point.beams for point in points)
    lead = {
        **beam_settings(points[0]),
        "beams": most,
        "unsteered": any(point.unsteered for point in points),
        "selection": max((point.selection for point in points), key=_MEASURED.index),
        "on_unsafe": "safest",
    }
    results = beam_of(points[0], models).generate_batch(prompts, lead, batch_size=len(prompts))
    timings = results[0].timings
    return [Answers([_cut(r, p, models) for r in results], timings, shared=True) for p in points]


def _cut(result: Result, point: AlignBeamMethod, models: Models) -> Answer:
    """Return the answer that fewer beams or another threshold would have given."""
    steered = [c for c in result.candidates if not c.unsteered]
    own = [c for c in result.candidates if c.unsteered and point.unsteered]
    candidates = [*steered[: point.beams], *own]
    config = models.config.replace(**beam_settings(point))
    selection = select(candidates, config)
    chosen = None if selection.chosen is None else candidates[selection.chosen]
    return Answer(
        text=config.refusal_text if chosen is None else chosen.text,
        finish_reason="content_filter" if chosen is None else chosen.finish_reason,
        candidates=tuple(candidate_record(c) for c in candidates),
        chosen=selection.chosen,
        reason=selection.reason,
        trace=tuple(step_record(s) for s in result.trace if s.beam < point.beams),
    )


def _decoding(method: AlignBeamMethod) -> dict[str, object]:
    return {key: value for key, value in method.settings.items() if key not in _AFTER}
