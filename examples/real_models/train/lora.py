"""Fine-tune a causal LM by LoRA on a CPU: examples in, an adapter folder out."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel

#: Examples that are sorted by length together, in batches.
POOL = 16
#: Sequences in memory at a time.
MICRO = 8


@dataclass(frozen=True)
class Example:
    """One sequence; ``wanted[t]`` says that token ``t`` is learnt (predicted from those before)."""

    ids: list[int]
    wanted: list[int]


@dataclass(frozen=True)
class Plan:
    """How long and how hard to train; ``modules`` get the low-rank updates."""

    examples: int
    rank: int
    modules: tuple[str, ...]
    rate: float
    batch: int = 16
    seed: int = 0


def _loss(model: PreTrainedModel, batch: list[Example]) -> Tensor:
    longest = max(len(example.ids) for example in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, example in enumerate(batch):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        mask[row, : len(example.ids)] = 1
    # The head is asked where something is learnt, and nowhere else: it is a fifth of the model.
    rows = [row for row, example in enumerate(batch) for _ in example.wanted]
    at = [t - 1 for example in batch for t in example.wanted]
    hidden = model.get_base_model().model(input_ids=ids, attention_mask=mask).last_hidden_state
    logits = model.get_base_model().lm_head(hidden[rows, at])
    wanted = torch.tensor([example.ids[t] for example in batch for t in example.wanted])
    weight = torch.tensor([1 / len(e.wanted) for e in batch for _ in e.wanted])
    losses = torch.nn.functional.cross_entropy(logits, wanted, reduction="none")
    return (losses * weight).sum() / len(batch)


def train(
    model: PreTrainedModel,
    draw: Callable[[random.Random], Example],
    plan: Plan,
    folder: Path,
    base_name: str,
) -> None:
    """Train an adapter of ``model`` on drawn examples and save it, float16, to ``folder``.

    Training goes on where a killed run stopped: every 20 steps the state is saved beside it.
    """
    torch.manual_seed(plan.seed)
    config = LoraConfig(
        r=plan.rank,
        lora_alpha=2 * plan.rank,
        target_modules=list(plan.modules),
        task_type="CAUSAL_LM",
    )
    tuned = get_peft_model(model, config)
    weights = [p for p in tuned.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=plan.rate, weight_decay=0.0)
    steps = plan.examples // plan.batch
    warm = max(1, steps // 20)

    def rate(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    state, first = folder.with_suffix(".state"), 0
    if state.exists():
        kept = torch.load(state, weights_only=True)
        first = kept["step"]
        optimizer.load_state_dict(kept["optimizer"])
        schedule.load_state_dict(kept["schedule"])
        with torch.no_grad():
            for weight, value in zip(weights, kept["weights"], strict=True):
                weight.copy_(value)
    tuned.train()
    began, mean = time.monotonic(), 0.0
    for pool in range(first // POOL, math.ceil(steps / POOL)):
        rng = random.Random(f"{plan.seed}/{pool}")
        drawn = sorted((draw(rng) for _ in range(POOL * plan.batch)), key=lambda e: len(e.ids))
        batches = [drawn[i : i + plan.batch] for i in range(0, len(drawn), plan.batch)]
        rng.shuffle(batches)
        for n, batch in enumerate(batches):
            step = pool * POOL + n
            if step < first or step >= steps:
                continue
            loss = 0.0
            for at in range(0, len(batch), MICRO):
                part = batch[at : at + MICRO]
                share = _loss(tuned, part) * len(part) / len(batch)
                share.backward()
                loss += share.item()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            mean = loss if step == first else 0.9 * mean + 0.1 * loss
            if step % 10 == 9:
                took = (time.monotonic() - began) / (step + 1 - first)
                print(f"step {step + 1}/{steps}  loss {mean:.3f}  {took:.1f} s a step", flush=True)
            if step % 20 == 19:
                parts = {
                    "step": step + 1,
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                    "weights": weights,
                }
                torch.save(parts, state.with_suffix(".part"))
                state.with_suffix(".part").replace(state)
    save(tuned, folder, base_name)


def save(tuned: PreTrainedModel, folder: Path, base_name: str) -> None:
    """Save an adapter in float16, naming its base by ``base_name`` and not by where it lay."""
    tuned.half()
    tuned.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # a form that nobody filled in
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = base_name
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (folder / "adapter_model.safetensors").chmod(0o644)
