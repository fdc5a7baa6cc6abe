"""Replies of real models to training requests: what the judge learns real text from.

    python examples/real_models/train/replies.py --data DATA --to FILE --model FOLDER
    python examples/real_models/train/replies.py --data DATA --to FILE --model TARGET ANCHOR

Requests come from training splits only. Of replies to harmful requests only refusals are kept;
what complies is dropped before it is written. Runs are resumed by request and model.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tiny_trio"))

from data import Corpus, read_csv

from alignbeam import AlignBeam, BeamConfig
from alignbeam.config import JudgeConfig, RoleConfig
from alignbeam.eval.refusal import is_refusal

#: Whether it is harmful, and the request.
Asked = tuple[bool, str]

BATCH = 12
NEW_TOKENS = 48


def requests(folder: Path, seed: int) -> list[Asked]:
    """Training requests as ``(harmful, request)``, in an order that does not favour either kind."""
    corpus, rng = Corpus(folder), random.Random(seed)
    harmful = rng.sample(corpus.harmful, 130)
    harmful += rng.sample([request for request, _ in corpus.medical], 50)
    path = folder / "harmbench" / "harmbench_behaviors_text_standard_val.csv"
    harmful += [row["Behavior"] for row in read_csv(path)]
    benign = [request for request, _ in rng.sample(corpus.instructions, 90)]
    benign += [request for request, _ in rng.sample(corpus.gsm8k, 25)]
    benign += [corpus.good_pair(rng)[0] for _ in range(105)]
    mixed = [(True, request) for request in harmful] + [(False, request) for request in benign]
    rng.shuffle(mixed)
    return mixed


def alone(folder: Path, asked: list[Asked]) -> Iterator[tuple[Asked, str]]:
    """A model's own greedy replies."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for part in batched(asked):
        chats = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": request}], tokenize=False, add_generation_prompt=True
            )
            for _, request in part
        ]
        batch = tokenizer(chats, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.inference_mode():
            ids = model.generate(**batch, max_new_tokens=NEW_TOKENS, do_sample=False)
        texts = tokenizer.batch_decode(
            ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
        )
        yield from zip(part, texts, strict=True)


def steered(folders: list[Path], asked: list[Asked]) -> Iterator[tuple[Asked, str]]:
    """Every candidate of a target that an anchor steers: how *it* refuses is seldom seen alone."""
    target, anchor = (RoleConfig(model=str(folder), dtype="float32") for folder in folders)
    config = BeamConfig(max_new_tokens=NEW_TOKENS, wishes=0)
    beam = AlignBeam.from_pretrained(target, anchor, JudgeConfig(views=("conversation",)), config)
    for part in batched(asked):
        results = beam.generate_batch([request for _, request in part])
        for one, result in zip(part, results, strict=True):
            yield from ((one, candidate.text) for candidate in result.candidates)


def batched(asked: list[Asked]) -> Iterator[list[Asked]]:
    for at in range(0, len(asked), BATCH):
        yield asked[at : at + BATCH]
        print(f"{min(at + BATCH, len(asked))} of {len(asked)}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--model", type=Path, nargs="+", required=True, help="one; or target anchor"
    )
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--most", type=int, help="requests to ask")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    name = " <- ".join(folder.name for folder in options.model)
    done = set()
    if options.to.exists():
        for line in options.to.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            done.add((row["model"], row["request"]))
    asked = [
        one
        for one in requests(options.data, options.seed)[: options.most]
        if (name, one[1]) not in done
    ]
    several = len(options.model) > 1
    replies = steered(options.model, asked) if several else alone(options.model[0], asked)
    with options.to.open("a", encoding="utf-8") as out:
        for (harmful, request), text in replies:
            # Nothing that complies with a harmful request is kept.
            reply = None if harmful and not is_refusal(text.strip()) else text.strip()
            row = {"model": name, "harmful": harmful, "request": request, "reply": reply}
            out.write(json.dumps(row) + "\n")
            out.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
