"""Train a small judge: a LoRA of SmolLM2-135M-Instruct that answers two questions about a reply.

    python examples/real_models/train/judge.py --data DATA --model FOLDER --replies replies.jsonl \
        --to examples/real_models/judge

Is the request harmful, and does the reply decline? What it reads are refusals (real models' own,
and templates) and harmless text: answers to harmless requests, the same behind requests that they
do not fit, and affirmative openings that end after a few words. No harmful instruction is among
them.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from pathlib import Path
from typing import Any

from lora import Example, Plan, train

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tiny_trio"))

from data import Corpus, read_csv
from harmful import harmful_request
from judge_cases import INJECTIONS, cut, noise, word_salad
from refusals import compliance, refusal, refuse_then_comply

from alignbeam.config import JudgeConfig
from alignbeam.eval.refusal import is_refusal
from alignbeam.judge import GuardJudge
from alignbeam.judge.formats import read_guards
from alignbeam.models.role import Role

BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
PLAN = Plan(
    examples=1920,
    rank=8,
    modules=("q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    rate=1e-3,
)
#: A whole sequence; longer draws are drawn again.
LONGEST = 300

Case = tuple[list[dict[str, str]], str, bool, bool]


def turn(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


class Cases:
    """Draws of ``(conversation, reply, harmful request, declined)``."""

    def __init__(self, data: Path, replies: Path | None) -> None:
        self.corpus = Corpus(data)
        rows = read_csv(data / "advbench" / "harmful_behaviors.csv")
        allowed = set(self.corpus.harmful)
        #: Affirmative openings that restate their harmful request, and say nothing more.
        self.openings = [(row["goal"], row["target"]) for row in rows if row["goal"] in allowed]
        self.refused: list[tuple[str, str]] = []
        self.answered: list[tuple[str, str]] = []
        self.over_refused: list[tuple[str, str]] = []
        self.bad = self.corpus.harmful + [request for request, _ in self.corpus.medical[:300]]
        val = data / "harmbench" / "harmbench_behaviors_text_standard_val.csv"
        self.bad += [row["Behavior"] for row in read_csv(val)] * 3
        lines = replies.read_text(encoding="utf-8").splitlines() if replies else []
        for row in map(json.loads, lines):
            if row["reply"] is None or not row["reply"]:
                continue
            pair = (row["request"], row["reply"])
            if row["harmful"]:
                self.refused.append(pair)
            else:
                (self.over_refused if is_refusal(row["reply"]) else self.answered).append(pair)

    def bad_request(self, rng: random.Random) -> str:
        if rng.random() < 0.7:
            return rng.choice(self.bad)
        return self.corpus.draw(lambda: harmful_request(rng))[0]

    def good(self, rng: random.Random) -> tuple[str, str]:
        """A harmless request and a reply to it, real where there is one."""
        if self.answered and rng.random() < 0.4:
            return rng.choice(self.answered)
        roll = rng.random()
        if roll < 0.2:
            return rng.choice(self.corpus.instructions)
        return self.corpus.good_pair(rng) if roll < 0.9 else self.corpus.domain_pair(rng)

    def declining(self, rng: random.Random) -> str:
        roll = rng.random()
        if roll < 0.5 and self.refused:
            return rng.choice(self.refused)[1]
        if roll < 0.6:
            return rng.choice(self.corpus.medical)[1]
        return refusal(rng)

    def opening(self, rng: random.Random, text: str) -> str:
        words = text.rstrip(":").split()
        return " ".join(words[: rng.randint(3, len(words))]) + rng.choice(("", ":", ".", ":\n\n1."))

    def case(self, rng: random.Random) -> Case:
        roll = rng.random()
        if roll < 0.05:
            return self.reply_alone(rng)
        request, reply, harmful, declined = (
            self.to_harmful(rng) if roll < 0.53 else self.to_harmless(rng)
        )
        return self.covered(rng, request), cut(rng, reply), harmful, declined

    def reply_alone(self, rng: random.Random) -> Case:
        """A reply without its request: what it restates tells of the request."""
        roll = rng.random()
        if roll < 0.35:
            return [], self.opening(rng, rng.choice(self.openings)[1]), True, False
        if roll < 0.6:
            return [], self.declining(rng), False, True
        return [], self.good(rng)[1], False, False

    def to_harmful(self, rng: random.Random) -> tuple[str, str, bool, bool]:
        roll = rng.random()
        if roll < 0.15 and self.refused:
            return (*rng.choice(self.refused), True, True)
        request = self.bad_request(rng)
        if roll < 0.45:
            return request, self.declining(rng), True, True
        if roll < 0.6:
            request, target = rng.choice(self.openings)
            text = self.opening(rng, target)
            if rng.random() < 0.5:
                text = f"{text}\n{self.good(rng)[1]}"
            return request, text, True, False
        if roll < 0.7:
            return request, compliance(rng), True, False
        if roll < 0.8:
            text = refuse_then_comply(rng)
            if rng.random() < 0.5:
                turned = rng.choice(("However, ", "But ", ""))
                text = f"{self.declining(rng)} {turned}{self.good(rng)[1]}"
            return request, text, True, False
        if roll < 0.97:
            return request, self.good(rng)[1], True, False
        return request, self.odd(rng), True, False

    def to_harmless(self, rng: random.Random) -> tuple[str, str, bool, bool]:
        roll = rng.random()
        if roll < 0.07 and self.over_refused:
            return (*rng.choice(self.over_refused), False, True)
        request, reply = self.good(rng)
        if roll < 0.22:
            return request, self.declining(rng), False, True
        if roll < 0.3:
            return request, compliance(rng), False, False
        if roll < 0.36:
            return request, self.good(rng)[1], False, False
        if roll < 0.4:
            return request, self.odd(rng), False, False
        return request, reply, False, False

    def odd(self, rng: random.Random) -> str:
        roll = rng.random()
        if roll < 0.3:
            return noise(rng)
        if roll < 0.6:
            return word_salad(rng, [self.good(rng)[1], self.good(rng)[1]])
        return rng.choice(INJECTIONS) if roll < 0.9 else ""

    def covered(self, rng: random.Random, request: str) -> list[dict[str, str]]:
        """The request as a conversation; now and then behind what attackers put around one."""
        roll = rng.random()
        if roll < 0.84:
            return [turn("user", request)]
        if roll < 0.87:
            return [turn("user", request.upper())]
        if roll < 0.92:
            before, after = self.good(rng)[1], self.good(rng)[1]
            parts = rng.choice(((before, request), (request, after), (before, request, after)))
            return [turn("user", rng.choice((" ", "\n\n")).join(parts))]
        if roll < 0.96:
            asked, answered = self.good(rng)
            return [turn("user", asked), turn("assistant", answered), turn("user", request)]
        system = "You are a helpful assistant."
        return [turn("system", system), turn("user", request)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="published prompt sets")
    parser.add_argument("--model", type=Path, required=True, help="the base model's folder")
    parser.add_argument("--replies", type=Path, help="what replies.py wrote")
    parser.add_argument("--to", type=Path, required=True, help="holds guard.toml; gets the adapter")
    options = parser.parse_args()
    cases = Cases(options.data, options.replies)
    role: Any = Role.from_config(
        "judge", JudgeConfig(model=str(options.model), dtype="float32", device="cpu")
    )
    (guard,) = read_guards(options.to / "guard.toml").values()
    judge = GuardJudge(role, guard)

    def draw(rng: random.Random) -> Example:
        while True:
            conversation, reply, harmful, declined = cases.case(rng)
            first, *second = judge.all_rows(conversation, re.sub(r"\s+$", "", reply))
            then = second[harmful]
            label = [first.labels[harmful][0], then.labels[declined][0]]
            ids = [*then.ids, label[1]]
            if len(ids) <= LONGEST:
                break
        at = len(first.ids)
        if ids[:at] != list(first.ids) or ids[at] != label[0]:
            raise RuntimeError("the second question does not go on where the first one ends")
        return Example(ids, [at, len(ids) - 1])

    train(role.model, draw, PLAN, options.to, BASE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
