"""The CUDA kernel on a real GPU: against the reference, and what only a GPU can get wrong."""

from __future__ import annotations

import ctypes

import pytest
import torch
from hypothesis import given
from op_strategies import Case, assert_matches_reference, cases, make_table, values

from alignbeam.ops import MixResult, mix_topk

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")


def on_gpu(tensor: torch.Tensor) -> torch.Tensor:
    """Copy with strides and alignment: a plain ``.cuda()`` would drop both."""
    size = (tensor.shape[0] - 1) * tensor.stride(0) + tensor.shape[1] if tensor.numel() else 0
    offset = tensor.storage_offset() % 8
    buffer = torch.full((size + offset + 64,), float("nan"), dtype=tensor.dtype, device="cuda")
    view = buffer.as_strided(tensor.shape, tensor.stride(), offset)
    return view.copy_(tensor)


def run(case: Case) -> MixResult:
    alpha = case.alpha.cuda() if isinstance(case.alpha, torch.Tensor) else case.alpha
    out = mix_topk(
        on_gpu(case.anchor_logits), on_gpu(case.target_logits), case.table.cuda(), alpha=alpha,
        top_b=case.top_b, top_k=case.top_k, mix=case.mix, support=case.support, backend="cuda",
    )  # fmt: skip
    return MixResult(*(t.cpu() for t in out))


def case_of(rows: int, dtype: torch.dtype = torch.bfloat16) -> Case:
    g = torch.Generator().manual_seed(rows)
    return Case(
        values("peaked", rows, 151_936, g).to(dtype),
        values("gaussian", rows, 128_256, g).to(dtype),
        make_table("spread", 151_936, 128_256, g), 0.5, 50, 3, "linear", "anchor",
    )  # fmt: skip


def assert_same_bits(a: MixResult, b: MixResult) -> None:
    for name, x, y in zip(MixResult._fields, a, b, strict=True):
        x, y = (t.view(torch.int32) if t.dtype == torch.float32 else t for t in (x, y))
        assert torch.equal(x, y), name


