"""The Triton kernels against the reference: on a GPU, else under Triton's interpreter.

The interpreter must be chosen before triton is first imported, so without a GPU these tests run
once more in a process of their own, where TRITON_INTERPRET=1.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from op_strategies import Case, assert_matches_reference, cases, make_table, values

from alignbeam.errors import BackendUnavailable
from alignbeam.ops import MixResult, mix_topk

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
RUNS_HERE = find_spec("triton") is not None and (INTERPRETED or DEVICE == "cuda")
needs_kernels = pytest.mark.skipif(not RUNS_HERE, reason="runs in the interpreter's process")


def run(case: Case) -> MixResult:
    arguments = {
        name: value.to(DEVICE) if isinstance(value, torch.Tensor) else value
        for name, value in case.arguments().items()
    }
    return MixResult(*(t.cpu() for t in mix_topk(**arguments, backend="triton")))


@needs_kernels
@settings(max_examples=25)
@given(case=cases(max_width=2049, max_rows=2))
def test_mix_topk_triton_matches_reference(case: Case) -> None:
    assert_matches_reference(run(case), case, "triton")


@needs_kernels
@pytest.mark.parametrize("support", ["anchor", "union"])
@pytest.mark.parametrize("mix", ["linear", "log"])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("poison", [None, math.nan, math.inf])
def test_mix_topk_triton_matches_reference_where_nothing_translates(
    poison: float | None, alpha: float, mix: str, support: str
) -> None:
    g = torch.Generator().manual_seed(13)
    anchor = values("gaussian", 2, 33, g)
    if poison is not None:
        anchor[0, 5] = poison
    table = make_table("nothing", 33, 50, g)
    case = Case(anchor, values("gaussian", 2, 50, g), table, alpha, 7, 3, mix, support)
    assert_matches_reference(run(case), case, "triton")


@needs_kernels
def test_mix_topk_triton_matches_reference_at_real_widths() -> None:
    g = torch.Generator().manual_seed(11)
    case = Case(
        values("gaussian", 1, 151_936, g).bfloat16(), values("peaked", 1, 128_256, g),
        make_table("spread", 151_936, 128_256, g), 0.5, 50, 3, "linear", "anchor",
    )  # fmt: skip
    assert_matches_reference(run(case), case, "triton")


@needs_kernels
@pytest.mark.parametrize(("kind", "top_b"), [("equal", 50), ("ties", 256)])
def test_mix_topk_triton_keeps_the_lowest_of_more_ties_than_it_has_slots(
    kind: str, top_b: int
) -> None:
    g = torch.Generator().manual_seed(12)
    case = Case(
        values(kind, 1, 33_001, g), values("zeros", 1, 17_000, g),
        make_table("spread", 33_001, 17_000, g), 0.5, top_b, 8, "linear", "union",
    )  # fmt: skip
    assert_matches_reference(run(case), case, "triton")


@needs_kernels
@settings(max_examples=10)
@given(case=cases(max_width=257, max_rows=3))
def test_mix_topk_triton_repeats_and_permutes_its_bits(case: Case) -> None:
    order = list(reversed(range(len(case.anchor_logits))))
    forward, again, backward = run(case), run(case), run(case.with_rows(order))
    for a, b, c in zip(forward, again, backward, strict=True):
        a, b, c = (t.view(torch.int32) if t.dtype == torch.float32 else t for t in (a, b, c))
        assert torch.equal(a, b)
        assert torch.equal(a[order], c)


@needs_kernels
@pytest.mark.skipif(DEVICE != "cuda", reason="captures a graph; runs on a GPU")
def test_mix_topk_triton_replays_in_a_graph() -> None:
    g = torch.Generator().manual_seed(14)
    case = Case(
        values("gaussian", 3, 20_000, g).bfloat16(), values("peaked", 3, 9_000, g),
        make_table("spread", 20_000, 9_000, g), 0.5, 50, 3, "linear", "anchor",
    )  # fmt: skip
    backward = case.with_rows([2, 1, 0])
    wanted = [run(case), run(backward)]
    anchor, target = case.anchor_logits.cuda(), case.target_logits.cuda()
    table = case.table.cuda()
    mix_topk(anchor, target, table, top_k=3, backend="triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = mix_topk(anchor, target, table, top_k=3, backend="triton")
    for inputs, want in zip((case, backward), wanted, strict=True):
        anchor.copy_(inputs.anchor_logits)
        target.copy_(inputs.target_logits)
        graph.replay()
        for got, expected in zip(out, want, strict=True):
            assert torch.equal(got.cpu(), expected)


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.skipif(RUNS_HERE, reason="this is the process that runs them")
def test_triton_kernels_pass_under_the_interpreter() -> None:
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider",
         __file__],
        env={**os.environ, "TRITON_INTERPRET": "1"}, cwd=Path(__file__).parents[2],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert "passed" in result.stdout


@pytest.mark.skipif(RUNS_HERE, reason="only where triton cannot run on CPU tensors")
def test_mix_topk_triton_refuses_cpu_tensors_outside_the_interpreter() -> None:
    with pytest.raises(BackendUnavailable, match=r"triton.*cannot run on cpu"):
        mix_topk(
            torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(2, dtype=torch.int32), top_b=1,
            backend="triton",
        )  # fmt: skip
