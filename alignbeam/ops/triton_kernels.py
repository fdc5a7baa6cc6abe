# Kernels are Triton, not Python: their arguments have no Python types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""The op in Triton: two kernels, static shapes, exact, no atomics. See `alignbeam.ops.mix_topk`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from alignbeam.ops.spec import MAX_TOP_K, MixResult

_CHUNK = 8192
_GROUP = 64
_MAX_GROUPS = 4096  # what one program sorts; wider rows get wider groups
_NO_KEY = tl.constexpr(-(2**31))


@triton.jit
def _order_key(x):
    """Turn float32 logits into int32 keys that sort alike; -0.0 ties with +0.0."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    key = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return tl.where(key == -1, 0, key)


@triton.jit
def _summarise(
    logits_ptr, row_stride, columns, maxima_ptr, groups, sums_ptr, chunks,
    CHUNK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    # m = max x, s = sum of exp(x - m) for one chunk, and the maximum of each of its groups.
    # One program per (row, chunk); reads the chunk once, writes CHUNK / GROUP keys and two floats.
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    group = tl.arange(0, CHUNK // GROUP)
    column = chunk * CHUNK + group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    x = tl.load(
        logits_ptr + row * row_stride + column, mask=column < columns, other=float("-inf")
    ).to(tl.float32)
    largest = tl.max(x, axis=1)
    at = chunk * (CHUNK // GROUP) + group
    tl.store(maxima_ptr + row * groups + at, _order_key(largest), mask=at < groups)
    m = tl.max(largest, axis=0)
    usable = (m > float("-inf")) & (m < float("inf"))
    shift = tl.where(usable, m, 0.0)
    s = tl.sum(tl.sum(tl.exp2((x - shift) * 1.4426950408889634), axis=1), axis=0)
    # A fully masked chunk sums to 0; +inf in it makes the sum NaN, as NaN itself does.
    s = tl.where(usable | ((m == float("-inf")) & (s == 0.0)), s, float("nan"))
    tl.store(sums_ptr + (row * chunks + chunk) * 2, m)
    tl.store(sums_ptr + (row * chunks + chunk) * 2 + 1, s)


@triton.jit
def _merge_sums(sums_ptr, row, chunks, CHUNKS: tl.constexpr):
    """Return (shift, log of the sum of exp(x - shift)) of a row, float64."""
    at = tl.arange(0, CHUNKS)
    m = tl.load(sums_ptr + (row * chunks + at) * 2, mask=at < chunks, other=float("-inf"))
    s = tl.load(sums_ptr + (row * chunks + at) * 2 + 1, mask=at < chunks, other=0.0)
    shift = tl.max(m, axis=0).to(tl.float64)
    part = tl.where(s == 0.0, 0.0, s.to(tl.float64) * tl.exp(m.to(tl.float64) - shift))
    return shift, tl.log(tl.sum(part, axis=0))


@triton.jit
def _top_columns(
    row_ptr, columns, maxima_ptr, groups,
    GROUPS: tl.constexpr, GROUP: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    # The columns of the KEEP largest logits, by (logit descending, column ascending); columns
    # beyond the row come last. The KEEP groups with the largest maxima hold them all.
    at = tl.arange(0, GROUPS)
    key = tl.load(maxima_ptr + at, mask=at < groups, other=_NO_KEY).to(tl.int64)
    best = tl.topk((key << 32) | (0x7FFFFFFF - at).to(tl.int64), KEEP)
    group = 0x7FFFFFFF - (best & 0x7FFFFFFF)
    column = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :].to(tl.int64)
    x = tl.load(row_ptr + column, mask=column < columns, other=float("-inf")).to(tl.float32)
    key = tl.where(column < columns, _order_key(x).to(tl.int64), _NO_KEY)
    # Columns of phantom groups may pass 2^31; clipped, they still sort last.
    clipped = tl.minimum(column, 0x7FFFFFFF)
    best = tl.topk(tl.reshape((key << 32) | (0x7FFFFFFF - clipped), (KEEP * GROUP,)), KEEP)
    return 0x7FFFFFFF - (best & 0x7FFFFFFF)


@triton.jit
def _log_add_exp(a, b):
    high = tl.maximum(a, b)
    low = tl.minimum(a, b)
    return tl.where(low == float("-inf"), high, high + tl.log(1.0 + tl.exp(low - high)))


@triton.jit
def _log_sum_exp(terms, live):
    terms = tl.where(live, terms, float("-inf"))
    largest = tl.max(terms, axis=0)
    shift = tl.where(largest == float("-inf"), 0.0, largest)
    return shift + tl.log(tl.sum(tl.exp(terms - shift), axis=0))


@triton.jit
def _log_mix(log_a, log_q, alpha, LINEAR: tl.constexpr):
    if LINEAR:
        mixed = _log_add_exp(tl.log(alpha) + log_a, tl.log(1.0 - alpha) + log_q)
    else:
        mixed = alpha * log_a + (1.0 - alpha) * log_q
    return tl.where(alpha == 0.0, log_q, tl.where(alpha == 1.0, log_a, mixed))


@triton.jit
def _finish(
    anchor_ptr, anchor_stride, anchor_columns, anchor_maxima_ptr, anchor_groups,
    anchor_sums_ptr, anchor_chunks,
    target_ptr, target_stride, target_columns, target_maxima_ptr, target_groups,
    target_sums_ptr, target_chunks,
    table_ptr, alpha_ptr, top_b,
    ids_ptr, logprobs_ptr, masses_ptr, flags_ptr, rows,
    TOP_K: tl.constexpr, KEEP: tl.constexpr, KEEP_OUTSIDE: tl.constexpr,
    ANCHOR_GROUP: tl.constexpr, ANCHOR_GROUPS: tl.constexpr, ANCHOR_CHUNKS: tl.constexpr,
    TARGET_GROUP: tl.constexpr, TARGET_GROUPS: tl.constexpr, TARGET_CHUNKS: tl.constexpr,
    LINEAR: tl.constexpr, UNION: tl.constexpr, MAX_K: tl.constexpr,
):  # fmt: skip
    # Selection and epilogue of one row: one program per row; re-reads KEEP groups of the anchor
    # and one target logit per translated id.
    row = tl.program_id(0).to(tl.int64)
    anchor_row = anchor_ptr + row * anchor_stride
    target_row = target_ptr + row * target_stride
    alpha32 = tl.load(alpha_ptr + row)
    alpha = alpha32.to(tl.float64)
    anchor_shift, anchor_log = _merge_sums(anchor_sums_ptr, row, anchor_chunks, ANCHOR_CHUNKS)
    target_shift, target_log = _merge_sums(target_sums_ptr, row, target_chunks, TARGET_CHUNKS)
    ok = (alpha32 >= 0.0) & (alpha32 <= 1.0)
    ok = ok & (anchor_shift > float("-inf")) & (anchor_log < float("inf"))
    ok = ok & (target_shift > float("-inf")) & (target_log < float("inf"))

    # T and its translation.
    rank = tl.arange(0, KEEP)
    column = _top_columns(
        anchor_row, anchor_columns, anchor_maxima_ptr + row * anchor_groups, anchor_groups,
        ANCHOR_GROUPS, ANCHOR_GROUP, KEEP,
    )  # fmt: skip
    taken = (rank < top_b) & (column < anchor_columns)
    x = tl.load(anchor_row + column, mask=taken, other=float("-inf")).to(tl.float64)
    log_p = (x - anchor_shift) - anchor_log
    to = tl.load(table_ptr + column, mask=taken, other=-1)
    outside = tl.sum(((to < -1) | (to >= target_columns)).to(tl.int32), axis=0)
    ok = ok & (outside == 0)
    inside = (to >= 0) & (to < target_columns)
    anchor_mass = tl.sum(tl.where(taken, tl.exp(log_p), 0.0), axis=0)
    translated_mass = tl.sum(tl.where(inside, tl.exp(log_p), 0.0), axis=0)

    # a(d): the first of several anchor ids with one target id stands for them all.
    same = (to[:, None] == to[None, :]) & inside[:, None] & inside[None, :]
    leads = inside & (tl.sum((same & (rank[None, :] < rank[:, None])).to(tl.int32), axis=1) == 0)
    high = tl.max(tl.where(same, log_p[None, :], float("-inf")), axis=1)
    shift = tl.where(high == float("-inf"), 0.0, high)
    log_a = shift + tl.log(
        tl.sum(tl.where(same, tl.exp(log_p[None, :] - shift[:, None]), 0.0), axis=1)
    )
    y = tl.load(target_row + to, mask=leads, other=float("-inf")).to(tl.float64)
    log_q = (y - target_shift) - target_log
    target_mass = tl.sum(tl.where(leads, tl.exp(log_q), 0.0), axis=0)
    log_f = _log_mix(log_a, log_q, alpha, LINEAR)
    log_sum = _log_sum_exp(log_f, leads)
    # At alpha = 0, F is q: ranked by the logit itself, two neighbouring logits cannot tie.
    order = tl.where(alpha == 0.0, y, log_f)

    # The target ids outside S that could be chosen.
    place = tl.arange(0, KEEP_OUTSIDE)
    outside_id = place.to(tl.int64)
    outside = place < 0
    outside_log_f = tl.full((KEEP_OUTSIDE,), float("-inf"), tl.float64)
    outside_order = outside_log_f
    if UNION:
        target_mass = target_mass * 0.0 + 1.0
        zero_outside = alpha == 1.0
        if not LINEAR:
            zero_outside = alpha > 0.0
        widest = _top_columns(
            target_row, target_columns, target_maxima_ptr + row * target_groups, target_groups,
            TARGET_GROUPS, TARGET_GROUP, KEEP_OUTSIDE,
        )  # fmt: skip
        outside_id = tl.where(zero_outside, outside_id, widest)  # at f = 0 all tie: the lowest ids
        known = (outside_id[:, None] == to[None, :].to(tl.int64)) & inside[None, :]
        outside = (outside_id < target_columns) & (tl.sum(known.to(tl.int32), axis=1) == 0)
        y_out = tl.load(target_row + outside_id, mask=outside, other=float("-inf")).to(tl.float64)
        log_q_out = (y_out - target_shift) - target_log
        never = tl.full((KEEP_OUTSIDE,), float("-inf"), tl.float64)
        outside_log_f = tl.where(
            zero_outside, float("-inf"), _log_mix(never, log_q_out, alpha, LINEAR)
        )
        outside_order = tl.where(alpha == 0.0, y_out, outside_log_f)
        whole = _log_add_exp(tl.log(alpha) + _log_sum_exp(log_p, inside), tl.log(1.0 - alpha))
        whole = tl.where(alpha == 0.0, 0.0, whole)  # q sums to 1
        log_sum = tl.where(zero_outside, log_sum, whole)

    empty = log_sum == float("-inf")
    if empty:  # nothing in the support has any probability: the target's own best
        fallback = _top_columns(
            target_row, target_columns, target_maxima_ptr + row * target_groups, target_groups,
            TARGET_GROUPS, TARGET_GROUP, MAX_K,
        )  # fmt: skip
        at = tl.arange(0, MAX_K)
        real = fallback < target_columns
        y_best = tl.load(target_row + fallback, mask=real, other=float("-inf")).to(tl.float64)
        log_q_best = (y_best - target_shift) - target_log
        # Not real & ok: broadcast, a scalar comparison is float32 to the interpreter.
        fallback_id = tl.where(real, tl.where(ok, fallback, -1), -1)
        fallback_log_q = tl.where(real, log_q_best, float("-inf"))
        fallback_log_q = tl.where(ok, fallback_log_q, float("nan"))
        tl.store(ids_ptr + row * TOP_K + at, fallback_id, mask=at < TOP_K)
        tl.store(logprobs_ptr + row * TOP_K + at, fallback_log_q.to(tl.float32), mask=at < TOP_K)
    else:
        beyond = tl.full((), 0x7FFFFFFFFFFFFFFF, tl.int64)
        ids = to.to(tl.int64)
        for k in tl.static_range(TOP_K):
            top_in = tl.max(tl.where(leads, order, float("-inf")), axis=0)
            top_out = tl.max(tl.where(outside, outside_order, float("-inf")), axis=0)
            top = tl.maximum(top_in, top_out)
            first_in = tl.min(tl.where(leads & (order == top), ids, beyond), axis=0)
            first_out = tl.min(
                tl.where(outside & (outside_order == top), outside_id, beyond), axis=0
            )
            chosen = tl.minimum(first_in, first_out)
            mine_in = leads & (ids == chosen)
            mine_out = outside & (outside_id == chosen)
            value = tl.maximum(
                tl.max(tl.where(mine_in, log_f, float("-inf")), axis=0),
                tl.max(tl.where(mine_out, outside_log_f, float("-inf")), axis=0),
            )
            value = tl.where(ok, value - log_sum, float("nan"))
            chosen = tl.where(ok & (chosen != beyond), chosen, -1)
            tl.store(ids_ptr + row * TOP_K + k, chosen)
            tl.store(logprobs_ptr + row * TOP_K + k, value.to(tl.float32))
            leads = leads & (mine_in == 0)
            outside = outside & (mine_out == 0)
    nan = float("nan")
    tl.store(masses_ptr + row, tl.where(ok, anchor_mass, nan).to(tl.float32))
    tl.store(masses_ptr + rows + row, tl.where(ok, translated_mass, nan).to(tl.float32))
    tl.store(masses_ptr + 2 * rows + row, tl.where(ok, target_mass, nan).to(tl.float32))
    tl.store(flags_ptr + row, tl.where(ok, empty.to(tl.int32), 2))


class _Grid:
    """How a row of ``columns`` is cut, by its width alone: bits do not depend on anything else."""

    def __init__(self, columns: int, keep: int) -> None:
        self.group = _GROUP
        while triton.cdiv(columns, self.group) > _MAX_GROUPS:
            self.group *= 2
        self.groups = triton.cdiv(columns, self.group)
        self.padded_groups = max(triton.next_power_of_2(self.groups), keep)
        self.chunk = max(_CHUNK, self.group)
        self.chunks = triton.cdiv(columns, self.chunk)


def mix_topk(
    anchor_logits: Tensor,
    target_logits: Tensor,
    table: Tensor,
    *,
    alpha: float | Tensor,
    top_b: int,
    top_k: int,
    mix: str,
    support: str,
) -> MixResult:
    """See `alignbeam.ops.mix_topk`."""
    rows, anchor_columns = anchor_logits.shape
    target_columns = target_logits.shape[1]
    device = anchor_logits.device
    token_ids = torch.empty((rows, top_k), dtype=torch.int64, device=device)
    logprobs = torch.empty((rows, top_k), dtype=torch.float32, device=device)
    masses = torch.empty((3, rows), dtype=torch.float32, device=device)
    flags = torch.empty(rows, dtype=torch.int32, device=device)
    anchor_mass, translated_mass, target_mass = masses.unbind(0)
    result = MixResult(token_ids, logprobs, anchor_mass, translated_mass, target_mass, flags)
    if rows == 0:
        return result
    union = support == "union"
    # tl.topk wants powers of two; a fallback selects MAX_TOP_K from the target.
    keep = max(triton.next_power_of_2(top_b), 2)
    keep_outside = triton.next_power_of_2(top_b + top_k) if union else 2
    anchor = _Grid(anchor_columns, keep)
    target = _Grid(target_columns, max(keep_outside, MAX_TOP_K))
    if isinstance(alpha, Tensor):
        alphas = alpha.contiguous()
    else:
        alphas = torch.full((rows,), alpha, dtype=torch.float32, device=device)
    anchor_maxima, anchor_sums = _summaries(anchor_logits, anchor)
    target_maxima, target_sums = _summaries(target_logits, target)
    _finish[(rows,)](
        anchor_logits, anchor_logits.stride(0), anchor_columns, anchor_maxima, anchor.groups,
        anchor_sums, anchor.chunks,
        target_logits, target_logits.stride(0), target_columns, target_maxima, target.groups,
        target_sums, target.chunks,
        table, alphas, top_b,
        token_ids, logprobs, masses, flags, rows,
        TOP_K=top_k, KEEP=keep, KEEP_OUTSIDE=keep_outside,
        ANCHOR_GROUP=anchor.group, ANCHOR_GROUPS=anchor.padded_groups,
        ANCHOR_CHUNKS=triton.next_power_of_2(anchor.chunks),
        TARGET_GROUP=target.group, TARGET_GROUPS=target.padded_groups,
        TARGET_CHUNKS=triton.next_power_of_2(target.chunks),
        LINEAR=mix == "linear", UNION=union, MAX_K=MAX_TOP_K,
        num_warps=8,
    )  # fmt: skip
    return result


def _summaries(logits: Tensor, grid: _Grid) -> tuple[Tensor, Tensor]:
    """Return the groups' keys, int32 [R, groups], and the chunks' sums, float32 [R, chunks, 2]."""
    rows, columns = logits.shape
    maxima = torch.empty((rows, grid.groups), dtype=torch.int32, device=logits.device)
    sums = torch.empty((rows, grid.chunks, 2), dtype=torch.float32, device=logits.device)
    _summarise[(rows, grid.chunks)](
        logits, logits.stride(0), columns, maxima, grid.groups, sums, grid.chunks,
        CHUNK=grid.chunk, GROUP=grid.group, num_warps=8,
    )  # fmt: skip
    return maxima, sums
