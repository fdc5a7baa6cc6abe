# Kernels are Triton, not Python: their arguments have no Python types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""The op in Triton, for GPUs without nvcc or CUDA: exact, no atomics. See `alignbeam.ops.mix_topk`.

Two launches. `summarise` reads every logit once, spread over the whole GPU. `_finish`, one program
a row, narrows by thresholds to the few columns that count, and mixes them. What differs between
calls is an argument and not a constant: `VARIANTS` is all the code there is to compile.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from alignbeam.ops.spec import FLOATS, MAX_TOP_B, MAX_TOP_K, MixResult
from alignbeam.ops.triton_rows import (
    CHUNK,
    CHUNK_GROUPS,
    NO_KEY,
    cut,
    kernel,
    load_logits,
    logit,
    select,
    summarise,
    total_of,
)  # fmt: skip

_OTHERS = tl.constexpr(32)  # slots compared with all slots in one step
_NO_ORDER = tl.constexpr(-(2**63))
_SLOT_WORDS = tl.constexpr(12)  # of scratch memory, int32, for each slot
_PLACES = tl.constexpr(MAX_TOP_K)


@triton.jit
def _log_add_exp(a, b):
    # Differences in float64, exp and log in float32: 1e-7 off, and fast on every GPU.
    high = tl.maximum(a, b)
    low = tl.minimum(a, b)
    far = tl.exp((low - high).to(tl.float32))
    return tl.where(low == float("-inf"), high, high + tl.log(1.0 + far).to(tl.float64))


@triton.jit
def _log_sum_exp(terms, live):
    terms = tl.where(live, terms, float("-inf"))
    largest = tl.max(terms, axis=0)
    shift = tl.where(largest == float("-inf"), 0.0, largest)
    return shift + tl.log(tl.sum(tl.exp((terms - shift).to(tl.float32)), axis=0)).to(tl.float64)


@triton.jit
def _log_mix(log_a, log_q, alpha, log_alpha, log_rest, linear):
    both = _log_add_exp(log_alpha + log_a, log_rest + log_q)
    mixed = tl.where(linear != 0, both, alpha * log_a + (1.0 - alpha) * log_q)
    return tl.where(alpha == 0.0, log_q, tl.where(alpha == 1.0, log_a, mixed))


@triton.jit
def _ahead(other_key, other_place, key, place):
    """Tell [j, i]: whether the other, j, is ranked before i."""
    ties = (other_key[:, None] == key[None, :]) & (other_place[:, None] < place[None, :])
    return (other_key[:, None] > key[None, :]) | ties


@triton.jit
def _put(orders_ptr, ids_ptr, values_ptr, at, order, ids, values, live, mask):
    # A candidate: by what it is ranked, its target id, its log F. Dead ones rank behind all others.
    bits = (order + 0.0).to(tl.int64, bitcast=True)
    key = tl.where(bits < 0, bits ^ 0x7FFFFFFFFFFFFFFF, bits)
    tl.store(orders_ptr + at, tl.where(live, key, _NO_ORDER), mask=mask)
    tl.store(ids_ptr + at, ids, mask=mask)
    tl.store(values_ptr + at, values.to(tl.float32), mask=mask)


