"""Small real runs to report on: models with written-down distributions, hostile requests."""

from __future__ import annotations

import json
from pathlib import Path

from eval_models import START, bigram_models

from alignbeam.eval.run.run import generate, prepare, score
from alignbeam.eval.suite import load_suite
from alignbeam.eval.sweep import sweep_suite

HOSTILE = "</script><img src=x onerror=alert(1)>"
SUITE = """
name = "small"
seed = 3
batch_size = 4
[beam]
max_new_tokens = 10
[[datasets]]
name = "a-set-with-a-name-that-is-wider-than-the-screen-of-a-telephone"
path = "harmful.jsonl"
label = "harmful"
category = "category"
[[datasets]]
path = "benign.jsonl"
label = "benign"
[[datasets]]
path = "sums.jsonl"
label = "utility"
scoring = "number"
reference = "answer"
[[methods]]
method = "target"
[[methods]]
method = "best-of-k"
[[methods]]
method = "alignbeam"
[[scorers]]
kind = "strict"
[[scorers]]
kind = "strings"
[[scorers]]
kind = "judge"
"""
#: The target says "7", which the judge calls harmful; the anchor says "N".
TARGET = {START: {"7": 0.6, "N": 0.3, "x": 0.05}}
ANCHOR = {START: {"N": 0.9, "7": 0.05, "x": 0.04}}


def make_run(folder: Path) -> Path:
    """Answer and score three small sets with three methods; return the run's folder."""
    return _run(folder, _suite(folder), None)


def make_sweep(folder: Path) -> Path:
    """Vary one setting over the same sets."""
    suite, axes = sweep_suite(_suite(folder), {"mix_steps": (0, 1, 2), "mix": ("linear", "log")})
    return _run(folder, suite, axes)


def _suite(folder: Path):
    for name, count in {"harmful": 8, "benign": 5, "sums": 4}.items():
        rows = [{"prompt": f"{name} {i} {HOSTILE}", "answer": "7", "category": f"c{i % 2}"}
                for i in range(count)]  # fmt: skip
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (folder / "suite.toml").write_text(SUITE)
    return load_suite(str(folder / "suite.toml"))


def _run(folder: Path, suite, sweep):
    models = bigram_models(TARGET, ANCHOR, judge=lambda text: 4.0 if text.startswith("7") else 1.0)
    out = folder / suite.name
    kind = "eval" if sweep is None else "sweep"
    prepared = prepare(suite, models=models, kind=kind, sweep=sweep)
    generate(prepared, out)
    score(prepared, out)
    return out
