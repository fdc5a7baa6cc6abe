"""What the embedded trio answers, on every road, as hashes: before and after a change.

Two hundred requests (harmful, harmless, word problems) go through ``generate_batch`` under ten
kinds of settings, through a served process (``full`` and ``chunked``, streamed), and through every
method of the evaluation. A row holds SHA-256 of texts and of token ids, never a text.

    python bench/record_answers.py --write answers.jsonl
    python bench/record_answers.py --against bench/results/answers.jsonl   # exit 1 on a difference
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2

REPO = Path(__file__).parent.parent
sys.path.insert(0, str(REPO / "examples" / "tiny_trio"))

from harmful import harmful_request  # noqa: E402
from harmless import harmless_pair  # noqa: E402

KEY = "a-key-for-the-recording"
MAX_NEW_TOKENS = 40
ROADS = ("batch", "server", "method")
#: Scores of two runs may differ by the order in which a batch was summed.
SCORE_ROOM = 5e-3

SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"alpha": 0.2, "beams": 2},
    {"mix": "log", "support": "union"},
    {"fallback": "first", "mix_steps": 12},
    {"fallback": "exact", "beams": 1, "top_b": 8},
    {"temperature": 0.9, "seed": 3, "top_p": 0.9},
    {"mix_steps": 0},
    {"mix_steps": 0, "beams": 1, "temperature": 1.2, "seed": 7, "top_k": 20},
    {"stop": [".", "\n"], "beams": 4},
    {"on_unsafe": "safest", "alpha": 0.0},
)


def requests() -> list[str]:
    """Return 200 requests in a fixed, mixed order."""
    sample = json.loads((REPO / "alignbeam/demo/prompts.json").read_text())
    lines = (REPO / "alignbeam/eval/sets/word_problems.jsonl").read_text().splitlines()
    rng = random.Random(17)
    harmful = [row["prompt"] for row in sample["harmful"]]
    harmless = [row["prompt"] for row in sample["benign"]]
    while len(harmful) < 60:
        harmful.append(harmful_request(rng)[0])
    nouns = ["garden", "river", "kitchen", "library", "engine", "festival"]
    while len(harmless) < 70:
        harmless.append(harmless_pair(rng, nouns)[0])
    found = [*harmful[:60], *harmless[:70], *(json.loads(line)["question"] for line in lines[:70])]
    rng.shuffle(found)
    return found


def digest(value: str | Iterable[int]) -> str:
    text = value if isinstance(value, str) else ",".join(map(str, value))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def batch(prompts: Sequence[str]) -> Iterator[dict[str, Any]]:
    from alignbeam import AlignBeam

    beam = AlignBeam.from_pretrained()
    each = [
        {"max_new_tokens": MAX_NEW_TOKENS, **SETTINGS[i % len(SETTINGS)]}
        for i in range(len(prompts))
    ]
    for n, result in enumerate(beam.generate_batch(prompts, each)):
        yield {
            "road": "batch",
            "n": n,
            "text": digest(result.text),
            "finish": result.finish_reason,
            "chosen": result.chosen,
            "tokens": [digest(c.token_ids) for c in result.candidates],
            "steps": digest([i for s in result.trace for i in s.token_ids]),
            "sources": sorted({s.source for s in result.trace}),
            "scores": [round(c.score, 4) for c in result.candidates],
        }


def methods(prompts: Sequence[str]) -> Iterator[dict[str, Any]]:
    from alignbeam import AlignBeam, BeamConfig
    from alignbeam.eval.methods import METHODS, Models, build_method

    beam = AlignBeam.from_pretrained(config=BeamConfig(max_new_tokens=MAX_NEW_TOKENS))
    models = Models(beam)
    for name in METHODS:
        method = build_method(name)
        for start in range(0, len(prompts), 16):
            messages = [[{"role": "user", "content": p}] for p in prompts[start : start + 16]]
            for n, answer in enumerate(method.answer(models, messages).answers, start):
                yield {
                    "road": f"method {name}",
                    "n": n,
                    "text": digest(answer.text),
                    "finish": answer.finish_reason,
                    "chosen": answer.chosen,
                    "tokens": [digest(c.text) for c in answer.candidates],
                    "steps": digest("|".join(f"{s.source}:{s.text}" for s in answer.trace)),
                    "scores": [c.score for c in answer.candidates],
                }


def served(prompts: Sequence[str], release: str) -> Iterator[dict[str, Any]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "alignbeam", "serve", "--port", str(port)]
    environ = {**os.environ, "ALIGNBEAM_API_KEYS": KEY}
    server = subprocess.Popen(
        [*command, "--set", f"server.release={release}"], env=environ, stderr=subprocess.DEVNULL
    )
    client = httpx2.Client(
        base_url=f"http://127.0.0.1:{port}",
        headers={"authorization": f"Bearer {KEY}"},
        timeout=600,
    )
    try:
        for _ in range(600):
            try:
                if client.get("/health").status_code == 200:
                    break
            except httpx2.TransportError:
                time.sleep(0.1)

        def ask(n: int) -> dict[str, Any]:
            text, reason = "", None
            body = {
                "model": "alignbeam",
                "messages": [{"role": "user", "content": prompts[n]}],
                "stream": True,
                "max_tokens": MAX_NEW_TOKENS,
                "seed": n,
            }
            with client.stream("POST", "/v1/chat/completions", json=body) as reply:
                for line in reply.iter_lines():
                    if not line.startswith("data: {"):
                        continue
                    choice = json.loads(line[6:])["choices"][0]
                    text += choice["delta"].get("content") or ""
                    reason = choice["finish_reason"] or reason
            return {"road": f"server {release}", "n": n, "text": digest(text), "finish": reason}

        with ThreadPoolExecutor(4) as pool:
            yield from pool.map(ask, range(len(prompts)))
    finally:
        client.close()
        server.send_signal(signal.SIGTERM)
        server.wait(60)


def record(roads: Sequence[str]) -> Iterator[dict[str, Any]]:
    prompts = requests()
    if "batch" in roads:
        yield from batch(prompts)
    if "server" in roads:
        yield from served(prompts, "full")
        yield from served(prompts, "chunked")
    if "method" in roads:
        yield from methods(prompts)


def same(old: dict[str, Any], new: dict[str, Any]) -> bool:
    plain = [{k: v for k, v in row.items() if k != "scores"} for row in (old, new)]
    pairs = zip(old.get("scores") or [], new.get("scores") or [], strict=True)
    return plain[0] == plain[1] and all(
        a == b or (a is not None and b is not None and abs(a - b) <= SCORE_ROOM) for a, b in pairs
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="write the rows here")
    parser.add_argument("--against", type=Path, help="compare with these rows")
    parser.add_argument("--road", choices=ROADS, action="append", help="default: all")
    arguments = parser.parse_args()
    roads = arguments.road or ROADS
    rows = []
    for row in record(roads):
        rows.append(row)
        if row["n"] == 199:
            print(f"{row['road']}: done", file=sys.stderr, flush=True)
    if arguments.write:
        arguments.write.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if not arguments.against:
        return 0
    old = {
        (row["road"], row["n"]): row
        for row in map(json.loads, arguments.against.read_text().splitlines())
        if row["road"].split()[0] in roads
    }
    new = {(row["road"], row["n"]): row for row in rows}
    differing = [key for key in old if key not in new or not same(old[key], new[key])]
    for key in differing:
        was, now = old[key], new.get(key, {})
        names = [k for k in was if was[k] != now.get(k)]
        print(f"{key[0]} {key[1]}: {', '.join(names)}")
    print(f"{len(old) - len(differing)} of {len(old)} answers are the same")
    return 1 if differing else 0


if __name__ == "__main__":
    raise SystemExit(main())
