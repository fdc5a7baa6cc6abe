# Kernels are Triton, not Python: their arguments have no Python types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""What the Triton kernels read of a row: its sum, its maxima, and by thresholds its largest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl

from alignbeam.ops.spec import FLOATS

# What is cut where depends on nothing but the row, and so do its bits.
GROUP = tl.constexpr(64)  # neighbouring columns whose maximum is kept
CHUNK_GROUPS = tl.constexpr(64)
CHUNK = tl.constexpr(GROUP.value * CHUNK_GROUPS.value)  # columns that one program reads
NO_KEY = tl.constexpr(-(2**31))  # sorts below every logit's
_FLOAT32 = tl.constexpr(FLOATS.index(torch.float32))  # values of the arguments `kind`
_BFLOAT16 = tl.constexpr(FLOATS.index(torch.bfloat16))
_CLASSES = tl.constexpr(512)  # a row's groups, dealt to so many classes, give a first bound
_LOG2_E = tl.constexpr(1.4426950408889634)
_SUMS = tl.constexpr(64)  # chunks' sums added in one step
_FAN = tl.constexpr(8)  # thresholds tried at once
_TILE = tl.constexpr(2048)  # keys looked at in one step of `_narrow`


def kernel(**types: str) -> Callable[[Callable[..., None]], Any]:
    """Compile a function once: for arguments of ``types``, whatever their values."""

    def decorate(function: Callable[..., None]) -> Any:
        function.__annotations__ |= types
        return triton.jit(do_not_specialize=list(types))(function)

    return decorate


