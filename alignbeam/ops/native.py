"""The only caller of the extension: tensors go in here and nowhere else."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NoReturn, cast

import torch
from torch import Tensor

from alignbeam.ops import build
from alignbeam.ops.spec import MixResult, check_mix_topk, check_table

_arenas: dict[int, _Arena] = {}


def mix_topk_cpu(
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
    """See `alignbeam.ops.mix_topk`; uses ``torch.get_num_threads()`` threads.

    The extension takes nothing that `check_mix_topk` would not, so that checker is called only to
    say what is wrong: in Python, cold, it costs a good part of what the kernel does.
    """
    out = _cpu_kernel()(
        anchor_logits, target_logits, table, alpha, top_b, top_k, mix, support,
        torch.get_num_threads(),
    )  # fmt: skip
    if out is None:
        _refuse(anchor_logits, target_logits, table, alpha, top_b, top_k, mix, support)
    # Once per table. The kernel needs no such check: it flags such a row unread.
    check_table(table, target_logits.shape[1])
    return MixResult(*out)


@functools.cache
def _cpu_kernel() -> Callable[..., Any]:
    return cast("Callable[..., Any]", build.cpu_extension().require().mix_topk_cpu)


def mix_topk_cuda(
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
    """See `alignbeam.ops.mix_topk`; one launch on the current stream, no synchronisation.

    The first call on a device allocates and waits once; later ones do nothing but queue. What is
    returned shares one piece of memory: another stream may read it while the result, or any tensor
    of it, is kept (``record_stream`` does not reach that memory).
    """
    if isinstance(alpha, Tensor):
        alpha = alpha.contiguous()
    index = anchor_logits.get_device() if isinstance(anchor_logits, Tensor) else -1
    out = None
    if index >= 0:
        out = _cuda_kernel(index)(
            anchor_logits, target_logits, table, alpha, top_b, top_k, mix, support, _workspace
        )
    if out is None:
        _refuse(anchor_logits, target_logits, table, alpha, top_b, top_k, mix, support)
    check_table(table, target_logits.shape[1])  # once per table, as on the CPU
    return MixResult(*out)


@functools.cache
def _cuda_kernel(index: int) -> Callable[..., Any]:
    extension = build.gpu_extension(torch.cuda.get_device_capability(index)).require()
    return cast("Callable[..., Any]", extension.mix_topk_cuda)


def _refuse(*arguments: Any) -> NoReturn:
    """Raise what is wrong with the arguments that the extension did not take."""
    check_mix_topk(*arguments)
    raise TypeError(
        "mix_topk: the kernels read plain tensors with memory of their own; got one without "
        "(a fake or wrapped tensor?)"
    )


def _workspace(index: int, needed: int) -> Tensor:
    """Return at least ``needed`` bytes, zero; the kernel leaves them so."""
    arena = _arenas.get(index)
    if torch.cuda.is_current_stream_capturing():
        # A graph zeroes what it cannot have of the arena, in each replay.
        memory = arena.take(needed) if arena is not None else None
        if memory is not None:
            return memory
    elif arena is None:
        _arenas.setdefault(index, _Arena(index))  # another thread's, where it came first
    return torch.zeros(needed, dtype=torch.uint8, device=f"cuda:{index}")


class _Arena:
    """Zeroed memory of one device, for graphs captured later: nothing in them zeroes it again."""

    _BYTES = 16 << 20  # of some two thousand rows of 150,000 columns a side
    _ALIGNMENT = 256

    def __init__(self, index: int) -> None:
        self._memory = torch.zeros(self._BYTES, dtype=torch.uint8, device=f"cuda:{index}")
        self._taken = 0
        torch.cuda.synchronize(index)  # zero on whatever stream a replay may run

    def take(self, needed: int) -> Tensor | None:
        begin = -(-self._taken // self._ALIGNMENT) * self._ALIGNMENT
        if begin + needed > self._BYTES:
            return None
        self._taken = begin + needed
        return self._memory[begin : self._taken]
