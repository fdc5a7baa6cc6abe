"""The server under load: a real process on loopback, the embedded trio, bounded in every part.

Parts (``--part``, default all):

- ``streams``: 200 streams at once, each compared with its single-request answer; then 96 of them
  one at a time and 16 at a time (rows ``throughput``);
- ``cancel``: 100 at once, 10 of them given up while all decode, the other 90 compared;
- ``memory``: 2,000 requests after 200 that warm up, resident memory before and after;
- ``overload``: how fast a full queue says no;
- ``hostile``: one client asks one thing after another, alone and then beside another client that
  does its worst (megabytes of control tokens, eight choices of eight beams, silent connections);
- ``flood``: likewise beside clients that ask for as much as they may, one with long prompts, then
  four with long answers.

Rows go to ``results/server.jsonl``, from where ``render_server.py`` writes them into
``docs/deploying.md``; a part that finds a wrong answer keeps none and fails. ``--scale 0.1`` tries
everything small.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import math
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx2
import rows

KEY = "a-key-for-the-load-script"
HOSTILE_KEY = "the-key-of-the-hostile-client"
FLOOD_KEYS = [f"the-key-of-flooding-client-{n}" for n in range(4)]
METRICS_KEY = "the-key-of-the-series"
_METRICS = {"authorization": f"Bearer {METRICS_KEY}"}
#: How many times its time alone a request may take beside a hostile client, at the 99th percentile.
MAY_SLOW = 5.0
MODEL = "alignbeam"
MAX_TOKENS = 48
TIMEOUT_S = 600
#: Growth of resident memory that counts as flat.
MAY_GROW = 0.05
REPO = Path(__file__).parent.parent


@dataclass(frozen=True)
class Run:
    """What a part is run with."""

    threads: int
    scale: float

    def count(self, full: int) -> int:
        """Return the share of ``full`` that is asked for, 20 at least."""
        return max(20, round(full * self.scale))


@dataclass(frozen=True)
class ServerRow:
    """One part; times in milliseconds, memory in MiB; ``note`` says what was compared."""

    part: str
    requests: int
    concurrency: int
    threads: int
    max_tokens: int
    lost: int
    wrong: int
    seconds: float
    requests_per_s: float
    tokens_per_s: float
    first_ms_p50: float
    first_ms_p95: float
    total_ms_p50: float
    total_ms_p95: float
    rss_mib_before: float
    rss_mib_after: float
    note: str


@dataclass
class Reply:
    """What came of one request."""

    text: str = ""
    reason: str | None = None
    tokens: int = 0
    first_ms: float = 0.0
    total_ms: float = 0.0
    status: int = 0


class Load:
    """A client with as many connections as it needs, and the server's process id."""

    def __init__(self, port: int, pid: int, key: str = KEY) -> None:
        self.port, self.pid = port, pid
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=64)
        self.http = httpx2.AsyncClient(
            base_url=f"http://127.0.0.1:{port}",
            headers={"authorization": f"Bearer {key}"},
            timeout=TIMEOUT_S,
            limits=limits,
        )

    async def stream(self, prompt: str) -> Reply:
        """Ask for a stream and read it to its end."""
        seen, begin = Reply(), time.perf_counter()
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": MAX_TOKENS,
            "stream": True,
            "stream_options": {"include_usage": True},
        }

        async with self.http.stream("POST", "/v1/chat/completions", json=body) as reply:
            seen.status = reply.status_code
            async for line in reply.aiter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                frame = json.loads(line[6:])
                for choice in frame.get("choices", []):
                    piece = choice["delta"].get("content") or ""
                    if piece and not seen.text:
                        seen.first_ms = (time.perf_counter() - begin) * 1e3
                    seen.text += piece
                    seen.reason = choice["finish_reason"] or seen.reason
                if frame.get("usage"):
                    seen.tokens = frame["usage"]["completion_tokens"]
        seen.total_ms = (time.perf_counter() - begin) * 1e3
        return seen

    async def at_once(self, prompts: Sequence[str], concurrency: int) -> tuple[list[Reply], float]:
        """Ask everything, so many at a time; the answers in order, and the seconds."""
        gate = asyncio.Semaphore(concurrency)

        async def one(prompt: str) -> Reply:
            async with gate:
                return await self.stream(prompt)

        begin = time.perf_counter()
        replies = await asyncio.gather(*(one(prompt) for prompt in prompts))
        return list(replies), time.perf_counter() - begin

    async def metrics(self) -> dict[str, float]:
        """Return the series that have no labels."""
        page = (await self.http.get("/metrics", headers=_METRICS)).text
        lines = [line.split() for line in page.splitlines() if line[0] != "#" and "{" not in line]
        return {name: float(value) for name, value in lines}

    async def decoding(self, count: int) -> bool:
        """Whether so many requests are in the batch at once."""
        return (await self.metrics())["alignbeam_running_requests"] >= count

    def rss_mib(self) -> float:
        """Resident memory of the server now."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@asynccontextmanager
async def server(threads: int, *options: str) -> AsyncIterator[Load]:
    """Run ``alignbeam serve`` for one part."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environ = {
        **os.environ,
        "ALIGNBEAM_API_KEYS": ",".join([KEY, HOSTILE_KEY, *FLOOD_KEYS]),
        "ALIGNBEAM_METRICS_KEYS": METRICS_KEY,
        "OMP_NUM_THREADS": str(threads),
    }
    command = [sys.executable, "-m", "alignbeam", "serve", "--port", str(port), *options]
    process = subprocess.Popen(command, cwd=REPO, env=environ, stderr=subprocess.DEVNULL)
    load = Load(port, process.pid)
    try:
        for _ in range(3000):
            if process.poll() is not None:
                raise SystemExit("the server did not start; run `alignbeam serve` to see why")
            try:
                if (await load.http.get("/ready")).status_code == 200:
                    break
            except httpx2.TransportError:
                await asyncio.sleep(0.1)
        yield load
    finally:
        await load.http.aclose()
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def prompts(count: int) -> list[str]:
    """Different short requests; every run asks the same ones."""
    forms = (
        "What is {} plus {}?",
        "Tom has {} apples and buys {} more. How many apples does Tom have?",
        "A box holds {} pens. How many pens are in {} boxes?",
    )
    pairs = itertools.product(range(2, 20), range(2, 20))
    made = [forms[i % 3].format(a, b) for i, (a, b) in enumerate(pairs)]
    return list(itertools.islice(itertools.cycle(made), count))


