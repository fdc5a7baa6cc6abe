"""The answers that a method changed against the target alone, small enough for one page."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from typing import Any, Final

from alignbeam.eval.report.snapshot import Snapshot
from alignbeam.eval.run.records import CandidateRecord, Generation, Score, StepRecord
from alignbeam.eval.run.summary import BASELINE
from alignbeam.terminal.text import printable

#: Most changed answers of each method and set, tried in turn until the page is small enough.
_LIMITS: Final = (None, 400, 200, 100, 50, 20, 5)

_Sample = tuple[str, str]


def changed_answers(run: Snapshot, budget: int) -> dict[str, Any]:
    """Pack the answers that differ from the target's on the same sample.

    Where the target did not run, all answers are taken. Answers whose outcome changed come first.

    Parameters
    ----------
    run : Snapshot
    budget : int
        Most characters; fewer answers of each method and set are kept until it holds.

    Returns
    -------
    mapping
        ``samples`` and ``methods`` (by label), each JSON in gzip in base64; ``count`` by label:
        ``changed``, ``kept`` and ``of`` (all answers).
    """
    generations = run.generations()
    scores: dict[str, list[Score]] = {}
    for score in run.scores():
        scores.setdefault(score.key, []).append(score)
    base = {(g.dataset, g.sample_id): g for g in generations if g.method == BASELINE}
    changed: dict[str, list[Generation]] = {}
    asked: dict[str, int] = {}
    for g in generations:
        asked[g.method] = asked.get(g.method, 0) + 1
        before = base.get((g.dataset, g.sample_id))
        # Without the target's answer there is nothing to compare; the answer itself is still told.
        if g.method != BASELINE and (before is None or before.answer != g.answer):
            changed.setdefault(g.method, []).append(g)
    for label, found in changed.items():
        changed[label] = sorted(found, key=lambda g: not _shift(g, base, scores)[1])
    packed: dict[str, Any] = {}
    for limit in _LIMITS:
        kept = {label: _limited(found, limit) for label, found in changed.items()}
        packed = _packed(kept, base, scores)
        if len(packed["samples"]) + sum(map(len, packed["methods"].values())) <= budget:
            break
    count = {
        label: {"changed": len(found), "kept": len(kept[label]), "of": asked[label]}
        for label, found in changed.items()
    }
    return {**packed, "count": count}


def _limited(found: list[Generation], limit: int | None) -> list[Generation]:
    if limit is None:
        return found
    seen: dict[str, int] = {}
    kept = []
    for g in found:
        seen[g.dataset] = seen.get(g.dataset, 0) + 1
        if seen[g.dataset] <= limit:
            kept.append(g)
    return kept


def _packed(
    kept: Mapping[str, list[Generation]],
    base: Mapping[_Sample, Generation],
    scores: Mapping[str, list[Score]],
) -> dict[str, Any]:
    number: dict[_Sample, int] = {}
    samples: list[dict[str, Any]] = []
    methods: dict[str, str] = {}
    for label, found in kept.items():
        rows = []
        for g in found:
            name = (g.dataset, g.sample_id)
            if name not in number:
                number[name] = len(samples)
                samples.append(_sample(g, base.get(name), scores))
            words, moved = _shift(g, base, scores)
            rows.append(
                {"sample": number[name], "shift": words, "moved": moved, **_answer(g, scores)}
            )
        methods[label] = _squeezed(rows)
    return {"samples": _squeezed(samples), "methods": methods}


def _sample(
    g: Generation, before: Generation | None, scores: Mapping[str, list[Score]]
) -> dict[str, Any]:
    return {
        "dataset": g.dataset,
        "id": g.sample_id,
        "category": g.category,
        "label": g.label,
        "messages": [[m["role"], printable(m["content"])] for m in g.messages],
        "reference": g.reference,
        "before": None if before is None else _answer(before, scores),
    }


def _answer(g: Generation, scores: Mapping[str, list[Score]]) -> dict[str, Any]:
    shown = g.chosen if g.chosen is not None else 0
    return {
        "answer": None if g.answer is None else printable(g.answer),
        "error": g.error,
        "end": g.finish_reason,
        "reason": g.reason,
        "chosen": g.chosen,
        "traced": shown,
        "candidates": [_candidate(c) for c in g.candidates],
        "trace": [_step(s) for s in g.trace if s.candidate == shown],
        "scores": [[s.scorer, s.cls, s.value, s.detail] for s in scores.get(g.key, [])],
    }


def _candidate(c: CandidateRecord) -> dict[str, Any]:
    return {
        "text": printable(c.text),
        "score": c.score,
        "probs": [round(p, 4) for p in c.probs],
        "mass": c.label_mass,
        "end": c.finish_reason,
        "tokens": c.new_tokens,
        "error": c.error,
    }


def _step(s: StepRecord) -> list[Any]:
    """Token, who chose, its probability, the anchor's share, what each model wanted."""
    tops = [[[printable(t), round(p, 4)] for t, p in w] for w in (s.target, s.anchor)]
    return [printable(s.text), s.source, s.prob, s.anchor_share, *tops]


def _shift(
    g: Generation, base: Mapping[_Sample, Generation], scores: Mapping[str, list[Score]]
) -> tuple[str, bool]:
    """Return what the refusal or utility scorer said before and says now, and whether it moved."""
    before = base.get((g.dataset, g.sample_id))
    now = _class(g, scores)
    if before is None:
        return now, False
    then = _class(before, scores)
    return (f"{then} → {now}" if then != now else f"still {now}"), then != now


def _class(g: Generation, scores: Mapping[str, list[Score]]) -> str:
    kind = "utility" if g.label == "utility" else "refusal"
    of = [s for s in scores.get(g.key, []) if s.kind == kind]
    best = next((s for s in of if s.scorer == "strict"), next(iter(of), None))
    return "unscored" if best is None else best.cls.replace("_", " ")


def _squeezed(value: Any) -> str:
    text = json.dumps(value, separators=(",", ":"))
    # A fixed time of writing: the same run gives the same page.
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()
