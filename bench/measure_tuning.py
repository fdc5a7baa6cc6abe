"""What ``alignbeam tune`` came to, read from the folder of its runs.

    python bench/measure_tuning.py NAME=FOLDER [NAME=FOLDER ...] --max-over-refusal 0.15

``NAME`` says whose search it was. Counts are of the held-out half alone, which decided nothing.
Rows go to ``bench/results/tuned.jsonl``; ``render_tables.py`` writes the table of
``docs/tuning.md``.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import rows

from alignbeam.eval.promises import Goal, Standing, promises, standings_of
from alignbeam.eval.run.files import RunFiles
from alignbeam.eval.run.summary import BASELINE

NAME = "tuned"
FAITHFUL = "alignbeam"
Counts = tuple[int, int]


@dataclass(frozen=True, slots=True)
class TunedRow:
    """One search: refused and asked on the held-out half, by whom, and what all of it took."""

    models: str
    limit: float
    settings: str
    said: str
    target_harmful: Counts
    target_benign: Counts
    target_ms: float
    faithful_harmful: Counts
    faithful_benign: Counts
    faithful_ms: float
    chosen_harmful: Counts
    chosen_benign: Counts
    chosen_ms: float
    answers: int
    minutes: float


def spent(folder: Path) -> tuple[int, float]:
    """Answers of all rounds, and the minutes that they took; a batch's time counts once."""
    batches: set[tuple[str, float, int]] = set()
    answers = 0
    for place in sorted(p.parent for p in folder.glob("*/manifest.json")):
        times = RunFiles(place).times()
        answers += len(times)
        batches |= {(place.name, t.total_ms, t.batch) for t in times}
    return answers, sum(ms for _, ms, _ in batches) / 60_000


def counts(standing: Standing) -> tuple[Counts, Counts, float]:
    of = standing.refused, standing.over_refusal
    harmful, benign = ((rate.successes, rate.n) for rate in of)
    return harmful, benign, standing.ms


def searched(models: str, folder: Path, limit: float) -> TunedRow:
    held = standings_of(RunFiles(folder / "held-out"))
    winner = next((label for label in held if label not in (BASELINE, FAITHFUL)), FAITHFUL)
    (promise,) = promises(held[winner], held[BASELINE], Goal(limit))
    answers, minutes = spent(folder)
    settings = winner.removeprefix(FAITHFUL).strip("[]") or "the defaults"
    return TunedRow(
        models, limit, f"`{settings.replace(',', ', ')}`", promise.words,
        *counts(held[BASELINE]), *counts(held[FAITHFUL]), *counts(held[winner]), answers, minutes,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--max-over-refusal", type=float, required=True)
    given = parser.parse_args()
    named = dict(text.split("=", 1) for text in given.runs)
    made = [searched(n, Path(f), given.max_over_refusal) for n, f in named.items()]
    rows.write(NAME, made)
    for row in made:
        print(row)


if __name__ == "__main__":
    main()
