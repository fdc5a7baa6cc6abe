"""A report's tables as CSV: the very numbers of ``alignbeam.eval.run.summary``, unrounded."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from alignbeam.eval.report.content import fields
from alignbeam.eval.report.snapshot import Snapshot
from alignbeam.eval.run.summary import agreements, figures, latencies

_FIGURES: Final = (
    *("run", "method", "dataset", "label", "scorer", "measure"),
    *("successes", "n", "value", "low", "high"),
    *("only_target", "only_method", "difference", "difference_low", "difference_high", "p_value"),
)
_TIMES: Final = ("run", "method", "mean_ms", "low_ms", "high_ms", "batch", "shared")
_AGREEMENTS: Final = ("run", "first", "second", "n", "agreed", "value", "low", "high", "kappa")


def write_tables(runs: Sequence[Snapshot], folder: Path) -> list[Path]:
    """Write ``figures.csv``, ``times.csv`` and ``agreements.csv``; an empty cell is unknown."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        _write(folder / "figures.csv", _FIGURES, _figure_rows(runs)),
        _write(folder / "times.csv", _TIMES, _time_rows(runs)),
        _write(folder / "agreements.csv", _AGREEMENTS, _agreement_rows(runs)),
    ]


def _figure_rows(runs: Sequence[Snapshot]) -> Iterable[dict[str, Any]]:
    for run in runs:
        for f in figures(run):
            row = {"run": run.ident, **fields(f, *_FIGURES[1:6]), **fields(f.rate, *_FIGURES[6:11])}
            if f.against is not None:
                row |= {
                    "only_target": f.against.only_first,
                    "only_method": f.against.only_second,
                    "difference": f.against.difference,
                    "difference_low": f.against.low,
                    "difference_high": f.against.high,
                    "p_value": f.against.p_value,
                }
            yield row


def _time_rows(runs: Sequence[Snapshot]) -> Iterable[dict[str, Any]]:
    for run in runs:
        for t in latencies(run):
            yield {"run": run.ident, **fields(t, *_TIMES[1:])}


def _agreement_rows(runs: Sequence[Snapshot]) -> Iterable[dict[str, Any]]:
    for run in runs:
        for a in agreements(run):
            yield {
                "run": run.ident,
                **fields(a, "first", "second", "n"),
                "agreed": a.agreed.successes,
                **fields(a.agreed, "value", "low", "high"),
                "kappa": a.kappa if math.isfinite(a.kappa) else "",
            }


def _write(path: Path, head: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Path:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, head, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path