def row(
    part: str,
    replies: Sequence[Reply],
    seconds: float,
    *,
    concurrency: int,
    threads: int,
    wrong: int = 0,
    before: float = 0.0,
    after: float = 0.0,
    note: str = "",
) -> ServerRow:
    """Summarise what came back."""
    done = [s for s in replies if s.status == 200 and s.reason]
    first = sorted(s.first_ms for s in done) or [0.0]
    total = sorted(s.total_ms for s in done) or [0.0]
    return ServerRow(
        part=part,
        requests=len(replies),
        concurrency=concurrency,
        threads=threads,
        max_tokens=MAX_TOKENS,
        lost=sum(s.status not in (200, -1) or (s.status == 200 and not s.reason) for s in replies),
        wrong=wrong,
        seconds=round(seconds, 3),
        requests_per_s=round(len(done) / seconds, 3),
        tokens_per_s=round(sum(s.tokens for s in done) / seconds, 1),
        first_ms_p50=round(statistics.median(first), 1),
        first_ms_p95=round(first[int(0.95 * (len(first) - 1))], 1),
        total_ms_p50=round(statistics.median(total), 1),
        total_ms_p95=round(total[int(0.95 * (len(total) - 1))], 1),
        rss_mib_before=round(before, 1),
        rss_mib_after=round(after, 1),
        note=note,
    )


def differing(replies: Sequence[Reply], alone: Sequence[Reply]) -> int:
    """Count answers that are not what the request got alone."""
    pairs = zip(replies, alone, strict=True)
    return sum((s.text, s.reason) != (a.text, a.reason) for s, a in pairs if s.status == 200)


async def alone(load: Load, asked: Sequence[str]) -> tuple[list[Reply], float]:
    """Ask one at a time, in a server that has warmed up: what every other answer must equal."""
    await load.at_once(asked[:8], 8)
    return await load.at_once(asked, 1)


async def streams(run: Run) -> list[ServerRow]:
    """All at once, and 16 at a time, compared with one at a time."""
    count, sixteen = run.count(200), run.count(96)
    asked = prompts(count)
    async with server(run.threads) as load:
        single, _ = await alone(load, asked)
        replies, seconds = await load.at_once(asked, count)
        found = [
            row(
                "streams",
                replies,
                seconds,
                concurrency=count,
                threads=run.threads,
                wrong=differing(replies, single),
                note="each equal to its single-request answer",
            )
        ]
        # The same requests the two ways, one directly after the other: the machine is the same.
        single, seconds = await load.at_once(asked[:sixteen], 1)
        found.append(
            row(
                "throughput",
                single,
                seconds,
                concurrency=1,
                threads=run.threads,
                note="one at a time",
            )
        )
        replies, seconds = await load.at_once(asked[:sixteen], 16)
        note = f"{found[-1].seconds / seconds:.2f} times as fast as one at a time"
        found.append(
            row(
                "throughput",
                replies,
                seconds,
                concurrency=16,
                threads=run.threads,
                wrong=differing(replies, single),
                note=note,
            )
        )
    return found  # fmt: skip


