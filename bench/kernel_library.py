"""The CUDA step of any csrc, built by nvcc and called without the package around it."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import torch
from torch import Tensor

_SOURCE = Path(__file__).with_name("kernel_library.cu")
CSRC = Path(__file__).resolve().parent.parent / "csrc"
_DTYPES = {torch.float32: 0, torch.bfloat16: 1}
ROW_BYTES = 52


def nvcc() -> str | None:
    return shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def build(library: Path, csrc: Path = CSRC, arch: str = "", *, marks: bool = False) -> Path:
    """Compile ``csrc`` for ``arch`` ("90"; that of the GPU at hand unless set) into ``library``.

    RuntimeError where nvcc is missing or fails.
    """
    compiler = nvcc()
    if compiler is None:
        raise RuntimeError("nvcc was not found; install the CUDA toolkit")
    if not arch:
        arch = "".join(map(str, torch.cuda.get_device_capability()))
    command = [
        compiler, "-std=c++17", "-O3", f"-arch=sm_{arch}", f"-I{csrc}", "-shared",
        *("-Xcompiler", "-fPIC"), *(["-DALIGNBEAM_MARKS"] if marks else []),
        *("-o", str(library), str(_SOURCE)),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"nvcc failed on {csrc}: {done.stderr.strip()[-2000:]}")
    return library


class Kernel:
    """One library, with a workspace and an output for steps of one shape.

    The logits are contiguous, float32 or bfloat16; alpha = 0.5, B = 50, K = 3.
    """

    def __init__(self, library: Path, rows: int, anchor_width: int, target_width: int) -> None:
        self.library = ctypes.CDLL(str(library.resolve()))
        self.library.workspace_bytes.restype = ctypes.c_int64
        self.library.workspace_bytes.argtypes = [ctypes.c_int64] * 3
        self.library.step.restype = ctypes.c_char_p
        self.library.step.argtypes = [
            *[ctypes.c_void_p] * 3, *[ctypes.c_int64] * 3, ctypes.c_int, *[ctypes.c_void_p] * 2,
            ctypes.c_int64, ctypes.c_void_p,
        ]  # fmt: skip
        self._shape = (rows, anchor_width, target_width)
        self._bytes = self.library.workspace_bytes(*self._shape)
        self._workspace = torch.zeros(self._bytes, dtype=torch.uint8, device="cuda")
        self.out = torch.zeros(ROW_BYTES * rows, dtype=torch.uint8, device="cuda")

    def __call__(self, anchor: Tensor, target: Tensor, table: Tensor) -> None:
        """Queue one step on the current stream; `out` holds what it gives."""
        error = self.library.step(
            anchor.data_ptr(), target.data_ptr(), table.data_ptr(), *self._shape,
            _DTYPES[anchor.dtype], self.out.data_ptr(), self._workspace.data_ptr(), self._bytes,
            torch.cuda.current_stream().cuda_stream,
        )  # fmt: skip
        if error is not None:
            raise RuntimeError(error.decode())
