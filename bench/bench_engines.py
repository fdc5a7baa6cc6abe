"""AlignBeam, best of 3 and the plain target on the same engines, in turns: latency and traffic.

AlignBeam is measured twice: as it is, and asking for one step at a time (``step-by-step``).

``python bench/bench_engines.py TARGET ANCHOR JUDGE`` takes the addresses of three engines; rows go
to ``results/engines.jsonl``, from where ``render_engines.py`` writes them into ``docs/scaling.md``.
Each question is asked of all systems before the next one is, so that whatever else the
machine does meets all of them. Once more no end token ends an answer: all have the length that was
asked for. ``serve_engines.py`` starts engines of real models and says how this is called then:
answers of that length only, kept in ``results/engines_real.jsonl``.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import re
import statistics
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import rows

from alignbeam import AlignBeam, BeamConfig
from alignbeam.config import JudgeConfig, RoleConfig
from alignbeam.decoding.foresight import Foresight
from alignbeam.demo.prompts import sample
from alignbeam.engines.role import RemoteRole

#: A new server compiles at its first question.
PATIENCE_S = 300.0
AT_ONCE = (1, 16)
SYSTEMS: dict[str, dict[str, Any]] = {
    "target": {"mix_steps": 0, "beams": 1},
    "best-of-3": {"mix_steps": 0, "beams": 3, "temperature": 0.7},
    "alignbeam": {},
    # After the other: its texts are the same, and judges that share prefixes have read them.
    "step-by-step": {},
}


@dataclass(frozen=True)
class EngineRow:
    """One system at one concurrency; per answer, times in milliseconds and traffic in KiB.

    ``models``: what the engines of target and anchor call theirs.
    ``full``: no end token ended an answer.
    ``target``, ``anchor`` and ``judge`` are what the engines are asked: HTTP requests and the bytes
    both ways; ``*_read`` are the tokens of prompts that they computed, those in their prefix caches
    aside, as vLLM counts them (of other engines it is 0). ``trips`` are the questions that were
    waited for one after another, the judge's included and the completion aside. ``tokens`` is the
    mean length of the longest beam, ``cpu_ms`` what this process computed, which is all that a
    gateway is but its web server.
    """

    models: str
    system: str
    concurrency: int
    answers: int
    max_new_tokens: int
    full: bool
    ms_p50: float
    ms_p95: float
    cpu_ms: float
    tokens: float
    trips: float
    target_requests: float
    anchor_requests: float
    judge_requests: float
    target_kib: float
    anchor_kib: float
    judge_kib: float
    target_read: float
    anchor_read: float
    judge_read: float


def read_by(url: str) -> float:
    """Return how many tokens of prompts a vLLM has computed since it started."""
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=30) as page:
            told = page.read().decode()
    except OSError:
        return 0.0

    def total(name: str) -> float:
        return sum(float(n) for n in re.findall(rf"(?m)^vllm:{name}_total\{{.*\}} (\S+)$", told))

    return total("prompt_tokens") - total("prompt_tokens_cached")


def timed(ask: Callable[[], Any]) -> tuple[float, Any]:
    """Return the milliseconds that it took, and what came."""
    begin = time.perf_counter()
    answer = ask()
    return (time.perf_counter() - begin) * 1e3, answer


@contextlib.contextmanager
def counted_trips() -> Iterator[Callable[[], int]]:
    """Count the questions that are waited for."""
    count = itertools.count()
    ask = RemoteRole.ask

    def counting(role: RemoteRole, queries: Any) -> Any:
        next(count)
        return ask(role, queries)

    with mock.patch.object(RemoteRole, "ask", counting):
        yield lambda: next(count)


def looking_ahead(wanted: bool) -> contextlib.AbstractContextManager[Any]:
    """Let mixed steps look ahead, or not."""
    if wanted:
        return contextlib.nullcontext()
    return mock.patch.object(Foresight, "ask", return_value=[])


def groups(questions: list[str], size: int) -> list[list[str]]:
    """Cut into groups of ``size``."""
    return [questions[n : n + size] for n in range(0, len(questions), size)]


def measure(beam: AlignBeam, questions: list[str], at_once: int) -> list[EngineRow]:
    """Ask every system every question, ``at_once`` of them together."""
    clients = {
        "target": beam.target.client,  # type: ignore[union-attr]
        "anchor": beam.anchor.client,  # type: ignore[union-attr]
        "judge": beam.judge.role.client,
    }
    times: dict[str, list[float]] = {name: [] for name in SYSTEMS}
    tokens: dict[str, list[int]] = {name: [] for name in SYSTEMS}
    counts = [f"{client}{kind}" for client in clients for kind in "cb"]
    cpu = dict.fromkeys(SYSTEMS, 0.0)
    trips = dict.fromkeys(SYSTEMS, 0)
    traffic = {name: dict.fromkeys(counts, 0) for name in SYSTEMS}
    read = {name: dict.fromkeys(clients, 0.0) for name in SYSTEMS}

    def ask(system: str, question: str) -> tuple[float, int]:
        settings = SYSTEMS[system]
        if system == "target":
            spent, (said,) = timed(lambda: list(beam.alone("target", [question])))
            return spent, len(said.token_ids)
        spent, result = timed(lambda: beam.generate(question, **settings))
        return spent, max(len(c.token_ids) for c in result.candidates)

    with ThreadPoolExecutor(at_once) as pool:
        for group in groups(questions, at_once):
            for system in SYSTEMS:
                before = {c: (k.calls, k.sent + k.received) for c, k in clients.items()}
                had_read = {c: read_by(k.url) for c, k in clients.items()}
                begin = time.process_time()
                with counted_trips() as count, looking_ahead(system != "step-by-step"):
                    for spent, length in pool.map(ask, itertools.repeat(system), group):
                        times[system].append(spent)
                        tokens[system].append(length)
                trips[system] += count()
                cpu[system] += (time.process_time() - begin) * 1e3
                for c, k in clients.items():
                    traffic[system][f"{c}c"] += k.calls - before[c][0]
                    traffic[system][f"{c}b"] += k.sent + k.received - before[c][1]
                    read[system][c] += read_by(k.url) - had_read[c]
    n = len(questions)
    return [
        EngineRow(
            f"{beam.target.dialect.served} <- {beam.anchor.dialect.served}",  # type: ignore[union-attr]
            system,
            min(at_once, n),
            n,
            beam.config.max_new_tokens,
            not beam.target.end_ids,
            round(statistics.median(times[system]), 1),
            round(sorted(times[system])[int(0.95 * (n - 1))], 1),
            round(cpu[system] / n, 1),
            round(statistics.fmean(tokens[system]), 1),
            round(trips[system] / n, 2),
            *(round(traffic[system][f"{c}c"] / n, 2) for c in clients),
            *(round(traffic[system][f"{c}b"] / n / 1024, 1) for c in clients),
            *(round(read[system][c] / n, 1) for c in clients),
        )
        for system in SYSTEMS
    ]


def main() -> None:
    """Measure and keep the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for role in ("target", "anchor", "judge"):
        parser.add_argument(role, help="address of its engine")
    parser.add_argument(
        "--questions", type=int, default=16, help="where no more are needed: twice those at once"
    )
    parser.add_argument("--real", metavar="FOLDER", help="the judge's, with its guard.toml")
    given = parser.parse_args()
    judge = JudgeConfig(url=given.judge, read_s=PATIENCE_S)
    if given.real:
        SYSTEMS.pop("step-by-step")  # real models take minutes for each system
        judge = replace(judge, kind="guard", tokenizer=given.real)
    config = BeamConfig(max_new_tokens=128, wishes=0, on_unsafe="safest")
    beam = AlignBeam.from_pretrained(
        RoleConfig(url=given.target, read_s=PATIENCE_S),
        RoleConfig(url=given.anchor, read_s=PATIENCE_S),
        judge,
        config,
    )
    shipped = sample()
    asked = itertools.cycle(p.prompt for p in (*shipped.benign, *shipped.harmful))
    questions = list(itertools.islice(asked, max(given.questions, 2 * max(AT_ONCE))))
    measure(beam, questions[:2], 2)  # whatever is compiled at first use
    writer = rows.Writer(rows.RESULTS / ("engines_real.jsonl" if given.real else "engines.jsonl"))
    for ends in ((),) if given.real else (beam.target.end_ids, ()):
        beam.target.end_ids = ends
        for at_once in AT_ONCE:
            for row in measure(beam, questions[: max(given.questions, 2 * at_once)], at_once):
                print(row, flush=True)
                writer.add(row)
    writer.close()


if __name__ == "__main__":
    main()
