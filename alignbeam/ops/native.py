"""The only caller of the extension: tensors go in here and nowhere else."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NoReturn, cast

import torch
from torch import Tensor

from alignbeam.ops import build
from alignbeam.ops.spec import MixResult, check_mix_topk, check_table

# One per (device, stream): launches on one stream follow each other, on two they may overlap.
_workspaces: dict[tuple[int, int], Tensor] = {}
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

    The first call on a device allocates and waits once; later ones do nothing but queue.
    """
    index = anchor_logits.get_device()
    with nullcontext() if torch.cuda.current_device() == index else torch.cuda.device(index):
        extension = _gpu_extension(index)
        rows = len(anchor_logits)
        if isinstance(alpha, Tensor):
            alpha = alpha.contiguous()
        # Of torch's own allocator, which alone can tell other streams that they are in use.
        device = anchor_logits.device
        anchor_mass, translated_mass, target_mass = torch.empty(
            (3, rows), dtype=torch.float32, device=device
        ).unbind(0)
        out = MixResult(
            torch.empty((rows, top_k), dtype=torch.int64, device=device),
            torch.empty((rows, top_k), dtype=torch.float32, device=device),
            anchor_mass,
            translated_mass,
            target_mass,
            torch.empty(rows, dtype=torch.int32, device=device),
        )
        if rows == 0:
            return out
        stream = torch.cuda.current_stream(index).cuda_stream
        needed = _workspace_bytes(extension, rows, anchor_logits.shape[1], target_logits.shape[1])
        queued = extension.mix_topk_cuda(
            anchor_logits, target_logits, table, alpha, top_b, top_k, mix, support, out,
            _workspace(index, stream, needed), stream,
        )  # fmt: skip
        if queued is None:
            _refuse(anchor_logits, target_logits, table, alpha, top_b, top_k, mix, support)
    return out


@functools.cache
def _gpu_extension(index: int) -> Any:
    return build.gpu_extension(torch.cuda.get_device_capability(index)).require()


@functools.lru_cache(maxsize=256)
def _workspace_bytes(extension: Any, rows: int, anchor_columns: int, target_columns: int) -> int:
    return cast("int", extension.mix_topk_cuda_workspace(rows, anchor_columns, target_columns))


def _refuse(*arguments: Any) -> NoReturn:
    """Raise what is wrong with the arguments that the extension did not take."""
    check_mix_topk(*arguments)
    raise TypeError(
        "mix_topk: the kernels read plain tensors with memory of their own; got one without "
        "(a fake or wrapped tensor?)"
    )


def _workspace(index: int, stream: int, needed: int) -> Tensor:
    """Return at least ``needed`` bytes, zeroed before their first use; kernels leave them so."""
    arena = _arenas.get(index)
    if torch.cuda.is_current_stream_capturing():
        # Of the graph alone, for good: its replays may overlap with any other call.
        memory = arena.take(needed) if arena is not None else None
        if memory is None:  # then the graph zeroes some of its own, in each replay
            memory = torch.zeros(needed, dtype=torch.uint8, device=f"cuda:{index}")
        return memory
    if arena is None:
        _arenas[index] = _Arena(index)
    workspace = _workspaces.get((index, stream))
    if workspace is None or workspace.numel() < needed:
        workspace = torch.zeros(needed, dtype=torch.uint8, device=f"cuda:{index}")
        _workspaces[index, stream] = workspace
    return workspace


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
