"""What less steering buys and costs on the embedded trio: own answers, gates, early decisions.

    python bench/bench_steering.py [--count 40] [--only LABEL]

Each variant answers the same harmful (HarmBench), benign (XSTest) and word-problem (GSM8K-like)
requests. A row says how many of each were refused by the strict reading, how many answers were the
target's own, how many requests the gates let go, how many tokens were decoded for all candidates,
and how many answers differ from the faithful variant's. ``bench/results/steering.jsonl``;
``render_tables.py`` writes the table of ``docs/tuning.md``.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import rows
import torch

from alignbeam import AlignBeam, BeamConfig, Result
from alignbeam.config import GateConfig
from alignbeam.eval.datasets import dataset, locate, take
from alignbeam.eval.refusal import classify_reply

SETS: Final = {"harmful": "harmbench-test", "benign": "xstest-safe", "utility": "word-problems"}
OWN: Final = {"unsteered": True, "selection": "least_steered"}
#: Settings of an answer, and of the gates.
VARIANTS: Final[dict[str, tuple[dict[str, Any], dict[str, Any]]]] = {
    "faithful": ({}, {}),
    "best-of-K, no anchor": ({"mix_steps": 0}, {}),
    "alpha = 0.3": ({"alpha": 0.3}, {}),
    "least steered": (OWN, {}),
    "least steered, own at most 1.1": ({**OWN, "unsteered_threshold": 1.1}, {}),
    "gate: divergence at most 0.2": ({}, {"use": "divergence", "divergence": 0.2}),
    "gate: refusals at most 0.05": ({}, {"use": "refusals", "refusals": 0.05}),
    "gate: agreement over 2 steps": ({}, {"use": "agreement"}),
    "early decisions, every 8 tokens": ({"early_every": 8}, {}),
}


@dataclass(frozen=True, slots=True)
class Steering:
    """One variant; counts of requests, and of tokens over all candidates."""

    variant: str
    settings: dict[str, Any]
    gate: dict[str, Any]
    requests: int
    harmful_refused: int
    benign_refused: int
    own: int
    let_go: int
    tokens: int
    changed: int


def prompts(count: int) -> dict[str, list[str]]:
    given = os.environ.get("ALIGNBEAM_DATA")
    folder = Path(given) if given else rows.RESULTS.parents[2] / "shared" / "data"
    found = {}
    for label, name in SETS.items():
        declared = dataset(name)
        samples = take(declared.samples(locate(declared, folder)), count, seed=0)
        found[label] = [str(sample.prompt) for sample in samples]
    return found


def refused(results: list[Result]) -> int:
    return sum(classify_reply(result.text) == "refused" for result in results)


def measure(beam: AlignBeam, asked: dict[str, list[str]], variant: str) -> dict[str, list[Result]]:
    settings, gate = VARIANTS[variant]
    under = beam.with_gate(GateConfig(**gate))
    return {label: under.generate_batch(texts, settings) for label, texts in asked.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=40, help="requests of each set")
    parser.add_argument("--only", help="one variant beside the faithful one; no rows are kept")
    given = parser.parse_args()
    torch.set_num_threads(1)
    beam = AlignBeam.from_pretrained(config=BeamConfig(max_new_tokens=56, wishes=0))
    asked = prompts(given.count)
    faithful = measure(beam, asked, "faithful")
    found = []
    for variant, (settings, gate) in VARIANTS.items():
        if given.only not in (None, variant):
            continue
        by_label = faithful if variant == "faithful" else measure(beam, asked, variant)
        results = [r for group in by_label.values() for r in group]
        before = [r for group in faithful.values() for r in group]
        row = Steering(
            variant,
            settings,
            gate,
            given.count,
            refused(by_label["harmful"]),
            refused(by_label["benign"]),
            sum(r.chosen is not None and r.candidates[r.chosen].unsteered for r in results),
            sum(r.let_go for r in results),
            sum(len(c.token_ids) for r in results for c in r.candidates),
            sum(a.text != b.text for a, b in zip(results, before, strict=True)),
        )
        print(row, flush=True)
        found.append(row)
    if given.only is None:
        rows.write("steering", found)


if __name__ == "__main__":
    main()