@triton.jit
def order_key(x):
    """Turn float32 logits into int32 keys that sort alike; -0.0 ties with +0.0."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    key = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return tl.where(key == -1, 0, key)


@triton.jit
def logit(key):
    """Undo `order_key`, but for the sign of a zero."""
    return tl.where(key < 0, key ^ 0x7FFFFFFF, key).to(tl.float32, bitcast=True)


@triton.jit
def cut(columns, size):
    """Divide, rounding up."""
    return (columns - 1) // size + 1  # not cdiv, which overflows


@triton.jit
def load_logits(logits_ptr, kind, at, mask):
    """Load logits of any dtype as float32; -inf where masked."""
    if kind == _FLOAT32:
        x = tl.load(logits_ptr.to(tl.pointer_type(tl.float32)) + at, mask, float("-inf"))
    elif kind == _BFLOAT16:
        half = tl.load(logits_ptr.to(tl.pointer_type(tl.bfloat16)) + at, mask, float("-inf"))
        x = half.to(tl.float32)
    else:
        other = tl.load(logits_ptr.to(tl.pointer_type(tl.float16)) + at, mask, float("-inf"))
        x = other.to(tl.float32)
    return x


@triton.jit
def _close_chunk(x, columns, chunk, maxima_ptr, sums_ptr):
    # m = max x and s = sum of exp(x - m) of one chunk, and the maximum of each of its groups.
    largest = tl.max(x, axis=1)
    group = chunk * CHUNK_GROUPS + tl.arange(0, CHUNK_GROUPS)
    key = tl.where(group < cut(columns, GROUP), order_key(largest), NO_KEY)
    tl.store(maxima_ptr + group, key)
    m = tl.max(largest, axis=0)
    usable = (m > float("-inf")) & (m < float("inf"))
    shift = tl.where(usable, m, 0.0)
    terms = tl.exp2((x - shift) * _LOG2_E)
    s = tl.sum(terms)
    # A fully masked chunk sums to 0; +inf in it makes the sum NaN, as NaN itself does.
    s = tl.where(usable | ((m == float("-inf")) & (s == 0.0)), s, float("nan"))
    tl.store(sums_ptr + chunk * 2, m)
    tl.store(sums_ptr + chunk * 2 + 1, s)


@triton.jit
def _read_chunk(row_ptr, columns, chunk, maxima_ptr, sums_ptr):
    # Writes a chunk's sum and its shift, and the maxima of its groups.
    # Each way to read has a rest of its own: where two meet, Triton moves the chunk through shared
    # memory.
    first = chunk.to(tl.int64) * CHUNK
    group = tl.arange(0, CHUNK_GROUPS)
    inner = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    if (first + CHUNK <= columns) & (row_ptr.to(tl.int64) % 16 == 0):
        whole = tl.load(tl.multiple_of(row_ptr + first, 16) + inner)  # 16 bytes at a time
        _close_chunk(whole.to(tl.float32), columns, chunk, maxima_ptr, sums_ptr)
    else:
        at = first + inner
        masked = tl.load(row_ptr + at, mask=at < columns, other=float("-inf"))
        _close_chunk(masked.to(tl.float32), columns, chunk, maxima_ptr, sums_ptr)


@kernel(
    anchor_ptr="*u8", anchor_kind="i32", anchor_stride="i64", anchor_columns="i32",
    target_ptr="*u8", target_kind="i32", target_stride="i64", target_columns="i32",
    maxima_ptr="*i32", sums_ptr="*fp32",
)  # fmt: skip
def summarise(
    anchor_ptr, anchor_kind, anchor_stride, anchor_columns,
    target_ptr, target_kind, target_stride, target_columns,
    maxima_ptr, sums_ptr,
):  # fmt: skip
    """Read every logit once, one program per chunk of either side of a row."""
    anchor_chunks = cut(anchor_columns, CHUNK)
    chunks = anchor_chunks + cut(target_columns, CHUNK)
    row = (tl.program_id(0) // chunks).to(tl.int64)
    chunk = tl.program_id(0) % chunks
    maxima_ptr += row * chunks * CHUNK_GROUPS
    sums_ptr += row * chunks * 2
    logits_ptr = anchor_ptr
    kind = anchor_kind
    at = row * anchor_stride
    columns = anchor_columns
    if chunk >= anchor_chunks:
        chunk -= anchor_chunks
        maxima_ptr += anchor_chunks * CHUNK_GROUPS
        sums_ptr += anchor_chunks * 2
        logits_ptr = target_ptr
        kind = target_kind
        at = row * target_stride
        columns = target_columns
    if kind == _FLOAT32:
        row_ptr = logits_ptr.to(tl.pointer_type(tl.float32)) + at
        _read_chunk(row_ptr, columns, chunk, maxima_ptr, sums_ptr)
    elif kind == _BFLOAT16:
        half_ptr = logits_ptr.to(tl.pointer_type(tl.bfloat16)) + at
        _read_chunk(half_ptr, columns, chunk, maxima_ptr, sums_ptr)
    else:
        other_ptr = logits_ptr.to(tl.pointer_type(tl.float16)) + at
        _read_chunk(other_ptr, columns, chunk, maxima_ptr, sums_ptr)


@triton.jit
def total_of(sums_ptr, chunks):
    """Return (shift, log of the sum of exp(x - shift)) of a row, float64."""
    at = tl.arange(0, _SUMS)
    largest = tl.full((_SUMS,), float("-inf"), tl.float32)
    for first in range(0, chunks, _SUMS):
        live = first + at < chunks
        m = tl.load(sums_ptr + (first + at) * 2, mask=live, other=float("-inf"))
        largest = tl.maximum(largest, m)
    shift = tl.max(largest, axis=0)
    part = tl.zeros((_SUMS,), tl.float64)
    for first in range(0, chunks, _SUMS):
        live = first + at < chunks
        m = tl.load(sums_ptr + (first + at) * 2, mask=live, other=float("-inf"))
        s = tl.load(sums_ptr + (first + at) * 2 + 1, mask=live, other=0.0)
        part += tl.where(s == 0.0, 0.0, s.to(tl.float64) * tl.exp(m - shift).to(tl.float64))
    return shift.to(tl.float64), tl.log(tl.sum(part, axis=0))


@triton.jit
def _bound(logits_ptr, kind, row_start, columns, maxima_ptr, groups, want):
    """Return a key that at least ``want`` of a row's logits reach, and the row's largest, int64."""
    # Of the maxima of classes the want-th largest, by its upper 16 bits: few other logits reach it.
    # A class is every 512th group or, in a row with few groups, every 512th column.
    at = tl.arange(0, _CLASSES)
    items = tl.where(groups < want, columns, groups)
    key = tl.full((_CLASSES,), NO_KEY, tl.int32)
    for first in range(0, items, _CLASSES):
        live = at < items - first
        if groups < want:
            x = load_logits(logits_ptr, kind, row_start + first + at, live)
            item = tl.where(live, order_key(x), NO_KEY)
        else:
            item = tl.load(maxima_ptr + first + at, mask=live, other=NO_KEY)
        key = tl.maximum(key, item)
    top = tl.max(key, axis=0)
    low = top * 0 - 32768
    if tl.minimum(items, _CLASSES) >= want:
        high = top >> 16
        short = key >> 16
        low = tl.min(tl.where(at < items, short, high), axis=0)
        while low < high:
            step = (high - low) // _FAN + 1
            threshold = low + step * (tl.arange(0, _FAN) + 1)
            reached = tl.sum((short[:, None] >= threshold[None, :]).to(tl.int32), axis=0)
            low += step * tl.sum((reached >= want).to(tl.int32), axis=0)
            high = tl.minimum(high, low + step - 1)
    return tl.maximum(low.to(tl.int64) << 16, NO_KEY + 1), top.to(tl.int64)


@triton.jit
def _narrow(
    maxima_ptr, logits_ptr, kind, row_start, columns, groups_ptr, by_column,
    runs, bound, top, want, kept_ptr, keys_ptr, SLOTS: tl.constexpr,
):  # fmt: skip
    # Keep, in their order, the largest of `items`, ties to the earlier: `want` at least and SLOTS
    # at most; return how many. At least `want` reach `bound`, mostly few more, and then one pass
    # does. Else the threshold is bisected, and if more than SLOTS tie in the end, the first of them
    # are kept. Items are a row's groups, or the columns of the groups that are listed.
    items = runs * GROUP
    low = bound
    high = top
    threshold = bound
    above = items * 0  # how many are known to lie above `high`
    kept = items * 0
    searching = items > 0
    while searching:
        room = SLOTS - above
        larger = items * 0
        ties = items * 0
        for first in range(0, items, _TILE):
            if by_column:
                slot = first // GROUP + tl.arange(0, _TILE // GROUP)
                group = tl.load(groups_ptr + slot, mask=slot * GROUP < items, other=0)
                inner = tl.arange(0, GROUP)[None, :]
                column = group.to(tl.int64)[:, None] * GROUP + inner
                real = (slot[:, None] * GROUP + inner < items) & (column < columns)
                x = load_logits(logits_ptr, kind, row_start + column, real)
                key = tl.reshape(tl.where(real, order_key(x), NO_KEY), (_TILE,))
                item = tl.reshape(column.to(tl.int32), (_TILE,))
            else:
                item = first + tl.arange(0, _TILE)
                key = tl.load(maxima_ptr + item, mask=item < items, other=NO_KEY)
            is_larger = key > threshold.to(tl.int32)
            is_tie = key == threshold.to(tl.int32)
            # Two counts of at most _TILE in one word.
            count = is_larger.to(tl.int32) + (is_tie.to(tl.int32) << 16)
            before = tl.cumsum(count, axis=0) - count
            ties_before = ties + (before >> 16)
            place = larger + (before & 0xFFFF) + tl.minimum(ties_before, room)
            keep = (is_larger | (is_tie & (ties_before < room))) & (place < SLOTS)
            tl.store(kept_ptr + place, item, mask=keep)
            tl.store(keys_ptr + place, key, mask=keep)
            counted = tl.sum(count, axis=0)
            larger += counted & 0xFFFF
            ties += counted >> 16
        reached = larger + ties
        kept = tl.minimum(larger + tl.minimum(ties, room), SLOTS)
        searching = (low < high) & ((reached < want) | (reached > SLOTS))
        if reached < want:
            high = threshold - 1
            above = reached
        else:
            low = threshold
        threshold = low + (high - low + 1) // 2
        tl.debug_barrier()  # what is kept is read, or written again, by other threads
    return kept


@triton.jit
def select(
    logits_ptr, kind, row_start, columns, maxima_ptr, want, groups_ptr, columns_ptr, keys_ptr,
    SLOTS: tl.constexpr,
):  # fmt: skip
    """Write the columns of the ``want`` largest logits, ties to the lower, and their keys.

    They are among the at most SLOTS that are written, in the order of columns; returns how many.
    """
    # The groups with the largest maxima hold them all: groups are runs of columns, and their ties
    # go to the lower ones too.
    groups = cut(columns, GROUP)
    bound, top = _bound(logits_ptr, kind, row_start, columns, maxima_ptr, groups, want)
    kept = groups * 0
    for level in range(0, 2):
        runs = cut(columns, CHUNK)
        needed = tl.where(groups < want, 1, want)
        kept_ptr = groups_ptr
        if level > 0:
            runs = kept
            needed = want
            kept_ptr = columns_ptr
        kept = _narrow(
            maxima_ptr, logits_ptr, kind, row_start, columns, groups_ptr, level > 0,
            runs, bound, top, needed, kept_ptr, keys_ptr, SLOTS,
        )  # fmt: skip
    return kept
