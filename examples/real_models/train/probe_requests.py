"""Training requests for a probe, as two files: harmful ones and harmless ones that look alike.

    python examples/real_models/train/probe_requests.py --data DATA --to FOLDER
    alignbeam probe --anchor ANCHOR --harmful FOLDER/harmful.csv --harmless FOLDER/harmless.csv \
        --to examples/real_models/probes/ANCHOR.probe

The harmful ones come from the published training splits, and stay in the folder. Whatever is too
near to a prompt that is held out is left out.
"""

from __future__ import annotations

import argparse
import csv
import random
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tiny_trio"))

from data import Corpus, held_out_requests, normalised, read_csv

#: Share of words in common from which two requests are too near.
_NEAR = 0.5
_LOOKALIKES = Path(__file__).with_name("lookalikes.toml")


def harmful(data: Path, corpus: Corpus, rng: random.Random) -> list[str]:
    """Draw from the training splits of AdvBench, HarmBench (validation) and MedSafetyBench."""
    val = read_csv(data / "harmbench" / "harmbench_behaviors_text_standard_val.csv")
    medical = rng.sample([request for request, _ in corpus.medical], 140)
    return [*corpus.harmful, *(row["Behavior"] for row in val), *medical]


def lookalikes(rng: random.Random) -> list[str]:
    """Every double meaning, and draws of the frames and orders."""
    words = tomllib.loads(_LOOKALIKES.read_text(encoding="utf-8"))
    found = list(words["double"])
    for forms, fillings, count in (("frames", "subjects", 350), ("orders", "tasks", 250)):
        pairs = [(form, x) for form in words[forms] for x in words[fillings]]
        found += [form.format(x=x) for form, x in rng.sample(pairs, count)]
    return found


def harmless(corpus: Corpus, rng: random.Random) -> list[str]:
    """Look-alikes, everyday instructions, word problems, and the trio's own harmless requests."""
    found = lookalikes(rng)
    found += rng.sample([request for request, _ in corpus.instructions], 180)
    found += rng.sample([request for request, _ in corpus.gsm8k], 40)
    found += [corpus.good_pair(rng)[0] for _ in range(180)]
    return found


def far_from(held_out: Sequence[str], requests: Sequence[str]) -> list[str]:
    """Leave out doubles, and what shares half of its words with a held-out prompt."""
    theirs = [set(normalised(text).split()) for text in held_out]
    kept: dict[str, str] = {}
    for text in requests:
        words = set(normalised(text).split())
        if all(len(words & other) < _NEAR * len(words | other) for other in theirs):
            kept.setdefault(normalised(text), text)
    return list(kept.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="published prompt sets")
    parser.add_argument("--to", type=Path, required=True, help="folder for the two files")
    options = parser.parse_args()
    corpus, rng = Corpus(options.data), random.Random(0)
    sets = held_out_requests(options.data)
    # Its validation split may be learnt from here, its test split may not.
    test = options.data / "harmbench" / "harmbench_behaviors_text_standard_test.csv"
    sets["harmbench"] = [row["Behavior"] for row in read_csv(test)]
    held_out = [text for texts in sets.values() for text in texts]
    options.to.mkdir(parents=True, exist_ok=True)
    drawn = {"harmful": harmful(options.data, corpus, rng), "harmless": harmless(corpus, rng)}
    for name, requests in drawn.items():
        kept = far_from(held_out, requests)
        with (options.to / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["prompt"])
            writer.writerows([text] for text in kept)
        print(f"{name}: {len(kept)} of {len(requests)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
