"""The only caller of the extension: tensors go in here and nowhere else."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NoReturn, cast

import torch
from torch import Tensor

from alignbeam.ops import build
from alignbeam.ops.spec import MixResult, check_mix_topk, check_table

# One per (device, stream): launches on one stream follow each other, on two they may overlap.
_workspaces: dict[tuple[int, int], Tensor] = {}


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
    """See `alignbeam.ops.mix_topk`; one launch on the current stream, no synchronisation."""
    device = anchor_logits.device
    extension = build.gpu_extension(torch.cuda.get_device_capability(device)).require()
    rows, anchor_columns = anchor_logits.shape
    with torch.cuda.device(device):
        alpha = alpha.contiguous() if isinstance(alpha, Tensor) else alpha
        # Of torch's own allocator, which alone can tell other streams that they are in use.
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
        stream = torch.cuda.current_stream(device).cuda_stream
        needed = extension.mix_topk_cuda_workspace(rows, anchor_columns, target_logits.shape[1])
        queued = extension.mix_topk_cuda(
            anchor_logits, target_logits, table, alpha, top_b, top_k, mix, support, out,
            _workspace(device, stream, needed), stream,
        )  # fmt: skip
        if queued is None:
            _refuse(anchor_logits, target_logits, table, alpha, top_b, top_k, mix, support)
    return out


def _refuse(*arguments: Any) -> NoReturn:
    """Raise what is wrong with the arguments that the extension did not take."""
    check_mix_topk(*arguments)
    raise TypeError(
        "mix_topk: the kernels read plain tensors with memory of their own; got one without "
        "(a fake or wrapped tensor?)"
    )


def _workspace(device: torch.device, stream: int, needed: int) -> Tensor:
    """Return at least ``needed`` bytes, zeroed before their first use; kernels leave them so."""
    if torch.cuda.is_current_stream_capturing():
        # The graph owns it: another replay must not find a later call's memory in its place.
        return torch.zeros(needed, dtype=torch.uint8, device=device)
    key = (device.index if device.index is not None else torch.cuda.current_device(), stream)
    workspace = _workspaces.get(key)
    if workspace is None or workspace.numel() < needed:
        workspace = _workspaces[key] = torch.zeros(needed, dtype=torch.uint8, device=device)
    return workspace