@kernel(
    anchor_ptr="*u8", anchor_kind="i32", anchor_stride="i64", anchor_columns="i32",
    target_ptr="*u8", target_kind="i32", target_stride="i64", target_columns="i32",
    maxima_ptr="*i32", sums_ptr="*fp32", scratch_ptr="*i32", table_ptr="*i32",
    alphas_ptr="*fp32", has_alphas="i32", one_alpha="fp32",
    top_b="i32", top_k="i32", linear="i32", union="i32",
    ids_ptr="*i64", logprobs_ptr="*fp32", masses_ptr="*fp32", flags_ptr="*i32", rows="i32",
)  # fmt: skip
def _finish(
    anchor_ptr, anchor_kind, anchor_stride, anchor_columns,
    target_ptr, target_kind, target_stride, target_columns,
    maxima_ptr, sums_ptr, scratch_ptr, table_ptr,
    alphas_ptr, has_alphas, one_alpha,
    top_b, top_k, linear, union,
    ids_ptr, logprobs_ptr, masses_ptr, flags_ptr, rows,
    SLOTS: tl.constexpr,
):  # fmt: skip
    # Selection and epilogue of one row. Slots exchange what they hold through scratch memory.
    row = tl.program_id(0).to(tl.int64)
    anchor_chunks = cut(anchor_columns, CHUNK)
    target_chunks = cut(target_columns, CHUNK)
    maxima_ptr += row * (anchor_chunks + target_chunks) * CHUNK_GROUPS
    sums_ptr += row * (anchor_chunks + target_chunks) * 2
    scratch_ptr += row * (_SLOT_WORDS * SLOTS)
    orders_ptr = scratch_ptr.to(tl.pointer_type(tl.int64))  # 2 * SLOTS
    values_ptr = (scratch_ptr + 4 * SLOTS).to(tl.pointer_type(tl.float32))  # 2 * SLOTS
    chosen_ptr = scratch_ptr + 6 * SLOTS  # 2 * SLOTS
    groups_ptr = scratch_ptr + 8 * SLOTS
    columns_ptr = scratch_ptr + 9 * SLOTS
    keys_ptr = scratch_ptr + 10 * SLOTS
    to_ptr = scratch_ptr + 11 * SLOTS
    slot = tl.arange(0, SLOTS)
    each = tl.arange(0, _OTHERS)

    alpha32 = tl.load(alphas_ptr + row, mask=has_alphas != 0, other=one_alpha)
    alpha = alpha32.to(tl.float64)
    log_alpha = tl.log(alpha)
    log_rest = tl.log(1.0 - alpha)
    anchor_shift, anchor_log = total_of(sums_ptr, anchor_chunks)
    target_shift, target_log = total_of(sums_ptr + anchor_chunks * 2, target_chunks)
    ok = (alpha32 >= 0.0) & (alpha32 <= 1.0)
    ok = ok & (anchor_shift > float("-inf")) & (anchor_log < float("inf"))
    ok = ok & (target_shift > float("-inf")) & (target_log < float("inf"))

    # First the anchor's best, translated; then, where they are called for, the target's own.
    from_target = rows * 0
    want = top_b
    translated = rows * 0  # slots of the anchor's
    total = rows * 0  # candidates so far
    zero_outside = (union != 0) & ((alpha == 1.0) | ((linear == 0) & (alpha > 0.0)))
    widened = (union != 0) & (zero_outside == 0)
    empty = total > 0
    log_sum = alpha * 0.0
    anchor_mass = alpha32 * 0.0
    translated_mass = alpha32 * 0.0
    target_mass = alpha32 * 0.0
    while want > 0:
        logits_ptr = anchor_ptr
        kind = anchor_kind
        row_start = row * anchor_stride
        columns = anchor_columns
        row_maxima_ptr = maxima_ptr
        if from_target > 0:
            logits_ptr = target_ptr
            kind = target_kind
            row_start = row * target_stride
            columns = target_columns
            row_maxima_ptr = maxima_ptr + anchor_chunks * CHUNK_GROUPS
        kept = select(
            logits_ptr, kind, row_start, columns, row_maxima_ptr, want,
            groups_ptr, columns_ptr, keys_ptr, SLOTS,
        )  # fmt: skip
        held = slot < kept
        key = tl.load(keys_ptr + slot, mask=held, other=NO_KEY)
        column = tl.load(columns_ptr + slot, mask=held, other=0)
        x = logit(key)
        if from_target == 0:
            # T and its translation.
            translated = kept
            to = tl.load(table_ptr + column, mask=held, other=-1)
            ahead = tl.zeros((_OTHERS, SLOTS), tl.int32)
            for first in range(0, kept, _OTHERS):
                other = first + each
                other_key = tl.load(keys_ptr + other, mask=other < kept, other=NO_KEY)
                ahead += _ahead(other_key, other, key, slot).to(tl.int32)
            taken = held & (tl.sum(ahead, axis=0) < top_b)
            outside = taken & ((to < -1) | (to >= target_columns))
            ok = ok & (tl.sum(outside.to(tl.int32), axis=0) == 0)
            inside = taken & (to >= 0) & (to < target_columns)
            to = tl.where(inside, to, -1)
            tl.store(to_ptr + slot, to)
            tl.debug_barrier()
            y = load_logits(target_ptr, target_kind, row * target_stride + to, inside)
            log_p = (x.to(tl.float64) - anchor_shift) - anchor_log
            p = tl.where(taken, tl.exp(log_p.to(tl.float32)), 0.0)
            anchor_mass = tl.sum(p, axis=0)
            translated_mass = tl.sum(tl.where(inside, p, 0.0), axis=0)

            # a(d): the likeliest of several anchor ids with one target id stands for them all.
            shift = tl.where(x == float("-inf"), 0.0, x)
            ahead = tl.zeros((_OTHERS, SLOTS), tl.int32)
            sums = tl.zeros((_OTHERS, SLOTS), tl.float32)
            for first in range(0, kept, _OTHERS):
                other = first + each
                other_key = tl.load(keys_ptr + other, mask=other < kept, other=NO_KEY)
                other_to = tl.load(to_ptr + other, mask=other < kept, other=-1)
                same = inside[None, :] & (other_to[:, None] == to[None, :])
                ahead += (same & _ahead(other_key, other, key, slot)).to(tl.int32)
                part = tl.exp(logit(other_key)[:, None] - shift[None, :])
                sums += tl.where(same, part, 0.0)
            leads = inside & (tl.sum(ahead, axis=0) == 0)
            log_a = log_p + tl.log(tl.sum(sums, axis=0)).to(tl.float64)
            log_q = (y.to(tl.float64) - target_shift) - target_log
            log_f = _log_mix(log_a, log_q, alpha, log_alpha, log_rest, linear)
            log_sum = _log_sum_exp(log_f, leads)
            target_mass = tl.sum(tl.where(leads, tl.exp(log_q.to(tl.float32)), 0.0), axis=0)
            empty = (log_sum == float("-inf")) & (widened == 0)
            if widened:  # q sums to 1
                log_sum = tl.log(alpha * translated_mass.to(tl.float64) + (1.0 - alpha))
            # At alpha = 0, F is q: ranked by the logit itself, two neighbours cannot tie.
            order = tl.where(alpha == 0.0, y.to(tl.float64), log_f)
            total = tl.where(empty, 0, kept)
            _put(
                orders_ptr, chosen_ptr, values_ptr, slot, order, to, log_f - log_sum, leads,
                slot < total,
            )  # fmt: skip
            want = tl.where(empty, top_k, tl.where(union != 0, top_b + top_k, 0))
            want = tl.where(ok, tl.minimum(want, target_columns), 0)
            tl.debug_barrier()
        else:
            # Where f is 0 outside the translated set, all tie, and the lowest ids are the best.
            lowest = zero_outside & (empty == 0)
            own = tl.where(lowest, slot, column)
            real = tl.where(lowest, slot < target_columns, held)
            known = tl.zeros((_OTHERS, SLOTS), tl.int32)
            for first in range(0, translated, _OTHERS):
                other = first + each
                other_to = tl.load(to_ptr + other, mask=other < translated, other=-1)
                known += (other_to[:, None] == own[None, :]).to(tl.int32)
            own_log_q = (x.to(tl.float64) - target_shift) - target_log
            never = tl.full((SLOTS,), float("-inf"), tl.float64)
            mixed = _log_mix(never, own_log_q, alpha, log_alpha, log_rest, linear)
            own_log_f = tl.where(lowest, never, mixed)
            own_order = tl.where(alpha == 0.0, x.to(tl.float64), own_log_f)
            _put(
                orders_ptr, chosen_ptr, values_ptr, total + slot,
                tl.where(empty, x.to(tl.float64), own_order), own,
                tl.where(empty, own_log_q, own_log_f - log_sum),
                real & (tl.sum(known, axis=0) * tl.where(empty, 0, 1) == 0), real,
            )  # fmt: skip
            total += tl.sum(real.to(tl.int32), axis=0)
            want = want * 0
            tl.debug_barrier()
        from_target += 1

    # The place of each candidate is how many are ahead of it.
    ids_ptr += row * top_k
    logprobs_ptr += row * top_k
    found = total * 0
    shown = tl.where(ok, top_k, 0)
    for begin in range(0, total, SLOTS):
        mine = begin + slot
        rank = tl.load(orders_ptr + mine, mask=mine < total, other=_NO_ORDER)
        token = tl.load(chosen_ptr + mine, mask=mine < total, other=-1)
        value = tl.load(values_ptr + mine, mask=mine < total, other=0.0)
        ahead = tl.zeros((_OTHERS, SLOTS), tl.int32)
        for first in range(0, total, _OTHERS):
            other = first + each
            other_rank = tl.load(orders_ptr + other, mask=other < total, other=_NO_ORDER)
            other_token = tl.load(chosen_ptr + other, mask=other < total, other=-1)
            ahead += _ahead(other_rank, other_token, rank, token).to(tl.int32)
        place = tl.sum(ahead, axis=0)
        alive = rank > _NO_ORDER
        tl.store(ids_ptr + place, token.to(tl.int64), mask=alive & (place < shown))
        tl.store(logprobs_ptr + place, value, mask=alive & (place < shown))
        found += tl.sum(alive.to(tl.int32), axis=0)
    rest = tl.arange(0, _PLACES)
    none = (rest < top_k) & (rest >= tl.minimum(found, shown))
    tl.store(ids_ptr + rest, tl.full((_PLACES,), -1, tl.int64), mask=none)
    nan = float("nan")
    tl.store(logprobs_ptr + rest, tl.where(ok, float("-inf"), nan) + rest * 0.0, mask=none)
    tl.store(masses_ptr + row, tl.where(ok, anchor_mass, nan))
    tl.store(masses_ptr + rows + row, tl.where(ok, translated_mass, nan))
    tl.store(masses_ptr + 2 * rows + row, tl.where(ok, tl.where(union != 0, 1.0, target_mass), nan))
    tl.store(flags_ptr + row, tl.where(ok, empty.to(tl.int32), 2))