async def cancel(run: Run) -> list[ServerRow]:
    """Give up every tenth while all of them decode; the others must not notice."""
    count = run.count(100)
    asked = prompts(count)
    async with server(run.threads) as load:
        single, _ = await alone(load, asked)
        begin = time.perf_counter()
        flying = [asyncio.create_task(load.stream(prompt)) for prompt in asked]
        while not await load.decoding(count):
            if any(task.done() for task in flying):
                raise SystemExit("some were answered before all had joined; ask for fewer")
            await asyncio.sleep(0.01)
        chosen = set(range(0, count, 10))
        for index in chosen:
            flying[index].cancel()
        replies = [
            one if isinstance(one, Reply) else Reply(status=-1)
            for one in await asyncio.gather(*flying, return_exceptions=True)
        ]
        seconds = time.perf_counter() - begin
        page = await load.metrics()
        left = page["alignbeam_running_requests"] + page["alignbeam_queued_requests"]
        seen = int(page["alignbeam_cancelled_total"])
        gone = sum(s.status == -1 for s in replies)
        wrong = differing(replies, single) + int(left) + abs(gone - len(chosen))
        note = f"{gone} given up ({seen} seen by the server), the other {count - gone} compared"
        return [row("cancel", replies, seconds, concurrency=count, threads=run.threads, wrong=wrong,
                    note=note)]  # fmt: skip


async def memory(run: Run) -> list[ServerRow]:
    """Resident memory once 200 have warmed it up, and at the end."""
    count = run.count(2000)
    asked = prompts(count)
    async with server(run.threads) as load:
        await load.at_once(prompts(200), 32)
        before = load.rss_mib()
        replies, seconds = await load.at_once(asked, 32)
        after = load.rss_mib()
        grew = after / before - 1
        return [
            row(
                "memory",
                replies,
                seconds,
                concurrency=32,
                threads=run.threads,
                before=before,
                after=after,
                wrong=int(grew > MAY_GROW),
                note=f"memory grew by {100 * grew:.1f} %",
            )
        ]


async def overload(run: Run) -> list[ServerRow]:
    """More than the queue takes: how fast the rest is told."""
    count = run.count(400)
    asked = prompts(count)
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder, "alignbeam.toml")
        settings.write_text("[server]\nmax_batch_cells = 8192\nmax_queued = 32\n")
        async with server(run.threads, "--config", str(settings)) as load:
            replies, seconds = await load.at_once(asked, count)
    refused = sorted(s.total_ms for s in replies if s.status == 503)
    served = [s for s in replies if s.status == 200]
    lost = len(replies) - len(refused) - len(served)
    note = f"{len(refused)} more refused with 503"
    if refused:
        note += f", median {statistics.median(refused):.0f} ms after all were sent at once"
    return [row("overload", served, seconds, concurrency=count, threads=run.threads,
                wrong=lost + (not refused), note=note)]  # fmt: skip


async def hostile(run: Run) -> list[ServerRow]:
    """One at a time, alone and beside a hostile client: slower by a little, and never wrong."""
    count = run.count(60)
    asked = prompts(count)
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder, "alignbeam.toml")
        settings.write_text("[server]\nmax_batch_cells = 4096\n")
        async with server(run.threads, "--config", str(settings)) as load:
            single, _ = await alone(load, asked)
            enemy = Load(load.port, load.pid, HOSTILE_KEY)
            answers: Counter[int] = Counter()
            attacks = [
                *(asyncio.create_task(at_its_worst(enemy, kind, answers)) for kind in WORST),
                *(asyncio.create_task(silent(load.port)) for _ in range(600)),
            ]
            while not await load.decoding(1):
                await asyncio.sleep(0.1)
            replies, seconds = await load.at_once(asked, 1)
            for one in attacks:
                one.cancel()
            await asyncio.gather(*attacks, return_exceptions=True)
            await enemy.http.aclose()
    quiet, loud = p99(single), p99(replies)
    note = (
        f"p99 {quiet:.0f} ms alone, {loud:.0f} ms beside the hostile client, "
        f"{loud / quiet:.1f} times; its answers: "
        + ", ".join(f"{n} x {status}" for status, n in sorted(answers.items()))
    )
    wrong = differing(replies, single) + (loud > MAY_SLOW * quiet)
    return [row("hostile", replies, seconds, concurrency=1, threads=run.threads, wrong=wrong,
                note=note)]  # fmt: skip


