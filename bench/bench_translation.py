"""How much of an anchor's probability each fallback translates.

Without models, over all pairs of real vocabularies (``ALIGNBEAM_VOCABS``): an anchor that says the
tokens of sample texts as often as they occur in them. With ``--models ANCHOR TARGET`` (folders),
for that pair: the anchor's own next-token probabilities inside gsm8k questions, all of them and
its 50 best. Rows go to ``results/translation.jsonl``; those of the other kind are kept.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import rows
import torch

from alignbeam.vocab import matching
from alignbeam.vocab.bridge import Bridge, Fallback
from alignbeam.vocab.retokenize import plain_encode_batch
from alignbeam.vocab.vocabulary import Vocabulary

_SHARED = Path(__file__).resolve().parents[2] / "shared"
VOCABS = Path(os.environ.get("ALIGNBEAM_VOCABS") or _SHARED / "vocabs")
QUESTIONS = Path(os.environ.get("ALIGNBEAM_DATA") or _SHARED / "data") / "gsm8k" / "test.jsonl"
FALLBACKS: tuple[Fallback, ...] = get_args(Fallback)
TOP_B = 50


@dataclass(frozen=True)
class TranslationRow:
    """One pair and one sample; ``mass`` is the share translated by fallback, 0..1.

    ``sample`` is ``"word problems"`` or ``"many scripts"`` without models, ``"probability"`` or
    ``"probability of the 50 best"`` with them; ``positions`` how many tokens or forwards it had.
    ``anchor_mass`` is what could be translated at most.
    """

    anchor: str
    target: str
    sample: str
    positions: int
    anchor_mass: float
    mass: dict[str, float]


def questions(count: int) -> list[str]:
    lines = QUESTIONS.read_text(encoding="utf-8").splitlines()[:count]
    return [json.loads(line)["question"] for line in lines]


def many_scripts() -> list[str]:
    """The texts that llama.cpp tests tokenizers with."""
    path = VOCABS / "gpt-2" / "ggml-vocab-gpt-2.gguf.inp"
    return path.open(encoding="utf-8", newline="").read().split("\n__ggml_vocab_test__\n")


def translated(bridge: Bridge, probs: torch.Tensor) -> dict[str, float]:
    """Mass that reaches the target, by fallback; ``probs`` float64 [Va]."""
    covered = {name: bridge.with_fallback(name).coverage(probs) for name in FALLBACKS}
    return {name: round(found.translated.mass or 0.0, 6) for name, found in covered.items()}


def saying(vocabulary: Vocabulary, counts: Counter[int]) -> Vocabulary:
    """The same vocabulary without the tokens that the sample lacks: a bridge in no time."""
    said = Vocabulary.of(vocabulary.tokenizer)
    pieces = vocabulary.token_bytes
    vars(said)["token_bytes"] = [p if i in counts else None for i, p in enumerate(pieces)]
    return said


def by_vocabulary() -> Iterator[TranslationRow]:
    from transformers import AutoTokenizer

    # One index of each target for all anchors.
    matching._Finder = functools.cache(matching._Finder)
    samples = {"word problems": questions(300), "many scripts": many_scripts()}
    known = {}
    for folder in sorted(VOCABS.iterdir()):
        # A lower-casing WordPiece vocabulary cannot be bridged.
        if (folder / "tokenizer.json").is_file() and folder.name != "bert-bge":
            known[folder.name] = Vocabulary.of(AutoTokenizer.from_pretrained(folder))
    for anchor, vocabulary in known.items():
        said = {
            sample: Counter(
                i for row in plain_encode_batch(vocabulary.tokenizer, texts) for i in row
            )
            for sample, texts in samples.items()
        }
        speaker = saying(vocabulary, sum(said.values(), Counter()))
        for target, other in known.items():
            if target == anchor:
                continue
            widths = vocabulary.width, other.width
            bridge = Bridge(*matching.by_bytes(speaker, other), "drop", *widths, key="")
            for sample, counts in said.items():
                probs = torch.zeros(vocabulary.width, dtype=torch.float64)
                probs[list(counts)] = torch.tensor(list(counts.values()), dtype=torch.float64)
                mass = translated(bridge, probs / probs.sum())
                yield TranslationRow(anchor, target, sample, counts.total(), 1.0, mass)


def by_models(anchor: str, target: str, count: int) -> Iterator[TranslationRow]:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    pair = []
    for folder in (anchor, target):
        width = AutoConfig.from_pretrained(folder).vocab_size
        pair.append(Vocabulary.of(AutoTokenizer.from_pretrained(folder), width))
    bridge = Bridge.build(*pair)
    model = AutoModelForCausalLM.from_pretrained(anchor, dtype=torch.float32).eval()
    whole, best = torch.zeros(2, pair[0].width, dtype=torch.float64)
    positions = 0
    for ids in plain_encode_batch(pair[0].tokenizer, questions(count)):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        probs = logits.double().softmax(-1)
        whole += probs.sum(0)
        top = probs.topk(TOP_B, -1)
        best.index_add_(0, top.indices.flatten(), top.values.flatten())
        positions += len(ids)
    for sample, summed in (("probability", whole), (f"probability of the {TOP_B} best", best)):
        mean = summed / positions
        yield TranslationRow(
            Path(anchor).name,
            Path(target).name,
            sample,
            positions,
            round(float(mean.sum()), 6),
            translated(bridge, mean),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs=2, metavar=("ANCHOR", "TARGET"))
    parser.add_argument("--questions", type=int, default=12)
    args = parser.parse_args()
    missing = next((path for path in (VOCABS, QUESTIONS) if not path.exists()), None)
    if args.models:
        missing = next((p for p in (QUESTIONS, *map(Path, args.models)) if not p.exists()), None)
    if missing is not None:
        sys.exit(f"skipped: {missing} is not here; see ALIGNBEAM_VOCABS and ALIGNBEAM_DATA")
    kept = [row for row in rows.read("translation") if _is_of_models(row) != bool(args.models)]
    new = by_models(*args.models, args.questions) if args.models else by_vocabulary()
    measured = []
    for row in new:
        print(f"{row.anchor:>14} -> {row.target:<14} {row.sample:<28} {row.mass}", flush=True)
        measured.append({**asdict(row), "machine": asdict(rows.machine())})
    path = rows.RESULTS / "translation.jsonl"
    ordered: list[dict[str, Any]] = sorted([*kept, *measured], key=_is_of_models)
    path.write_text("".join(json.dumps(row) + "\n" for row in ordered), encoding="utf-8")
    print(path)


def _is_of_models(row: dict[str, Any]) -> bool:
    return str(row["sample"]).startswith("probability")


if __name__ == "__main__":
    main()
