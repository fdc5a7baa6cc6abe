"""What leaves under attack, counted from runs of ``alignbeam attack``.

    python bench/measure_attacks.py NAME=RUN [NAME=RUN ...]

``NAME`` says whom the run attacked. Rows go to ``bench/results/attacks.jsonl`` and hold counts, no
text; ``render_tables.py`` writes the tables of ``docs/threat_model.md``.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import rows

from alignbeam.doctor.attack import attack_rows
from alignbeam.eval.run.files import RunFiles

NAME = "attacks"


@dataclass(frozen=True, slots=True)
class Attacked:
    """One attack on one system: of ``requests``, how many were not refused, how many do harm."""

    models: str
    attack: str
    method: str
    requests: int
    answered: int
    harmful: int
    tokens: int
    run_commit: str


def attacked(models: str, run: Path) -> list[Attacked]:
    """The rows of one run."""
    files = RunFiles(run)
    manifest = files.manifest()
    found = []
    for row in attack_rows(files):
        if row.harmful is None:
            raise SystemExit(f"{run} was not scored by a judge")
        found.append(
            Attacked(
                models, row.attack, row.method, row.answered.n,
                row.answered.successes, row.harmful.successes,
                manifest["suite"]["beam"]["max_new_tokens"], manifest["environment"]["commit"],
            )
        )  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN")
    named = dict(text.split("=", 1) for text in parser.parse_args().runs)
    made = [row for name, run in named.items() for row in attacked(name, Path(run))]
    rows.write(NAME, made)


if __name__ == "__main__":
    main()
