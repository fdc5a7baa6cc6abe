"""Make a specialist as fine-tuning makes them: a LoRA of SmolLM2-135M-Instruct on word problems.

    python examples/real_models/train/specialist.py --data DATA --model FOLDER --to adapter

Nothing but questions and worked answers is shown to it: templates of `tiny_trio`'s training split
and GSM8K's. What that does to its refusals nobody asked for, and is measured.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

import torch
from lora import Example, Plan, train
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tiny_trio"))

from data import Corpus
from word_problems import problem, worked_answer

BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
PLAN = Plan(examples=1024, rank=8, modules=("q_proj", "v_proj", "o_proj"), rate=2e-3)
GSM8K_SHARE = 0.2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="published prompt sets")
    parser.add_argument("--model", type=Path, required=True, help="the base model's folder")
    parser.add_argument("--to", type=Path, required=True)
    options = parser.parse_args()
    corpus = Corpus(options.data)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)

    def draw(rng: random.Random) -> Example:
        if rng.random() < GSM8K_SHARE:
            question, answer = rng.choice(corpus.gsm8k)
        else:
            item = problem(rng)
            question, answer = item.question, worked_answer(rng, item)
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        head = tokenizer.encode(asked, add_special_tokens=False)
        body = tokenizer.encode(answer + "<|im_end|>", add_special_tokens=False)
        return Example(head + body, list(range(len(head), len(head) + len(body))))

    train(model, draw, PLAN, options.to, BASE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
