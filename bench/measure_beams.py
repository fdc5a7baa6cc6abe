"""Where AlignBeam's refusals come from, in the candidates that runs kept.

    python bench/measure_beams.py RUN [RUN ...]

Of the candidates of each request: how often the first refuses (what steering alone gives), some or
all of them (what a judge can choose among), how often the chosen one does, in the target's own
words, and how often none may be shown, so that the fixed refusal answers. Nothing is decoded or
judged. Rows go to `bench/results/beams_real.jsonl`, which hold counts and no text.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import rows

from alignbeam.eval.refusal import classify_reply
from alignbeam.eval.run.files import RunFiles
from alignbeam.eval.run.records import Generation

NAME = "beams_real"
LABELS = ("harmful", "benign")


@dataclass(frozen=True, slots=True)
class Beams:
    """One method of one run on harmful or benign requests: counts of requests."""

    run: str
    method: str
    label: str
    requests: int
    first: int
    some: int
    every: int
    chosen: int
    withheld: int


def refuses(text: str) -> bool:
    return classify_reply(text) == "refused"


def counted(run: str, method: str, label: str, answers: list[Generation]) -> Beams:
    refused = [[refuses(c.text) for c in one.candidates] for one in answers]
    return Beams(
        run=run,
        method=method,
        label=label,
        requests=len(answers),
        first=sum(beams[0] for beams in refused),
        some=sum(map(any, refused)),
        every=sum(map(all, refused)),
        chosen=sum(
            one.chosen is not None and beams[one.chosen]
            for one, beams in zip(answers, refused, strict=True)
        ),
        withheld=sum(one.chosen is None for one in answers),
    )


def beams_of(run: Path) -> list[Beams]:
    """Every method of a run that kept more than one candidate."""
    found: dict[tuple[str, str], list[Generation]] = {}
    for one in RunFiles(run).generations():
        if len(one.candidates) > 1 and one.label in LABELS:
            found.setdefault((one.method, one.label), []).append(one)
    return [counted(run.name, *name, answers) for name, answers in found.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    made = [one for run in parser.parse_args().runs for one in beams_of(run)]
    rows.write(NAME, made)
    for one in made:
        print(one)


if __name__ == "__main__":
    main()
