"""The bridge bench: building one from nothing, and loading it from the cache.

Each figure is taken in fresh processes, so that nothing is memoised: ``cold`` with an empty cache
folder, ``load`` with the file there (fingerprinting both tokenizers included), ``reload`` again in
the process that has loaded before. The tokenizers themselves are loaded beforehand, untimed.
A loaded bridge is compared with the built one before its time counts. Needs the real
vocabularies (``ALIGNBEAM_VOCABS``). Rows go to ``results/bridge.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rows
import torch

VOCABS = Path(
    os.environ.get("ALIGNBEAM_VOCABS") or Path(__file__).resolve().parents[2] / "shared" / "vocabs"
)
PAIRS = (
    ("qwen2", "llama-bpe"),
    ("llama-bpe", "qwen2"),
    ("qwen2", "llama-spm"),
    ("phi-3", "deepseek-coder"),
    ("llama-spm", "gpt-2"),
)
# Logit columns of the models; elsewhere the head is as wide as the tokenizer.
HEADS = {"qwen2": 151936, "phi-3": 32064, "deepseek-coder": 32256}


@dataclass(frozen=True)
class BridgeRow:
    """One pair; wall-clock milliseconds over ``runs`` processes; entries by kind."""

    anchor: str
    target: str
    anchor_width: int
    target_width: int
    runs: int
    load_average: float
    cold_ms_p20: float
    cold_ms_p50: float
    cold_ms_p80: float
    cold_cpu_ms_p50: float
    load_ms_p20: float
    load_ms_p50: float
    load_ms_p80: float
    reload_ms_p50: float
    kinds: dict[str, int]


def one_build(anchor: str, target: str, folder: str) -> dict[str, Any]:
    """Build or load once in this process, then load again; called in a process of its own."""
    from transformers import AutoTokenizer

    from alignbeam.vocab.bridge import Bridge
    from alignbeam.vocab.vocabulary import Vocabulary

    pair = [AutoTokenizer.from_pretrained(VOCABS / name) for name in (anchor, target)]
    widths = [HEADS.get(name, len(t)) for name, t in zip((anchor, target), pair, strict=True)]

    def timed() -> tuple[float, float, Bridge]:
        wall, cpu = time.perf_counter(), time.process_time()
        bridge = Bridge.build(*map(Vocabulary.of, pair, widths), cache_dir=folder)
        return 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu), bridge

    first_ms, first_cpu_ms, first = timed()
    again_ms, _, again = timed()
    if not torch.equal(first.table, again.table):
        raise SystemExit(f"{anchor} -> {target}: the loaded bridge differs from the built one")
    kinds = {kind.name: part.count for kind, part in first.coverage().kinds.items()}
    return {
        "first_ms": first_ms,
        "first_cpu_ms": first_cpu_ms,
        "again_ms": again_ms,
        "widths": widths,
        "kinds": kinds,
    }


def in_new_process(anchor: str, target: str, folder: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", anchor, target, folder]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(anchor: str, target: str, runs: int) -> BridgeRow:
    cold, load = [], []
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            cold.append(in_new_process(anchor, target, folder))
            load.append(in_new_process(anchor, target, folder))
    if any(run["kinds"] != cold[0]["kinds"] for run in cold + load):
        raise SystemExit(f"{anchor} -> {target}: two builds differ")
    cold_ms = quantiles([run["first_ms"] for run in cold])
    load_ms = quantiles([run["first_ms"] for run in load])
    return BridgeRow(
        anchor,
        target,
        *cold[0]["widths"],
        runs,
        round(os.getloadavg()[0], 1),
        *cold_ms,
        round(statistics.median(run["first_cpu_ms"] for run in cold), 1),
        *load_ms,
        round(statistics.median(run["again_ms"] for run in load), 1),
        cold[0]["kinds"],
    )


def quantiles(values: list[float]) -> tuple[float, float, float]:
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return round(tenths[1], 1), round(tenths[4], 1), round(tenths[7], 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--one", nargs=3, metavar=("ANCHOR", "TARGET", "FOLDER"))
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one_build(*args.one)))
        return
    if args.runs < 2:
        parser.error("--runs must be at least 2: the row holds quantiles")
    if not VOCABS.is_dir():
        raise SystemExit("no real vocabularies: set ALIGNBEAM_VOCABS to their folder")
    measured = []
    for anchor, target in PAIRS:
        row = measure(anchor, target, args.runs)
        print(
            f"{anchor:>10} -> {target:<14} cold {row.cold_ms_p50:7.0f} ms   "
            f"load {row.load_ms_p50:5.1f} ms   again {row.reload_ms_p50:5.1f} ms"
        )
        measured.append(row)
    print(rows.write("bridge", measured))


if __name__ == "__main__":
    main()
