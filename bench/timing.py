"""The one timer: peers take turns on the same inputs, and medians come with their spread."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

Work = Callable[[], object]
_SHORT_S = 5e-3


@dataclass
class Samples:
    """Durations of one function, in seconds."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def wall_us(self, quantile: float) -> float:
        return 1e6 * quantile_of(self.wall, quantile)

    def cpu_us(self, quantile: float) -> float:
        return 1e6 * quantile_of(self.cpu, quantile)


def quantile_of(values: list[float], quantile: float) -> float:
    """The value below which ``quantile`` of the sorted values lie."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(quantile * len(ordered)))]


def ratios(slow: Samples, fast: Samples, basis: str) -> list[float]:
    """Turn by turn, how many times longer ``slow`` took, by "wall" or "cpu" time.

    Taken in turns, a busy moment of the machine hits both.
    """
    return [a / b for a, b in zip(getattr(slow, basis), getattr(fast, basis), strict=True)]


def take_turns(
    works: dict[str, Work], budget_s: float, least: int = 7, most: int = 400
) -> dict[str, Samples]:
    """Time each function in turn, at least ``least`` times, until ``budget_s`` is spent.

    A short function runs once untimed before each of its turns: it is timed with its own data in
    the caches, as far as they hold them, and not with what the peer before it left there. CPU time
    is that of the calling thread, which does its share of the work and, on a machine shared with
    others, is the steadier figure.
    """
    samples = {name: Samples() for name in works}
    short = set()
    for name, work in works.items():  # caches, allocators, threads
        work()
        begin = time.thread_time()
        work()
        if time.thread_time() - begin < _SHORT_S:
            short.add(name)
    begin = time.perf_counter()
    for turn in range(most):
        if turn >= least and time.perf_counter() - begin > budget_s:
            break
        for name, work in works.items():
            if name in short:
                work()
            cpu = time.thread_time()
            wall = time.perf_counter()
            work()
            samples[name].wall.append(time.perf_counter() - wall)
            samples[name].cpu.append(time.thread_time() - cpu)
    return samples


@dataclass(frozen=True)
class Pass:
    """Several calls in one CUDA graph."""

    replay: Work
    calls: int
    nodes: int  # of the graph, all calls together


def capture(variants: list[Work]) -> Pass:
    """Capture one call of each variant, in order, into one graph.

    Over enough input buffers to exceed the L2 cache several times it stays cold; a variant that is
    repeated finds it hot. RuntimeError where the work cannot be captured, as what synchronises.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for variant in variants[:3]:  # allocators, lazily loaded kernels, workspaces
            variant()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.graph(graph):
        for variant in variants:
            variant()
    nodes = _node_count(graph.raw_cuda_graph())
    graph.instantiate()
    graph.replay()
    torch.cuda.synchronize()
    return Pass(graph.replay, len(variants), nodes)


def _node_count(graph: int) -> int:
    count = ctypes.c_size_t()
    if ctypes.CDLL("libcuda.so.1").cuGraphGetNodes(
        ctypes.c_void_p(graph), None, ctypes.byref(count)
    ):
        raise RuntimeError("cuGraphGetNodes failed")
    return count.value


def take_turns_on_gpu(
    passes: dict[str, Pass], budget_s: float, least: int = 5, most: int = 60
) -> dict[str, Samples]:
    """Time graphs on the current GPU by events, in turns; a sample is the mean of their calls."""
    samples = {name: Samples() for name in passes}
    begin = time.perf_counter()
    for turn in range(most):
        if turn >= least and time.perf_counter() - begin > budget_s:
            break
        for name, one in passes.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            one.replay()
            end.record()
            end.synchronize()
            samples[name].wall.append(start.elapsed_time(end) / 1e3 / one.calls)
    return samples


def host_costs(works: dict[str, Work], turns: int = 7, calls: int = 20) -> dict[str, Samples]:
    """Time what a call costs the host that queues it, in turns; a sample is the mean of ``calls``.

    The queue of a GPU holds about a thousand launches; so few calls never wait for room in it.
    """
    samples = {name: Samples() for name in works}
    for _ in range(turns):
        for name, work in works.items():
            torch.cuda.synchronize()
            begin = time.perf_counter()
            for _ in range(calls):
                work()
            samples[name].wall.append((time.perf_counter() - begin) / calls)
    torch.cuda.synchronize()
    return samples


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run a block with ``count`` torch threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def spread(values: list[float]) -> tuple[float, float, float]:
    """The 20th, 50th and 80th percentile."""
    return quantile_of(values, 0.2), statistics.median(values), quantile_of(values, 0.8)
