"""Every backend that runs here against the float64 reference, over generated inputs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from op_strategies import KINDS, Case, assert_matches_reference, cases, embedded, make_table, values

from alignbeam.ops import MixResult, build, mix_topk

#: Each has what those before it have.
ISAS = ["scalar", "avx2", "avx512"]
_EXTENSION = build.cpu_extension()
needs_extension = pytest.mark.skipif(
    _EXTENSION.reason is not None, reason=f"no native extension: {_EXTENSION.reason}"
)


def run_on_host(case: Case) -> MixResult:
    """Run the CUDA kernel's steps on the host, over its chunk grid."""
    return MixResult._make(_EXTENSION.require().mix_topk_host(**case.arguments()))


def cpu(case: Case) -> MixResult:
    return mix_topk(**case.arguments(), backend="cpu")


@needs_extension
@given(case=cases())
def test_mix_topk_cpu_matches_reference(case: Case) -> None:
    assert_matches_reference(cpu(case), case, "cpu")


@needs_extension
@given(case=cases(max_width=8193))
def test_mix_topk_cuda_steps_match_reference_on_the_host(case: Case) -> None:
    assert_matches_reference(run_on_host(case), case, "host")


def large_case(kind: str, dtype: torch.dtype, support: str, top_b: int = 50) -> Case:
    g = torch.Generator().manual_seed(7)
    anchor = values(kind, 1, 151_936, g).to(dtype)
    target = values("gaussian", 1, 128_256, g).to(dtype)
    return Case(
        embedded(anchor, 1, 3), embedded(target, 0, 1),
        make_table("spread", 151_936, 128_256, g), 0.5, top_b, 3, "linear", support,
    )  # fmt: skip


@needs_extension
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_mix_topk_cpu_matches_reference_at_real_widths(kind: str, dtype: torch.dtype) -> None:
    case = large_case(kind, dtype, "anchor")
    assert_matches_reference(mix_topk(**case.arguments(), backend="cpu"), case, "cpu")


@needs_extension
@pytest.mark.parametrize("kind", ["gaussian", "equal", "ascending"])
def test_mix_topk_cpu_matches_reference_at_the_largest_top_b(kind: str) -> None:
    case = large_case(kind, torch.bfloat16, "union", top_b=256)
    assert_matches_reference(mix_topk(**case.arguments(), backend="cpu"), case, "cpu")


@needs_extension
def test_mix_topk_cuda_steps_match_reference_on_the_host_at_real_widths() -> None:
    case = large_case("gaussian", torch.bfloat16, "anchor")
    assert_matches_reference(run_on_host(case), case, "host")


@needs_extension
@pytest.mark.parametrize("reads", ["one", "many"])
@pytest.mark.parametrize("isa", ISAS)
def test_mix_topk_cpu_matches_reference_under_each_instruction_set(isa: str, reads: str) -> None:
    # The choice is made once per process. A CPU that lacks some runs what it has once more.
    environment = {
        **os.environ,
        "ALIGNBEAM_CPU_ISA": isa,
        "ALIGNBEAM_CPU_READS": reads,
        "OMP_NUM_THREADS": "1",
    }
    code = f"""
import sys
import pytest
from alignbeam.ops import build
extension = build.cpu_extension().require()
used = extension.cpu_isa(), extension.cpu_reads()
if used[0] not in {ISAS[: ISAS.index(isa) + 1]} or used[1] != "{reads}":
    sys.exit(f"used {{used}}")
chosen = "cpu_matches_reference and not instruction"
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", {str(Path(__file__))!r}, "-k", chosen]))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=Path(__file__).parents[2],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr


@needs_extension
@settings(max_examples=10)
@given(case=cases(max_width=257, max_rows=1))
def test_mix_topk_cpu_matches_reference_for_many_rows(case: Case) -> None:
    many = case.with_rows([0] * 300)
    got = mix_topk(**many.arguments(), backend="cpu")
    assert_matches_reference(MixResult(*(t[:1] for t in got)), case.with_rows([0]), "cpu")
    for tensor in got:
        same = torch.equal(
            tensor.nan_to_num(nan=7.0), tensor[:1].expand_as(tensor).nan_to_num(nan=7.0)
        )
        assert same


@needs_extension
@pytest.mark.parametrize("run", [cpu, run_on_host], ids=["cpu", "host"])
def test_mix_topk_cpu_matches_reference_where_small_probabilities_add_up(
    run: Callable[[Case], MixResult],
) -> None:
    # Added one by one to a float32 that holds the largest of its tile, all the others are lost.
    logits = torch.full((1, 131_072), -17.0)
    logits[0, ::1024] = 0.0
    case = Case(
        logits, logits.clone(), torch.zeros(131_072, dtype=torch.int32), 0.5, 50, 3, "linear",
        "union",
    )  # fmt: skip
    assert_matches_reference(run(case), case, run.__name__)
