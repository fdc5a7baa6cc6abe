"""The op's contract, and the one place that checks arguments against it."""

from __future__ import annotations

import weakref
from enum import IntFlag
from typing import NamedTuple

import torch
from torch import Tensor

MIXES = ("linear", "log")
SUPPORTS = ("anchor", "union")
MAX_TOP_B = 256
MAX_TOP_K = 8


class Flags(IntFlag):
    """What `MixResult.flags` can say about a row."""

    EMPTY_SUPPORT = 1
    """No translated token has any probability: the row holds the target's own best."""
    NON_FINITE = 2
    """NaN, +inf or nothing but -inf in the row's logits: ids are -1, log-probs and masses NaN."""


class MixResult(NamedTuple):
    """What `mix_topk` returns; one row per beam, on the logits' device."""

    token_ids: Tensor
    """int64 [R, top_k], best first; -1 where the support has fewer ids."""
    logprobs: Tensor
    """float32 [R, top_k], log F of those ids; -inf where there is none."""
    anchor_mass: Tensor
    """float32 [R], the anchor's probability of its top_b."""
    translated_mass: Tensor
    """float32 [R], the part of it whose tokens the table translates."""
    target_mass: Tensor
    """float32 [R], the target's probability of the support."""
    flags: Tensor
    """int32 [R], bits of `Flags`."""


FLOATS = (torch.float32, torch.bfloat16, torch.float16)
#: How far a backend's log F may be from the reference, by dtype of the logits.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-5, torch.float16: 2e-5}


def check_mix_topk(
    anchor_logits: Tensor,
    target_logits: Tensor,
    table: Tensor,
    alpha: float | Tensor,
    top_b: int,
    top_k: int,
    mix: str,
    support: str,
) -> None:
    """Raise unless the arguments are as `alignbeam.ops.mix_topk` says.

    Raises
    ------
    TypeError
        An argument of the wrong kind or dtype.
    ValueError
        A shape, range, device, stride or content that the op does not take.
    """
    axes: dict[str, int] = {}
    _check_tensor("anchor_logits", anchor_logits, ("R", "Va"), FLOATS, axes)
    _check_tensor("target_logits", target_logits, ("R", "Vt"), FLOATS, axes)
    _check_tensor("table", table, ("Va",), (torch.int32,), axes)
    device = anchor_logits.device
    for name, tensor in (("target_logits", target_logits), ("table", table)):
        if tensor.device != device:
            raise ValueError(
                f"mix_topk: {name} must be on {device} like anchor_logits, got {tensor.device}"
            )
    _check_integer("top_b", top_b, axes["Va"], "Va")
    _check_integer("top_b", top_b, MAX_TOP_B)
    _check_integer("top_k", top_k, MAX_TOP_K)
    if mix not in MIXES:
        raise ValueError(f"mix_topk: mix must be one of {', '.join(MIXES)}, got {mix!r}")
    if support not in SUPPORTS:
        raise ValueError(f"mix_topk: support must be one of {', '.join(SUPPORTS)}, got {support!r}")
    _check_alpha(alpha, axes["R"], device)
    check_table(table, axes["Vt"])


def _check_tensor(
    name: str,
    tensor: Tensor,
    wanted: tuple[str, ...],
    dtypes: tuple[torch.dtype, ...],
    axes: dict[str, int],
) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"mix_topk: {name} must be a torch.Tensor, got {_kind(tensor)}")
    if tensor.dtype not in dtypes:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        got = str(tensor.dtype).removeprefix("torch.")
        raise TypeError(f"mix_topk: {name} must be {allowed}, got {got}")
    shape = tensor.shape
    if len(shape) != len(wanted):
        raise ValueError(
            f"mix_topk: {name} must have shape [{', '.join(wanted)}], got {list(shape)}"
        )
    for axis, size in zip(wanted, shape, strict=True):
        if axes.setdefault(axis, size) != size:
            raise ValueError(
                f"mix_topk: {name} must have {axis} = {axes[axis]}, got {axis} = {size}"
            )
        if size == 0 and axis != "R":
            raise ValueError(f"mix_topk: {name} must have {axis} >= 1, got 0")
        if size > 2**31 - 1:
            raise ValueError(f"mix_topk: {name} must have {axis} < 2^31, got {size}")
    # The stride of an axis of size 1 is meaningless, whatever torch says it is.
    if shape[-1] > 1 and tensor.stride(-1) != 1:
        raise ValueError(
            f"mix_topk: {name} must have a contiguous last dimension, "
            f"got stride {tensor.stride(-1)}"
        )
    if tensor.requires_grad:
        raise ValueError(
            f"mix_topk: {name} must not require grad (detach it), got requires_grad=True"
        )


def _check_integer(name: str, value: int, high: int, axis: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"mix_topk: {name} must be an int, got {_kind(value)}")
    if not 1 <= value <= high:
        width = f" with {axis} = {high}" if axis and value >= 1 else ""
        raise ValueError(f"mix_topk: {name} must be in 1..{axis or high}, got {value}{width}")


def _check_alpha(alpha: float | Tensor, rows: int, device: torch.device) -> None:
    if isinstance(alpha, Tensor):
        if alpha.dtype != torch.float32:
            raise TypeError(
                f"mix_topk: alpha must be float32, got {str(alpha.dtype).removeprefix('torch.')}"
            )
        if tuple(alpha.shape) != (rows,):
            raise ValueError(
                f"mix_topk: alpha must have shape [R] = [{rows}], got {list(alpha.shape)}"
            )
        if alpha.device != device:
            raise ValueError(
                f"mix_topk: alpha must be on {device} like anchor_logits, got {alpha.device}"
            )
        if alpha.requires_grad:
            raise ValueError(
                "mix_topk: alpha must not require grad (detach it), got requires_grad=True"
            )
        # Reading a value back from an accelerator would stall its stream and break graph capture;
        # there the kernel flags a row whose alpha is out of range as NON_FINITE.
        if device.type == "cpu":
            for value in alpha.tolist():
                _check_alpha_range(value)
    elif isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        raise TypeError(f"mix_topk: alpha must be a float or a tensor, got {_kind(alpha)}")
    else:
        _check_alpha_range(alpha)


def _check_alpha_range(alpha: float) -> None:
    if not 0.0 <= alpha <= 1.0:  # nor NaN
        raise ValueError(f"mix_topk: alpha must be in 0..1, got {alpha}")


_Checked = tuple["weakref.ref[Tensor]", int, int, int]
_checked_tables: dict[int, _Checked] = {}


def check_table(table: Tensor, target_width: int) -> None:
    """Check the entries of ``table`` once per tensor, version and storage.

    A write that torch does not count (through NumPy, or into an inference tensor) goes unseen here;
    the kernels refuse the rows that would then read out of bounds.
    """
    key = id(table)
    version = -1 if table.is_inference() else table._version
    known = _checked_tables.get(key)
    if known is not None:
        ref, data, seen_version, widest = known
        if (
            ref() is table
            and data == table.data_ptr()
            and seen_version == version
            and widest <= target_width
        ):
            return
    low, high = (int(value) for value in torch.aminmax(table))
    if low < -1 or high >= target_width:
        wrong = low if low < -1 else high
        raise ValueError(f"mix_topk: table must hold -1..Vt-1 (Vt = {target_width}), got {wrong}")
    # Remembering the largest entry, not Vt, lets one table serve several head widths.
    ref = weakref.ref(table, lambda _: _checked_tables.pop(key, None))
    _checked_tables[key] = (ref, table.data_ptr(), version, high + 1)


def _kind(value: object) -> str:
    return type(value).__name__
