"""The GPU half of `bench_mix_topk`: ours and every peer in CUDA graphs, L2 cold and hot.

Rows are written as soon as their group is measured. What does not fit the seconds, cannot be
captured or gives another answer is left out and said, never timed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import bench_mix_topk as bench
import peers
import rows as bench_rows
import timing
import torch

from alignbeam.ops import backends

_KINDS = ("equal", "ascending", "masked", "ties")  # made to defeat a select; timed at R = 3
_KINDS_AT = 3
_HOT_CALLS = 32
_COLD_CALLS = 24
_GROUP_S = 10.0  # one R and dtype, before it is known of the last one
_BULK_BYTES = 2**30
LEFT_OUT = "left out: "  # begins the lines that say so


@dataclass
class Budget:
    """Seconds for everything, and what was left out for want of them or for other causes."""

    seconds: float
    left_out: list[str] = field(default_factory=list)
    _begin: float = field(default_factory=time.monotonic)

    def left(self) -> float:
        return self.seconds - (time.monotonic() - self._begin)

    def leave_out(self, what: str, why: object) -> None:
        """Note it and say so at once: the process may not live to its end."""
        line = f"{what}: {' '.join(str(why).split())[:300]}"
        if line not in self.left_out:
            self.left_out.append(line)
            print(f"{LEFT_OUT}{line}", flush=True)


@dataclass(frozen=True)
class Group:
    """One number of rows in one dtype: peers are compiled once for it."""

    dtype: str
    rows: int

    def kinds(self) -> list[str]:
        return ["peaked", *(_KINDS if self.rows == _KINDS_AT else ())]


def groups(counts: list[int], dtypes: list[str]) -> list[Group]:
    """In the order of what is missed most: bf16 before fp32, the ends before what is between."""
    order = (1, 24, 256, 3, 96)
    ranked = sorted(counts, key=lambda c: order.index(c) if c in order else len(order))
    return [Group(dtype, count) for dtype in sorted(dtypes) for count in ranked]


class Systems:
    """Ours and the peers; those that are compiled, anew for each group."""

    def __init__(self, compiled: list[str], mode: str, unwanted: set[str], budget: Budget) -> None:
        self._compiled = compiled
        self._unwanted = unwanted
        self._mode = mode
        self._budget = budget
        self._dearest_s = 8.0  # of the compilations so far; the first starts the workers
        self.plain: dict[str, peers.Peer] = {
            "eager": peers.eager,
            "smart_eager": peers.smart_eager,
        }
        try:
            self.plain["flashinfer"] = peers.flashinfer_top_k()
        except ImportError as error:
            budget.leave_out("flashinfer", f"{error}; torch.topk is the best at hand")
        self.plain = {name: peer for name, peer in self.plain.items() if name not in unwanted}

    def ours(self) -> Iterator[tuple[str, str]]:
        """Name in the rows, and backend."""
        for backend in backends():
            if backend.device != "cuda" or backend.name in ("reference", *self._unwanted):
                continue
            if backend.available:
                yield ("ours" if backend.name == "cuda" else backend.name), backend.name
            else:
                self._budget.leave_out(backend.name, backend.detail)

    def compile_for(self, x: bench.Input, group: Group, reserve_s: float) -> dict[str, peers.Peer]:
        """Compile for the shape of ``x``, as long as ``reserve_s`` stay for the other groups."""
        torch._dynamo.reset()
        made: dict[str, peers.Peer] = {}
        for name in self._compiled:
            if name == "flashinfer":
                if name not in self.plain:
                    continue
                peer = peers.flashinfer_top_k(bench.compiled(peers.merge, self._mode))
                name = "flashinfer_compiled"
            else:
                peer = bench.compiled(getattr(peers, name), self._mode)
                name = f"compile_{name}"
            if name in self._unwanted:
                continue
            what = f"{name}, {group.dtype}, R = {group.rows}"
            if self._budget.left() - self._dearest_s < reserve_s:
                self._budget.leave_out(what, "the seconds are kept for what is not compiled")
                continue
            begin = time.monotonic()
            try:
                peer(x.anchor, x.target, x.table)
                torch.cuda.synchronize()
            except Exception as error:  # a compiler's errors have no common base
                self._budget.leave_out(what, error)
                continue
            self._dearest_s = max(3.0, time.monotonic() - begin)
            made[name] = peer
        return made


def parts(big: bench.Input, rows: int) -> list[bench.Input]:
    """Cut an input into inputs of ``rows`` rows each, views of its memory."""
    return [
        bench.Input(big.kind, anchor, target, big.table)
        for anchor, target in zip(big.anchor.split(rows), big.target.split(rows), strict=True)
    ]


def copies_for(rows: int, dtype: torch.dtype, cache_bytes: int) -> int:
    """How many inputs of ``rows`` rows keep a cache of that size cold: five times its bytes."""
    one = rows * (bench.ANCHOR_WIDTH + bench.TARGET_WIDTH) * dtype.itemsize
    return max(2, -(-5 * cache_bytes // one))


def cold_calls(inputs: list[bench.Input], turn: int) -> list[bench.Input]:
    """The inputs of one system's graph, none of which it finds in a cache.

    A quarter of them all, if that is `_COLD_CALLS` at least: more than the cache holds, and others
    than the system before it took. Fewer are gone through again: what starting a graph costs is
    not to be seen in a call, however few inputs do.
    """
    calls = max(_COLD_CALLS, -(-len(inputs) // 4))
    begin = turn * calls
    return [inputs[(begin + i) % len(inputs)] for i in range(calls)]


def works_on(x: list[bench.Input], call: Callable[[bench.Input], object]) -> list[timing.Work]:
    return [lambda one=one: call(one) for one in x]


def measure_kind(
    group: Group,
    kind: str,
    table: torch.Tensor,
    systems: Systems,
    budget: Budget,
    reserve_s: float,
    system_s: float,
    compiled: dict[str, peers.Peer],
    add: Callable[[list[bench.Row]], None],
) -> None:
    """Check and time every system on one kind of input; fills ``compiled`` where it is empty."""
    dtype = bench.DTYPES[group.dtype]
    cache = torch.cuda.get_device_properties().L2_cache_size
    count = copies_for(group.rows, dtype, cache)
    inputs = parts(bench.make_input(kind, group.rows * count, dtype, table, "cuda"), group.rows)
    x = inputs[0]
    where = f"{group.dtype}, R = {group.rows}, {kind}"
    want = bench.reference(x)
    if not compiled and kind == "peaked":
        compiled.update(systems.compile_for(x, group, reserve_s))
    calls: dict[str, Callable[[bench.Input], object]] = {}

    def accept(name: str, call: Callable[[bench.Input], Any], check: Callable[..., None]) -> None:
        try:
            check(name, call(x), x, want)
        except Exception as error:  # wrong, not compiled, out of memory: others go on
            budget.leave_out(f"{name}, {where}", error)
        else:
            calls[name] = call

    for name, backend in systems.ours():
        accept(name, lambda one, b=backend: bench.ours(one, b)(), bench.check_ours)
    for name, peer in {**systems.plain, **compiled}.items():
        accept(name, lambda one, p=peer: p(one.anchor, one.target, one.table), bench.check)
    copy_to = torch.empty_like(x.anchor)
    calls["copy"] = lambda one: copy_to.copy_(one.anchor)
    reader = read_call()
    if reader is not None:
        calls["read"] = reader
    timers = ["graph, cold L2", *(["graph, hot L2"] if kind == "peaked" else [])]
    for timer in timers:
        passes = {}
        for turn, (name, call) in enumerate(calls.items()):
            over = cold_calls(inputs, turn) if timer == timers[0] else [x] * _HOT_CALLS
            try:
                passes[name] = timing.capture(works_on(over, call))
            except RuntimeError as error:
                torch.cuda.synchronize()
                budget.leave_out(f"{name}, {where}, {timer}", error)
        samples = timing.take_turns_on_gpu(passes, system_s * len(passes))
        nodes = {name: one.nodes / one.calls for name, one in passes.items()}
        add(bench.make_rows(samples, x, group.dtype, "cuda", 0, timer, nodes))
    if kind == "peaked":
        hosted = {name: works_on([x], call)[0] for name, call in calls.items()}
        add(bench.make_rows(timing.host_costs(hosted), x, group.dtype, "cuda", 0, "host, eager"))


def read_call() -> Callable[[bench.Input], object] | None:
    try:
        import gpu_limits
    except ImportError:
        return None
    return lambda one: gpu_limits.read(one.anchor, one.target)


def bandwidths() -> list[bench.Row]:
    """Copy and read bandwidth of the card over a gibibyte: what shares are shares of."""
    source, target = (
        torch.empty(_BULK_BYTES // 2, dtype=torch.bfloat16, device="cuda").normal_()
        for _ in range(2)
    )
    works: dict[str, list[timing.Work]] = {"copy": [lambda: target.copy_(source)]}
    half = source.numel() // 2
    reader = read_call()
    if reader is not None:
        x = bench.Input("flat", source[:half], source[half:], source)
        works["read"] = [lambda: reader(x)]
    passes = {name: timing.capture(variants * 4) for name, variants in works.items()}
    made = []
    for name, sample in timing.take_turns_on_gpu(passes, 0.5).items():
        p20, p50, p80 = timing.spread(sample.wall)
        moved = _BULK_BYTES * (2 if name == "copy" else 1)
        made.append(
            bench.Row(
                op="roofline", system=name, device="cuda", isa="", dtype="bf16", kind="flat",
                rows=0, anchor_width=source.numel(), target_width=0, threads=0,
                timer="graph, cold L2", samples=len(sample.wall), p20_us=1e6 * p20,
                p50_us=1e6 * p50, p80_us=1e6 * p80, cpu_p20_us=float("nan"),
                cpu_p50_us=float("nan"), gb_per_s=moved / p50 / 1e9, load=0.0,
            )
        )  # fmt: skip
        print(f"{name}: {made[-1].gb_per_s:,.0f} GB/s", flush=True)
    return made


def compile_ahead(todo: list[Group], argv: list[str], most_s: float) -> None:
    """Compile the peers of all groups at once, a process each, into the compiler's cache.

    One after the other, as they are measured, they would take most of the time. What is not done
    after ``most_s`` seconds is compiled later.
    """
    end = time.monotonic() + most_s
    bench_script = str(bench_rows.RESULTS.parent / "bench_mix_topk.py")
    environment = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, bench_script, *argv, "--device", "cuda", "--compile-only",
             "--dtypes", group.dtype, "--rows", str(group.rows)],
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        for group in todo
    ]  # fmt: skip
    for process in started:
        try:
            process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    print(f"compiled ahead in {time.monotonic() - end + most_s:.0f} s", flush=True)


def compile_only(todo: list[Group], systems: Systems, table: torch.Tensor) -> int:
    with torch.inference_mode():
        for group in todo:
            x = bench.make_input("peaked", group.rows, bench.DTYPES[group.dtype], table, "cuda")
            systems.compile_for(x, group, 0.0)
    return 0


def run(arguments: argparse.Namespace) -> int:
    """Measure all groups, politely: between them it stops when the seconds are spent."""
    if not torch.cuda.is_available():
        print("no GPU here (torch sees none): nothing was measured")
        return 2
    budget = Budget(arguments.seconds)
    names = "smart_eager,flashinfer" if arguments.compiled is None else arguments.compiled
    systems = Systems(
        [name for name in names.split(",") if name],
        arguments.compile,
        set(arguments.leave_out.split(",")),
        budget,
    )
    # The random table: what it translates does not change what a step costs.
    table = bench.real_pair(None)[0].cuda()
    todo = groups(arguments.rows, arguments.dtypes)
    if arguments.compile_only:
        return compile_only(todo, systems, table)
    # Above 0.6 the default of the CPU, whose samples are single calls; here each is a mean of many.
    system_s = min(arguments.budget, 0.05)
    name = arguments.name or bench.default_name("cuda")
    writer = bench_rows.Writer(arguments.out or bench_rows.RESULTS / f"{name}.jsonl")

    def add(made: list[bench.Row]) -> None:
        for row in made:
            writer.add(row)

    if names:
        argv = ["--compiled", names, "--compile", arguments.compile]
        compile_ahead(todo, [*argv, "--leave-out", arguments.leave_out], budget.left() / 3)
    with torch.inference_mode():
        add(bandwidths())
        group_s = _GROUP_S
        for at, group in enumerate(todo):
            if budget.left() < group_s:
                for late in todo[at:]:
                    budget.leave_out(f"{late.dtype}, R = {late.rows}", "the seconds are spent")
                break
            # Half of it is for what is compiled, which those that come late can do without.
            reserve_s = group_s * (1 + (len(todo) - at - 1) / 2)
            compiled: dict[str, peers.Peer] = {}
            for kind in group.kinds():
                if kind != "peaked" and budget.left() < reserve_s:
                    budget.leave_out(f"{group.dtype}, R = {group.rows}, {kind}", "no seconds left")
                    continue
                left = budget.left()
                measure_kind(
                    group, kind, table, systems, budget, reserve_s, system_s, compiled, add
                )
                if kind == "peaked":
                    group_s = max(3.0, left - budget.left())
                    print(f"{group.dtype}, R = {group.rows}: {group_s:.0f} s", flush=True)
                torch.cuda.empty_cache()
    writer.close()
    print(f"wrote {writer.path}; left out: {len(budget.left_out)}")
    return 0
