"""Answers and served requests of two checkouts, in turns on one machine.

    python bench/compare_trees.py ../before            # this checkout against another one
    python bench/compare_trees.py ../before --runs 15

Each checkout has a worker (the embedded trio, one thread, 12 requests of three beams in one batch)
and a server (16 requests at once), alive all the time; runs alternate, and what counts is the ratio
of processor times, run by run: a shared machine moves wall times, and both alike. The native
extension of each checkout must be built in it. Rows go to ``results/before_after.jsonl``.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import rows

REPO = Path(__file__).resolve().parent.parent
KEY = "a-key-for-the-comparison"
WORDS = ("apples", "pens", "books", "shells", "coins", "boxes", "cards", "eggs")
PROMPTS = [
    f"Ann has {n + 2} {WORDS[n % len(WORDS)]} and buys {n + 3} more. How many has she now?"
    for n in range(16)
]
WORKER = """
import os, sys, torch
torch.set_num_threads(1)
from alignbeam import AlignBeam
beam = AlignBeam.from_pretrained()
prompts = {prompts!r}
for _ in sys.stdin:
    begin = os.times()
    results = beam.generate_batch(prompts, {{"max_new_tokens": 48}})
    end = os.times()
    spent = end.user + end.system - begin.user - begin.system
    print(spent, sum(len(c.token_ids) for r in results for c in r.candidates), flush=True)
"""


@dataclass(frozen=True)
class ComparedRow:
    """Processor seconds a run (medians), and their ratio run by run, this over the other."""

    part: str
    runs: int
    before_commit: str
    before_s: float
    after_s: float
    ratio_p20: float
    ratio_p50: float
    ratio_p80: float


def environment(tree: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(tree),
        "OMP_NUM_THREADS": "1",
        "ALIGNBEAM_API_KEYS": KEY,
    }


@contextmanager
def worker(tree: Path) -> Iterator[subprocess.Popen[str]]:
    code = WORKER.format(prompts=PROMPTS[:12])
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tree, env=environment(tree), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()


def answer(process: subprocess.Popen[str]) -> tuple[float, int]:
    """Processor seconds and tokens of one batch."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    spent, tokens = process.stdout.readline().split()
    return float(spent), int(tokens)


@contextmanager
def server(tree: Path) -> Iterator[tuple[int, httpx2.Client]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "alignbeam", "serve", "--port", str(port)]
    process = subprocess.Popen(command, cwd=tree, env=environment(tree), stderr=subprocess.DEVNULL)
    client = httpx2.Client(
        base_url=f"http://127.0.0.1:{port}",
        headers={"authorization": f"Bearer {KEY}"},
        timeout=600,
    )
    try:
        for _ in range(1200):
            try:
                if client.get("/health").status_code == 200:
                    break
            except httpx2.TransportError:
                time.sleep(0.1)
        yield process.pid, client
    finally:
        client.close()
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def serve_all(pid: int, client: httpx2.Client) -> tuple[float, int]:
    """Processor seconds of the server for all prompts at once, and the tokens it counted."""

    def ask(prompt: str) -> int:
        messages = [{"role": "user", "content": prompt}]
        body = {"model": "alignbeam", "messages": messages, "max_tokens": 48}
        reply = client.post("/v1/chat/completions", json=body)
        reply.raise_for_status()
        return int(reply.json()["usage"]["completion_tokens"])

    before = cpu_seconds(pid)
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        tokens = sum(pool.map(ask, PROMPTS))
    return cpu_seconds(pid) - before, tokens


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def compared(part: str, pairs: list[tuple[float, float]], commit: str) -> ComparedRow:
    ratios = sorted(after / before for before, after in pairs)
    p20, p50, p80 = (ratios[round(q * (len(ratios) - 1))] for q in (0.2, 0.5, 0.8))
    return ComparedRow(
        part,
        len(pairs),
        commit,
        statistics.median(before for before, _ in pairs),
        statistics.median(after for _, after in pairs),
        p20,
        p50,
        p80,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("--runs", type=int, default=11)
    chosen = parser.parse_args()
    before = chosen.before.resolve()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=before, capture_output=True, text=True,
        check=True,
    ).stdout.strip()  # fmt: skip
    found = []
    with worker(before) as old, worker(REPO) as new:
        pairs = []
        for run in range(chosen.runs + 1):
            (one, tokens), (other, same) = answer(old), answer(new)
            if tokens != same:
                raise SystemExit(f"the checkouts answer differently: {tokens} and {same} tokens")
            if run:  # the first warms up
                pairs.append((one, other))
        found.append(compared("12 answers, K = 3", pairs, commit))
    with server(before) as old_server, server(REPO) as new_server:
        pairs = []
        for run in range(chosen.runs + 1):
            (one, tokens), (other, same) = serve_all(*old_server), serve_all(*new_server)
            if tokens != same:
                raise SystemExit(f"the servers answer differently: {tokens} and {same} tokens")
            if run:
                pairs.append((one, other))
        found.append(compared("16 requests served at once", pairs, commit))
    for row in found:
        print(row)
    print(f"wrote {rows.write('before_after', found)}")


if __name__ == "__main__":
    main()
