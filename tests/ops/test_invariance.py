"""Bits that must not change: with the other rows, their order, their number, the thread count."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given
from op_strategies import Case, cases

from alignbeam.ops import Flags, MixResult, build, mix_topk

_EXTENSION = build.cpu_extension()
pytestmark = pytest.mark.skipif(
    _EXTENSION.reason is not None, reason=f"no native extension: {_EXTENSION.reason}"
)
_ROOT = Path(__file__).resolve().parents[2]


def bits(result: MixResult) -> list[torch.Tensor]:
    """Floats as their bit patterns, so that NaN equals NaN and -0.0 is not 0.0."""
    return [t.view(torch.int32) if t.dtype == torch.float32 else t for t in result]


def assert_same_bits(got: MixResult, want: MixResult) -> None:
    for name, a, b in zip(MixResult._fields, bits(got), bits(want), strict=True):
        assert torch.equal(a, b), name


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@given(case=cases())
def test_mix_topk_repeats_its_bits(case: Case) -> None:
    assert_same_bits(mix_topk(**case.arguments()), mix_topk(**case.arguments()))


@given(case=cases())
def test_mix_topk_permutes_its_rows(case: Case) -> None:
    order = list(reversed(range(len(case.anchor_logits))))
    forward = mix_topk(**case.arguments())
    backward = mix_topk(**case.with_rows(order).arguments())
    assert_same_bits(MixResult(*(t[order] for t in forward)), backward)


@given(case=cases())
def test_mix_topk_gives_each_row_what_it_gets_alone(case: Case) -> None:
    together = mix_topk(**case.arguments())
    for row in range(len(case.anchor_logits)):
        alone = mix_topk(**case.with_rows([row]).arguments())
        assert_same_bits(MixResult(*(t[[row]] for t in together)), alone)


@given(case=cases())
def test_mix_topk_leaves_rows_beside_a_poisoned_one_untouched(case: Case) -> None:
    twice = case.with_rows([*range(len(case.anchor_logits)), 0])
    twice.target_logits[-1, -1] = math.nan  # with_rows copies
    got = mix_topk(**twice.arguments())
    assert int(got.flags[-1]) == Flags.NON_FINITE
    assert_same_bits(MixResult(*(t[:-1] for t in got)), mix_topk(**case.arguments()))


@given(case=cases())
def test_mix_topk_gives_the_same_bits_with_any_number_of_threads(case: Case) -> None:
    with threads(1):
        one = mix_topk(**case.arguments(), backend="cpu")
    for count in (2, 5):
        with threads(count):
            assert_same_bits(mix_topk(**case.arguments(), backend="cpu"), one)


@given(case=cases(max_width=2049))
def test_mix_topk_writes_nothing_outside_its_outputs(case: Case) -> None:
    rows, top_k = len(case.anchor_logits), case.top_k
    canary, guard = 77, 16
    dtypes = {"token_ids": torch.int64, "flags": torch.int32}
    shapes = {"token_ids": (rows, top_k), "logprobs": (rows, top_k)}
    buffers, outputs, sizes = {}, {}, {}
    for name in MixResult._fields:
        shape = shapes.get(name, (rows,))
        sizes[name] = math.prod(shape)
        buffers[name] = torch.full(
            (sizes[name] + 2 * guard,), canary, dtype=dtypes.get(name, torch.float32)
        )
        outputs[name] = buffers[name][guard : guard + sizes[name]].view(shape)
    before = [case.anchor_logits.clone(), case.target_logits.clone(), case.table.clone()]
    written = _EXTENSION.require().mix_topk_cpu(
        **case.arguments(), threads=1, out=MixResult(**outputs)
    )
    assert_same_bits(MixResult._make(written), mix_topk(**case.arguments(), backend="cpu"))
    for name, buffer in buffers.items():
        assert (buffer[:guard] == canary).all(), name
        assert (buffer[guard + sizes[name] :] == canary).all(), name
    after = [case.anchor_logits, case.target_logits, case.table]
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a.nan_to_num(nan=7.0), b.nan_to_num(nan=7.0))


def small_case() -> Case:
    g = torch.Generator().manual_seed(3)
    return Case(
        torch.randn(4, 40_000, generator=g), torch.randn(4, 30_000, generator=g),
        torch.randint(-1, 30_000, (40_000,), generator=g, dtype=torch.int32),
        0.5, 50, 3, "linear", "anchor",
    )  # fmt: skip


def test_mix_topk_serves_several_python_threads_at_once() -> None:
    case = small_case()
    want = mix_topk(**case.arguments())
    results: list[MixResult] = []

    def work() -> None:
        results.extend(mix_topk(**case.arguments()) for _ in range(20))

    workers = [threading.Thread(target=work) for _ in range(4)]
    with threads(2):
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert len(results) == 80
    for result in results:
        assert_same_bits(result, want)


_FORK = """
import os, sys, torch
sys.path[:0] = {paths!r}
from test_invariance import assert_same_bits, small_case
from alignbeam.ops import mix_topk
torch.set_num_threads(2)
case = small_case()
want = mix_topk(**case.arguments())     # the helpers are running
child = os.fork()
if child == 0:
    assert_same_bits(mix_topk(**case.arguments()), want)
    os._exit(0)
_, status = os.waitpid(child, 0)
assert status == 0, status
assert_same_bits(mix_topk(**case.arguments()), want)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_mix_topk_works_after_a_fork_and_lets_the_interpreter_exit() -> None:
    paths = [str(Path(__file__).parent), str(_ROOT / "tests/support")]
    result = subprocess.run(
        [sys.executable, "-c", _FORK.format(paths=paths)],
        cwd=_ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
