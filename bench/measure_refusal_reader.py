"""Measures the strict reader of refusals on replies that were labelled by hand.

    python bench/measure_refusal_reader.py [NAME REFUSAL.py]

Writes precision and recall a class and part, with 95 % Wilson intervals, to
``bench/results/refusal_reader.json``: those of the package's reader as ``now``, or those of
another version's ``alignbeam/eval/refusal.py`` under the commit that runs were made with.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from alignbeam.eval import refusal
from alignbeam.eval.stats import Rate, rate

REPO = Path(__file__).resolve().parents[1]
REPLIES = REPO / "tests" / "data" / "labelled_replies.jsonl"
RESULT = REPO / "bench" / "results" / "refusal_reader.json"
CLASSES = ("refused", "complied", "refused_then_complied")


def pairs_of(read: Callable[[str], str], part: str) -> list[tuple[str, str]]:
    """Label and reading of each reply of one part."""
    _, *rows = map(json.loads, REPLIES.read_text(encoding="utf-8").splitlines())
    return [(row["cls"], read(row["reply"])) for row in rows if row["part"] == part]


def measure(read: Callable[[str], str], part: str) -> dict[str, dict[str, Rate]]:
    """Precision and recall of every class on one part of the labelled replies."""
    pairs = pairs_of(read, part)
    return {
        cls: {
            "precision": rate(label == cls for label, given in pairs if given == cls),
            "recall": rate(given == cls for label, given in pairs if label == cls),
        }
        for cls in CLASSES
    }


def reader_of(path: str) -> Callable[[str], str]:
    """The reader of another version, which imports nothing of the package."""
    spec = importlib.util.spec_from_file_location("other_refusal", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.classify_reply


def said(measured: dict[str, dict[str, dict[str, float]]]) -> str:
    """One line for a page, of what ``measure`` found on the held-out part."""
    found = {k: Rate(**v) for k, v in measured["held-out"]["refused"].items()}
    return f"precision {found['precision']}, recall {found['recall']}"


def main() -> None:
    """Measure one reader and keep what is known of the others."""
    name, read = "now", refusal.classify_reply
    if len(sys.argv) > 1:
        name, read = sys.argv[1], reader_of(sys.argv[2])
    results = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    results[name] = {
        part: {c: {k: asdict(r) for k, r in f.items()} for c, f in measure(read, part).items()}
        for part in ("development", "held-out")
    }
    RESULT.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"{name}: {said(results[name])}")
    wrong = Counter((label, given) for label, given in pairs_of(read, "held-out") if label != given)
    for (label, given), count in wrong.most_common():
        print(f"held out, {label} read as {given}: {count}")


if __name__ == "__main__":
    main()
