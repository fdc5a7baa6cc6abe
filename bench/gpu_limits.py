"""What the GPU at hand can do: a copy, and a kernel that only reads, as `rooflines` for the CPU."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096


@triton.jit
def _read(first, first_size, second, second_size, out, first_blocks, BLOCK: tl.constexpr):
    # One block of either tensor a program; its maximum is stored, so that no load can be dropped.
    block = tl.program_id(0)
    if block < first_blocks:
        at = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(first + at, mask=at < first_size, other=0.0).to(tl.float32)
        tl.store(out + block, tl.max(x, axis=0))
    else:
        at = (block - first_blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(second + at, mask=at < second_size, other=0.0).to(tl.float32)
        tl.store(out + block, tl.max(x, axis=0))


def read(first: Tensor, second: Tensor) -> Tensor:
    """Read two contiguous tensors once; return the maximum of each block and of 0, float32."""
    first_blocks, second_blocks = (triton.cdiv(x.numel(), _BLOCK) for x in (first, second))
    blocks = first_blocks + second_blocks
    out = torch.empty(blocks, dtype=torch.float32, device=first.device)
    _read[(blocks,)](
        first, first.numel(), second, second.numel(), out, first_blocks, BLOCK=_BLOCK, num_warps=4
    )
    return out
