"""What the page says of one run, as plain data: figures, axes, histograms, conditions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from alignbeam.eval.report.snapshot import Snapshot
from alignbeam.eval.run.summary import (
    BASELINE,
    Figure,
    agreements,
    categories,
    figures,
    latencies,
    pick,
)
from alignbeam.eval.scorers import HARM_THRESHOLD
from alignbeam.eval.stats import Rate
from alignbeam.result import plain

#: Harm scores run from 1 to 5; the threshold of 2.5 falls between two bins.
_BINS: Final = 16
_LOWEST, _HIGHEST = 1.0, 5.0


@dataclasses.dataclass(frozen=True, slots=True)
class Column:
    """One column of the headline table.

    Attributes
    ----------
    ident : str
        ``safety``, ``mixed``, ``harm:SCORER``, ``overrefusal``, ``utility``.
    head : str
    better : {"high", "low"}
        Which end is good.
    scorer : str
    cells : mapping of method label to Figure
    """

    ident: str
    head: str
    better: str
    scorer: str
    cells: Mapping[str, Figure]


def headline(run: Snapshot, found: Sequence[Figure]) -> list[Column]:
    """Return the columns that a run can fill, safety first."""
    scorers = run.manifest()["scorers"]
    refusals = [s["name"] for s in scorers if s["kind"] == "refusal"]
    refusal = "strict" if "strict" in refusals else next(iter(refusals), "")
    harm = [s["name"] for s in scorers if s["kind"] == "harm"]
    utility = [s["name"] for s in scorers if s["kind"] == "utility"]
    wanted = [
        ("safety", f"harmful refused ({refusal})", "high", "harmful", "refused", refusal),
        ("mixed", "refused, then complied", "low", "harmful", "refused_then_complied", refusal),
        *((f"harm:{s}", f"harmful by {s}", "low", "harmful", "harmful", s) for s in harm),
        ("overrefusal", f"benign refused ({refusal})", "low", "benign", "refused", refusal),
        *(("utility", "utility: right answers", "high", "utility", "correct", s) for s in utility),
    ]
    columns = []
    for ident, head, better, label, measure, scorer in wanted:
        cells = pick(found, dataset=label, label=label, measure=measure, scorer=scorer)
        if cells:
            columns.append(Column(ident, head, better, scorer, cells))
    return columns


def plane(columns: Sequence[Column]) -> dict[str, tuple[Rate, Rate]]:
    """Return over-refusal and safety of every method that has both."""
    by = {c.ident: c.cells for c in columns}
    safety, over = by.get("safety", {}), by.get("overrefusal", {})
    return {m: (over[m].rate, safety[m].rate) for m in safety if m in over}


def pareto(points: Mapping[str, tuple[Rate, Rate]]) -> list[str]:
    """Return the methods than which none refuses less benign and as much harmful, or the reverse.

    Point estimates are compared, not intervals; in order of growing over-refusal.
    """
    at = {m: (over.value, safety.value) for m, (over, safety) in points.items()}
    front = [
        m
        for m, (x, y) in at.items()
        if not any(a <= x and b >= y and (a, b) != (x, y) for a, b in at.values())
    ]
    return sorted(front, key=lambda m: at[m])


def run_content(run: Snapshot) -> dict[str, Any]:
    """Return everything that the page shows of a run, but the answers."""
    manifest, found = run.manifest(), figures(run)
    columns = headline(run, found)
    points = plane(columns)
    times = {t.method: dataclasses.asdict(t) for t in latencies(run)}
    return {
        "ident": run.ident,
        "title": run.title,
        "kind": manifest["kind"],
        "warnings": run.warnings(),
        "remarks": run.remarks(),
        "baseline": BASELINE,
        "answers": len(run.generations()),
        "methods": manifest["methods"],
        "scorers": manifest["scorers"],
        "columns": [
            fields(c, "ident", "head", "better", "scorer")
            | {"cells": {m: _cell(f) for m, f in c.cells.items()}}
            for c in columns
        ],
        "plane": {m: [_rate(x), _rate(y)] for m, (x, y) in points.items()},
        "pareto": pareto(points),
        "times": times,
        "agreements": [
            fields(a, "first", "second") | {"agreed": _rate(a.agreed), "kappa": plain(a.kappa)}
            for a in agreements(run)
        ],
        "sweep": manifest["sweep"] or [],
        "histograms": _histograms(run),
        "threshold": HARM_THRESHOLD,
        "categories": _categories(run),
        "manifest": manifest,
    }


def fields(record: object, *names: str) -> dict[str, Any]:
    """Return some fields of a record by name."""
    return {name: getattr(record, name) for name in names}


def _rate(rate: Rate) -> list[float | int]:
    """Value, low, high, successes, n: five numbers, for there are thousands of them."""
    return [rate.value, rate.low, rate.high, rate.successes, rate.n]


def _cell(figure: Figure) -> dict[str, Any]:
    against = None if figure.against is None else dataclasses.asdict(figure.against)
    return {"rate": _rate(figure.rate), "against": against}


def _histograms(run: Snapshot) -> list[dict[str, Any]]:
    """Count harm scores in bins: one row a scorer, label of the sets, and method."""
    of = {g.key: g for g in run.generations()}
    width = (_HIGHEST - _LOWEST) / _BINS
    counted: dict[tuple[str, str, str], dict[str, Any]] = {}
    for score in run.scores():
        if score.kind != "harm":
            continue
        g = of[score.key]
        where = (score.scorer, g.label, g.method)
        named = dict(zip(("scorer", "label", "method"), where, strict=True))
        row = counted.setdefault(where, {**named, "bins": [0] * _BINS, "failed": 0})
        if score.value is None:
            row["failed"] += 1
        else:
            # A bin holds its upper edge: 2.5 itself is not above the threshold.
            place = math.ceil((float(score.value) - _LOWEST) / width) - 1
            row["bins"][max(0, min(_BINS - 1, place))] += 1
    return list(counted.values())


def _categories(run: Snapshot) -> list[dict[str, Any]]:
    """Rates by category: one row a set, scorer and measure; sets of one category tell nothing."""
    rows: dict[tuple[str, str, str, str], dict[str, dict[str, list[float | int]]]] = {}
    names: dict[str, set[str]] = {}
    for c in categories(run):
        where = (c.dataset, c.label, c.scorer, c.measure)
        rows.setdefault(where, {}).setdefault(c.method, {})[c.category] = _rate(c.rate)
        names.setdefault(c.dataset, set()).add(c.category)
    keys = ("dataset", "label", "scorer", "measure")
    return [
        dict(zip(keys, where, strict=True))
        | {"categories": sorted(names[where[0]]), "methods": methods}
        for where, methods in rows.items()
        if len(names[where[0]]) > 1
    ]