class Variant(NamedTuple):
    """A kernel as it is compiled: a function and its constants."""

    kernel: Any
    constants: dict[str, int]
    num_warps: int

    @property
    def signature(self) -> dict[str, str]:
        """The type of each argument, by name."""
        return {p.name: p.annotation_type or "constexpr" for p in self.kernel.params}

    @property
    def options(self) -> dict[str, Any]:
        """What the compiler is told.

        No fused multiply-add, so that all versions compute the same; no more registers than let
        two programs that finish rows share a multiprocessor.
        """
        return {"num_warps": self.num_warps, "enable_fp_fusion": False, "maxnreg": 64}

    def launch(self, programs: int, *arguments: Any) -> None:
        """Queue it on the current stream."""
        self.kernel[(programs,)](*arguments, **self.constants, **self.options)


_SUMMARISE = Variant(summarise, {}, 4)
# By how many columns one selection may have to keep: twice as many slots leave room for ties.
_FINISH = {
    64: Variant(_finish, {"SLOTS": 128}, 16),
    MAX_TOP_B + MAX_TOP_K: Variant(_finish, {"SLOTS": 512}, 32),
}
VARIANTS = (_SUMMARISE, *_FINISH.values())


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
    """See `alignbeam.ops.mix_topk`; two launches, no synchronisation, no memory to be zeroed."""
    rows = anchor_logits.shape[0]
    device = anchor_logits.device
    token_ids = torch.empty((rows, top_k), dtype=torch.int64, device=device)
    logprobs = torch.empty((rows, top_k), dtype=torch.float32, device=device)
    masses = torch.empty((3, rows), dtype=torch.float32, device=device)
    flags = torch.empty(rows, dtype=torch.int32, device=device)
    anchor_mass, translated_mass, target_mass = masses.unbind(0)
    result = MixResult(token_ids, logprobs, anchor_mass, translated_mass, target_mass, flags)
    if rows == 0:
        return result
    most = top_b + top_k if support == "union" else max(top_b, top_k)
    finish = next(variant for room, variant in _FINISH.items() if most <= room)
    sides = (*_side(anchor_logits), *_side(target_logits))
    widths = (anchor_logits.shape[1], target_logits.shape[1])
    chunks = sum(triton.cdiv(width, CHUNK.value) for width in widths)
    maxima = torch.empty((rows, chunks, CHUNK_GROUPS.value), dtype=torch.int32, device=device)
    sums = torch.empty((rows, chunks, 2), dtype=torch.float32, device=device)
    words = (_SLOT_WORDS.value, finish.constants["SLOTS"])
    scratch = torch.empty((rows, *words), dtype=torch.int32, device=device)
    alphas = alpha.contiguous() if isinstance(alpha, Tensor) else None
    with torch.cuda.device_of(anchor_logits):  # on which Triton launches
        _SUMMARISE.launch(rows * chunks, *sides, maxima, sums)
        finish.launch(
            rows, *sides, maxima, sums, scratch, table,
            logprobs if alphas is None else alphas, int(alphas is not None),
            0.0 if isinstance(alpha, Tensor) else float(alpha),
            top_b, top_k, int(mix == "linear"), int(support == "union"),
            token_ids, logprobs, masses, flags, rows,
        )  # fmt: skip
    return result


def _side(logits: Tensor) -> tuple[Any, int, int, int]:
    """Return what a kernel is told of logits: memory, kind, row stride, columns."""
    return (
        triton.reinterpret(logits, tl.uint8),
        FLOATS.index(logits.dtype),
        logits.stride(0),
        logits.shape[1],
    )
