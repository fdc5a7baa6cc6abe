"""What a verdict of a judge costs on real replies, by threads and by candidates judged together.

    python bench/bench_verdict.py RUN --judge NAME --settings FILE.toml [--requests 12]

The candidates are those that AlignBeam decoded in a run, three a request; one call of the judge
reads those of one request (a user who waits) or of eight (an evaluation). Counted beside the times:
readings (views x questions), their tokens, and the tokens that the model was really fed, which is
less as far as rows begin alike. Rows go to `bench/results/verdict_real.jsonl`; no text is kept.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import rows
import torch
from timing import quantile_of

from alignbeam.config import load_settings
from alignbeam.controller import load_judge_of
from alignbeam.eval.run.files import RunFiles
from alignbeam.judge.model_judge import ModelJudge

NAME = "verdict_real"
METHOD = "alignbeam"
THREADS = (1, 2)
TOGETHER = (1, 8)

Asked = tuple[list[dict[str, str]], list[str]]


@dataclass(frozen=True, slots=True)
class Cost:
    """One way of asking: seconds a verdict over the calls, and what a verdict reads."""

    judge: str
    threads: int
    candidates: int  # of one call, on average
    verdicts: int
    wall_s_p50: float
    wall_s_least: float
    cpu_s_p50: float
    readings: float
    tokens: float
    fed: float
    forwards: float  # a call
    load: tuple[float, float]  # the machine's, a minute's average, before and after


def requests_of(run: Path, most: int, seed: int = 0) -> list[Asked]:
    """Requests of a run with their candidates, a seeded sample over all its sets."""
    found = [
        ([dict(m) for m in one.messages], [c.text for c in one.candidates if c.text.strip()])
        for one in RunFiles(run).generations()
        if one.method == METHOD
    ]
    return random.Random(seed).sample(found, min(most, len(found)))


@contextmanager
def counted(judge: ModelJudge) -> Iterator[list[int]]:
    """Count the tokens of every forward of the judge's model, padding included."""
    model = judge.role.model
    fed: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda _module, _args, keywords: fed.append(keywords["input_ids"].numel()),
        with_kwargs=True,
    )
    try:
        yield fed
    finally:
        hook.remove()


def measured(name: str, judge: ModelJudge, asked: Sequence[Asked], together: int) -> Cost:
    """Ask about all requests, ``together`` at a time."""
    wall, cpu = [], []
    verdicts = readings = tokens = 0
    before = os.getloadavg()[0]
    with counted(judge) as fed:
        for at in range(0, len(asked), together):
            pairs = [(turns, text) for turns, texts in asked[at : at + together] for text in texts]
            began = time.perf_counter(), time.process_time()
            judge.score([turns for turns, _ in pairs], [text for _, text in pairs])
            ended = time.perf_counter(), time.process_time()
            wall.append((ended[0] - began[0]) / len(pairs))
            cpu.append((ended[1] - began[1]) / len(pairs))
            verdicts += len(pairs)
            read = [row for p in pairs for _, piece in judge.questions(*p) for row in piece]
            readings += len(read)
            tokens += sum(len(row.ids) for row in read)
    return Cost(
        judge=name,
        threads=torch.get_num_threads(),
        candidates=verdicts // len(wall),
        verdicts=verdicts,
        wall_s_p50=quantile_of(wall, 0.5),
        wall_s_least=min(wall),
        cpu_s_p50=quantile_of(cpu, 0.5),
        readings=readings / verdicts,
        tokens=tokens / verdicts,
        fed=sum(fed) / verdicts,
        forwards=len(fed) / len(wall),
        load=(before, os.getloadavg()[0]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--judge", required=True, metavar="NAME", help="what the rows call it")
    parser.add_argument("--settings", type=Path, required=True, help="a file with a [judge] table")
    parser.add_argument("--requests", type=int, default=16)
    options = parser.parse_args()
    judge = load_judge_of(load_settings(options.settings, environ={}).judge).judge
    asked = requests_of(options.run, options.requests)
    torch.set_num_threads(1)
    judge.score([asked[0][0]], asked[0][1][:1])  # what a model is asked once only
    found = []
    for together in TOGETHER:
        for threads in THREADS:
            torch.set_num_threads(threads)
            found.append(measured(options.judge, judge, asked, together))
            print(found[-1], flush=True)
    rows.write(NAME, found)


if __name__ == "__main__":
    main()
