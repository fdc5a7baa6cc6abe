"""What this machine allows: the exp-only and the read-only loop, timed in the bench's own run.

In the caches the exponentials are the limit; where rows are many, reading them is.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from pathlib import Path

import timing
import torch

_SOURCE = Path(__file__).with_suffix(".cpp")


def measure(
    columns: int, rows: int = 1, dtype: torch.dtype = torch.bfloat16, budget_s: float = 0.5
) -> dict[str, float]:
    """Return microseconds (20th percentile of CPU time) per row of ``columns`` logits.

    The exponentials are taken of bfloat16 alone.
    """
    with tempfile.TemporaryDirectory() as folder:
        library_path = Path(folder) / "rooflines.so"
        subprocess.run(
            ["c++", "-Ofast", "-march=native", "-mprefer-vector-width=512", "-shared", "-fPIC",
             "-o", str(library_path), str(_SOURCE)],
            check=True,
        )  # fmt: skip
        library = ctypes.CDLL(str(library_path))
    library.exp_only.restype = ctypes.c_float
    library.read_only.restype = ctypes.c_uint64
    x = (torch.randn(rows, columns) * 3).to(dtype)
    pointer = ctypes.c_void_p(x.data_ptr())
    halves = ctypes.c_int64(x.numel() * x.element_size() // 2)
    works: dict[str, timing.Work] = {"read_only": lambda: library.read_only(pointer, halves)}
    if dtype == torch.bfloat16:
        works["exp_only"] = lambda: library.exp_only(pointer, halves, ctypes.c_float(15.0))
    samples = timing.take_turns(works, budget_s)
    return {name: sample.cpu_us(0.2) / rows for name, sample in samples.items()}