@given(case=cases())
def test_mix_topk_cuda_matches_reference(case: Case) -> None:
    assert_matches_reference(run(case), case, "cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_mix_topk_cuda_matches_reference_at_real_widths(dtype: torch.dtype) -> None:
    case = case_of(3, dtype)
    assert_matches_reference(run(case), case, "cuda")


@pytest.mark.parametrize("rows", [2, 8, 32, 300])
def test_mix_topk_cuda_gives_each_row_what_it_gets_alone(rows: int) -> None:
    case = case_of(rows)
    together = run(case)
    for row in (0, rows - 1):
        alone = run(case.with_rows([row]))
        assert_same_bits(MixResult(*(t[[row]] for t in together)), alone)


def test_mix_topk_cuda_repeats_its_bits_many_times() -> None:
    case = case_of(8)
    want = run(case)
    for _ in range(50):
        assert_same_bits(run(case), want)


def test_mix_topk_cuda_replays_in_a_graph() -> None:
    first, second = case_of(3), case_of(3)
    second.anchor_logits.copy_(second.anchor_logits.flip(0))
    anchor, target = first.anchor_logits.cuda(), first.target_logits.cuda()
    table = first.table.cuda()
    mix_topk(anchor, target, table, top_k=3, backend="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = mix_topk(anchor, target, table, top_k=3, backend="cuda")
    for case in (first, second, first):
        anchor.copy_(case.anchor_logits)
        target.copy_(case.target_logits)
        graph.replay()
        torch.cuda.synchronize()
        assert_same_bits(MixResult(*(t.cpu() for t in out)), run(case))


def test_mix_topk_cuda_sees_what_the_kernel_before_it_wrote() -> None:
    # A launch may begin while the one before it ends; logits of 300 rows keep that one busy.
    case = case_of(300)
    anchor, target, table = (
        case.anchor_logits.cuda(), case.target_logits.cuda(), case.table.cuda()
    )  # fmt: skip
    want = run(case)
    made = torch.empty_like(anchor)
    mix_topk(anchor, target, table, top_k=3, backend="cuda")
    outs = []
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(3):
            made.fill_(0.0)
            torch.mul(anchor, 1.0, out=made)
            outs.append(mix_topk(made, target, table, top_k=3, backend="cuda"))
            outs.append(mix_topk(anchor, target, table, top_k=3, backend="cuda"))
    for _ in range(5):
        graph.replay()
        made.fill_(0.0)
        torch.mul(anchor, 1.0, out=made)
        eager = mix_topk(made, target, table, top_k=3, backend="cuda")
        torch.cuda.synchronize()
        for out in (*outs, eager):
            assert_same_bits(MixResult(*(t.cpu() for t in out)), want)


def test_mix_topk_cuda_calls_of_one_graph_share_a_workspace_and_no_graph_zeroes_one() -> None:
    steps = [case_of(2), case_of(3), case_of(2)]
    inputs = [(c.anchor_logits.cuda(), c.target_logits.cuda(), c.table.cuda()) for c in steps]
    for x in inputs:  # tables are checked at their first use, which waits
        mix_topk(*x, top_k=3, backend="cuda")
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.graph(graph):
        outs = [mix_topk(*x, top_k=3, backend="cuda") for x in inputs]
    count = ctypes.c_size_t()
    graph_handle = ctypes.c_void_p(graph.raw_cuda_graph())
    assert ctypes.CDLL("libcuda.so.1").cuGraphGetNodes(graph_handle, None, ctypes.byref(count)) == 0
    assert count.value == len(steps)
    graph.instantiate()
    for _ in range(3):
        graph.replay()
        torch.cuda.synchronize()
        for out, case in zip(outs, steps, strict=True):
            assert_same_bits(MixResult(*(t.cpu() for t in out)), run(case))


def test_mix_topk_cuda_results_outlive_each_other() -> None:
    case = case_of(3)
    inputs = case.anchor_logits.cuda(), case.target_logits.cuda(), case.table.cuda()
    want = run(case)
    kept = [mix_topk(*inputs, top_k=3, backend="cuda").logprobs for _ in range(64)]
    for other in range(64):  # each takes what a freed one would have left
        torch.full((64,), float(other), device="cuda")
    assert all(torch.equal(x.cpu(), want.logprobs) for x in kept)


def test_mix_topk_cuda_says_what_it_refuses() -> None:
    case = case_of(2)
    anchor, target, table = (
        case.anchor_logits.cuda(), case.target_logits.cuda(), case.table.cuda()
    )  # fmt: skip
    with pytest.raises(ValueError, match="top_b"):
        mix_topk(anchor, target, table, top_b=0, backend="cuda")
    with pytest.raises(ValueError, match="must be on cuda"):
        mix_topk(anchor, case.target_logits, table, backend="cuda")
    with pytest.raises(ValueError, match="table must hold"):
        mix_topk(anchor, target, table + 2**20, backend="cuda")
    spread = torch.full((2, 2), 0.5, device="cuda")[:, 0]  # not contiguous
    assert mix_topk(anchor, target, table, alpha=spread, backend="cuda").flags.tolist() == [0, 0]


def test_mix_topk_cuda_serves_two_streams_at_once() -> None:
    cases_, inputs = [case_of(4), case_of(5)], []
    for case in cases_:
        inputs.append((case.anchor_logits.cuda(), case.target_logits.cuda(), case.table.cuda()))
    wanted = [run(case) for case in cases_]
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    results: list[list[MixResult]] = [[], []]
    for _ in range(20):
        for i, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                results[i].append(mix_topk(*inputs[i], top_k=3, backend="cuda"))
    torch.cuda.synchronize()
    for i, want in enumerate(wanted):
        for got in results[i]:
            assert_same_bits(MixResult(*(t.cpu() for t in got)), want)


def test_mix_topk_cuda_does_not_synchronise() -> None:
    case = case_of(2)
    inputs = case.anchor_logits.cuda(), case.target_logits.cuda(), case.table.cuda()
    mix_topk(*inputs, backend="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        mix_topk(*inputs, backend="cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_mix_topk_cuda_flags_an_alpha_out_of_range() -> None:
    case = case_of(2)
    out = mix_topk(
        case.anchor_logits.cuda(), case.target_logits.cuda(), case.table.cuda(),
        alpha=torch.tensor([0.5, 1.5], device="cuda"), backend="cuda",
    )  # fmt: skip
    assert out.flags.tolist() == [0, 2]
