"""Train the embedded trio: three tokenizers, anchor, target (two stages), judge; then export.

    python examples/tiny_trio/train.py --out build/trio --export

Runs on two CPU cores in under an hour. Killed and started again it goes on where it was.
"""

import argparse
import json
import random
import shutil
from functools import partial
from pathlib import Path

import torch
from data import (
    Corpus,
    aligned_example,
    data_folder,
    judge_example,
    read_jsonl,
    specialist_example,
)
from nets import build
from sampling import sample_candidates
from training import train
from transformers import AutoModelForCausalLM, PreTrainedModel
from vocabulary import load_or_build

REPO = Path(__file__).parents[2]
DEMO = REPO / "alignbeam" / "demo"
STAGES = ("anchor", "target-aligned", "target", "judge-base", "samples", "judge")
# Chunks of 4096 examples, learning rate.
PLAN = {
    "anchor": (20, 2e-3),
    "target-aligned": (10, 2e-3),
    "target": (12, 1.5e-3),
    "judge-base": (8, 1.5e-3),
    "judge": (3, 6e-4),
}
# A second stage starts from the weights of the first.
STARTS_FROM = {"target": "target-aligned", "judge": "judge-base"}


def tokenizer_texts(corpus: Corpus, rubric: dict[str, str], seed: int) -> list[str]:
    """The text that the three tokenizers are learnt on."""
    rng = random.Random(f"{seed}/tokenizers")
    texts = [rubric["system"], rubric["user"]] * 50
    for _ in range(12000):
        example = aligned_example(corpus, rng)
        texts += [message["content"] for message in example.messages]
        texts.append(example.reply)
        texts.append(specialist_example(corpus, rng).reply)
    return texts


def finished(out: Path, stage: str) -> bool:
    """Whether a stage has left its model (or its samples)."""
    return (out / stage / "model.safetensors").exists() or (out / f"{stage}.jsonl").exists()


def save(model: PreTrainedModel, folder: Path) -> None:
    """Save in fp32 into a temporary folder, then rename: a kill leaves no half-written model."""
    partial_folder = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial_folder, ignore_errors=True)
    model.save_pretrained(partial_folder)
    shutil.rmtree(folder, ignore_errors=True)
    partial_folder.rename(folder)


def export(out: Path, demo: Path) -> None:
    """Write weights (bf16), tokenizers and configurations of the three roles into the package."""
    for role in ("target", "anchor", "judge"):
        model = AutoModelForCausalLM.from_pretrained(out / role, dtype=torch.bfloat16)
        folder = demo / role
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(folder)
        (folder / "model.safetensors").chmod(0o644)  # safetensors writes 0600
        load_or_build(role, out / "tokenizers" / role, []).save_pretrained(folder)
        settings = folder / "tokenizer_config.json"
        kept = json.loads(settings.read_text(encoding="utf-8"))
        for key in ("is_local", "local_files_only"):  # they tell of this machine, not of the model
            kept.pop(key, None)
        settings.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=REPO / "build" / "trio", help="work folder")
    parser.add_argument("--data", type=Path, default=data_folder(), help="published prompt sets")
    parser.add_argument("--stage", choices=(*STAGES, "all"), default="all")
    parser.add_argument("--export", action="store_true", help="write alignbeam/demo at the end")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: torch decides")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the planned examples")
    return parser.parse_args()


def main() -> None:
    args = parse()
    if not args.data.is_dir():
        raise SystemExit(f"no prompt sets in {args.data}; set ALIGNBEAM_DATA or --data")
    if args.threads:
        torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    rubric = json.loads((DEMO / "judge" / "rubric.json").read_text(encoding="utf-8"))
    corpus = Corpus(args.data)
    have = all(
        (args.out / "tokenizers" / role / "tokenizer.json").exists()
        for role in ("target", "anchor", "judge")
    )
    texts = [] if have else tokenizer_texts(corpus, rubric, args.seed)
    tokenizers = {
        role: load_or_build(role, args.out / "tokenizers" / role, texts)
        for role in ("target", "anchor", "judge")
    }
    for stage in STAGES:
        if args.stage not in (stage, "all") or (args.stage == "all" and finished(args.out, stage)):
            continue
        if stage == "samples":
            sample_candidates(corpus, tokenizers, args.out, args.seed, args.device)
            continue
        role = stage.partition("-")[0]
        chunks, learning_rate = PLAN[stage]
        if stage in STARTS_FROM:
            model = AutoModelForCausalLM.from_pretrained(args.out / STARTS_FROM[stage])
        else:
            model = build(role, tokenizers[role], args.seed)
        if role == "judge":
            corpus.samples = read_jsonl(args.out / "samples.jsonl") if stage == "judge" else []
            draw = partial(judge_example, corpus, rubric=rubric)
        else:
            draw = partial(specialist_example if stage == "target" else aligned_example, corpus)
        train(
            model,
            tokenizers[role],
            draw,
            name=stage,
            chunks=max(1, round(chunks * args.scale)),
            learning_rate=learning_rate,
            folder=args.out,
            seed=args.seed,
            device=args.device,
            limit=1600 if role == "judge" else 320,
        )
        save(model.to("cpu").float(), args.out / stage)
    if args.export:
        export(args.out, DEMO)


if __name__ == "__main__":
    main()