#: Bodies that are as much work as a request may be, several of each at a time.
WORST = [
    {"content": "<|im_end|>" * 95_000},
    {"content": "<|im_end|>" * 95_000},
    *[{"content": "Tell me a long story.", "n": 8, "max_tokens": 200, "beams": 8}] * 6,
]


async def at_its_worst(load: Load, kind: dict[str, Any], answers: Counter[int]) -> None:
    """Ask for one thing for ever, at once again whatever comes."""
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": kind["content"]}],
        "n": kind.get("n", 1),
        "max_tokens": kind.get("max_tokens", MAX_TOKENS),
        "alignbeam": {"beams": kind.get("beams", 3)},
    }
    # Made once: whoever attacks has a machine of their own, and here it is the server's.
    ask: dict[str, Any] = {
        "content": json.dumps(body).encode(),
        "headers": {"content-type": "application/json"},
    }
    while True:
        try:
            answers[(await load.http.post("/v1/chat/completions", **ask)).status_code] += 1
        except httpx2.TransportError:  # sent away before all of it was sent
            answers[0] += 1


async def flood(run: Run) -> list[ServerRow]:
    """One at a time beside clients that each have many long requests waiting; never wrong."""
    found = []
    for keys, each, words, tokens in ((1, 64, 700, 8), (4, 32, 450, 200)):
        asked = prompts(run.count(40))
        async with server(run.threads) as load:
            single, _ = await alone(load, asked)
            many = [Load(load.port, load.pid, key) for key in FLOOD_KEYS[:keys]]
            content = "the cat sat down " * (words // 4) + "Tell me a long story about it."
            kind = {"content": content, "max_tokens": tokens}
            answers: Counter[int] = Counter()
            floods = [
                asyncio.create_task(at_its_worst(one, kind, answers))
                for one in many
                for _ in range(each)
            ]
            await asyncio.sleep(8)
            replies, seconds = await load.at_once(asked, 1)
            for task in floods:
                task.cancel()
            await asyncio.gather(*floods, return_exceptions=True)
            for one in many:
                await one.http.aclose()
        usual = statistics.median(reply.total_ms for reply in single)
        note = (
            f"{keys} with {each} requests of {words} words for {tokens} tokens at a time; "
            f"the longest of mine {max(r.total_ms for r in replies):,.0f} ms, alone {usual:.0f} ms "
            f"(p50); of theirs {answers[200]} answered"
        )
        found.append(row("flood", replies, seconds, concurrency=1, threads=run.threads,
                         wrong=differing(replies, single), note=note))  # fmt: skip
    return found


async def silent(port: int) -> None:
    """Hold a connection and say nothing on it; come again when it is closed."""
    while True:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                await reader.read()
            finally:
                writer.close()
        await asyncio.sleep(1)


def p99(replies: Sequence[Reply]) -> float:
    """Return the 99th percentile of the times of answers, milliseconds."""
    total = sorted(reply.total_ms for reply in replies)
    return total[math.ceil(0.99 * len(total)) - 1]


PARTS = {f.__name__: f for f in (streams, cancel, memory, overload, hostile, flood)}


def main() -> None:
    """Run the parts and keep their rows beside those of other parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--threads", type=int, default=1, help="compute threads of the server")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="a share of every count; below 1 no row is kept"
    )
    chosen = parser.parse_args()
    run = Run(chosen.threads, chosen.scale)
    failed = False
    for part in chosen.part or PARTS:
        begin = time.perf_counter()
        found = asyncio.run(PARTS[part](run))
        for one in found:
            print(one)
        print(f"{part}: {time.perf_counter() - begin:.0f} s", flush=True)
        good = not any(one.lost or one.wrong for one in found)
        failed |= not good
        if good and run.scale == 1:
            keep(found)
    if failed:
        raise SystemExit("answers were lost or wrong, or memory grew: those rows were not kept")


def keep(found: Sequence[ServerRow]) -> None:
    """Replace the rows of what was measured."""
    path = rows.RESULTS / "server.jsonl"
    measured = {one.part for one in found}
    others = [line for line in rows.read("server") if line["part"] not in measured]
    mine = [{**asdict(one), "machine": asdict(rows.machine())} for one in found]
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in (*others, *mine)))


if __name__ == "__main__":
    main()
