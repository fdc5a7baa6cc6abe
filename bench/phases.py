"""Where a CUDA step's time goes: when the finisher of each row is done with each of its parts.

``python bench/phases.py`` builds the kernel with its marks (``phases.cu``, nvcc), runs steps whose
logits lie in no cache, and writes ``bench/results/phases_cuda.jsonl``. Marks cost some 30 ns each,
and code is cold too: single steps are slower here than in `bench_mix_topk`'s graphs.
"""

from __future__ import annotations

import argparse
import ctypes
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import bench_mix_topk as bench
import rows as bench_rows
import timing
import torch

_SOURCE = Path(__file__).with_name("phases.cu")
# In the order of marks.cuh.
PARTS = (
    "begins", "anchor's maxima taken", "groups listed", "candidates gathered", "ranked, translated",
    "target's words taken", "mixed and written",
)  # fmt: skip
_STEPS, _UNTIMED = 12, 4
_FLUSH_BYTES = 256 << 20


@dataclass(frozen=True)
class Row:
    """One part, over all rows of all timed steps; microseconds."""

    part: str
    rows: int
    dtype: str
    kind: str
    since_start_p50_us: float
    since_start_p90_us: float
    took_p50_us: float  # since the part before
    took_p90_us: float


def build(folder: Path) -> ctypes.CDLL:
    """Compile the library for the GPU at hand. RuntimeError where nvcc is missing or fails."""
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if nvcc is None:
        raise RuntimeError("phases: nvcc was not found; install the CUDA toolkit")
    major, minor = torch.cuda.get_device_capability()
    library = folder / "phases.so"
    command = [
        nvcc, "-std=c++17", "-O3", f"-arch=sm_{major}{minor}", "-shared", "-Xcompiler", "-fPIC",
        "-o", str(library), str(_SOURCE),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"phases: nvcc failed: {done.stderr.strip()[-2000:]}")
    found = ctypes.CDLL(str(library))
    found.workspace_bytes.restype = ctypes.c_int64
    found.workspace_bytes.argtypes = [ctypes.c_int64] * 3
    found.marked_step.restype = ctypes.c_char_p
    found.marked_step.argtypes = [
        *[ctypes.c_void_p] * 3, *[ctypes.c_int64] * 3, ctypes.c_int, *[ctypes.c_void_p] * 2,
        ctypes.c_int64, *[ctypes.c_void_p] * 2,
    ]  # fmt: skip
    return found


def measure(library: ctypes.CDLL, rows: int, dtype: str, table: torch.Tensor) -> list[Row]:
    """Time the parts of one shape; the first lines are of the readers."""
    x = bench.make_input("peaked", rows, bench.DTYPES[dtype], table, "cuda")
    anchor_width, target_width = x.anchor.shape[1], x.target.shape[1]
    out = torch.empty(64 * rows, dtype=torch.uint8, device="cuda")
    needed = library.workspace_bytes(rows, anchor_width, target_width)
    workspace = torch.zeros(needed, dtype=torch.uint8, device="cuda")
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    marks = torch.empty(library.most_rows(), library.mark_count(), dtype=torch.int64)
    blocks = torch.empty(library.most_blocks(), 2, dtype=torch.int64)
    since: dict[str, list[float]] = {}
    took: dict[str, list[float]] = {}
    for step in range(_STEPS):
        flush.fill_(step)
        torch.cuda.synchronize()
        error = library.marked_step(
            x.anchor.data_ptr(), x.target.data_ptr(), x.table.data_ptr(), rows, anchor_width,
            target_width, 0 if dtype == "fp32" else 1, out.data_ptr(), workspace.data_ptr(), needed,
            marks.data_ptr(), blocks.data_ptr(),
        )  # fmt: skip
        if error is not None:
            raise RuntimeError(f"phases: {error.decode()}")
        if step < _UNTIMED:
            continue
        readers = blocks[blocks[:, 1] > 0]
        start = int(readers[:, 0].min())
        ends = ((readers[:, 1] - start) / 1e3).sort().values.tolist()
        since.setdefault("a tenth of the readers end", []).append(ends[len(ends) // 10])
        since.setdefault("the last reader ends", []).append(ends[-1])
        times = (marks[:rows] - start) / 1e3
        for number, part in enumerate(PARTS):
            since.setdefault(part, []).extend(times[:, number].tolist())
            if number > 0:
                spent = times[:, number] - times[:, number - 1]
                took.setdefault(part, []).extend(spent.tolist())
        since.setdefault("the last row ends", []).append(float(times.max()))

    def quantiles(values: list[float]) -> tuple[float, float]:
        return timing.quantile_of(values, 0.5), timing.quantile_of(values, 0.9)

    return [
        Row(part, rows, dtype, "peaked", *quantiles(values), *quantiles(took.get(part, [])))
        for part, values in since.items()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=bench_rows.RESULTS / "phases_cuda.jsonl")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 3, 24, 96, 256])
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU here (torch sees none): nothing was measured", file=sys.stderr)
        return 2
    table = bench.real_pair(None)[0].cuda()
    writer = bench_rows.Writer(arguments.out)
    with tempfile.TemporaryDirectory() as folder:
        library = build(Path(folder))
        for dtype in ("bf16", "fp32"):
            for count in arguments.rows:
                for row in measure(library, count, dtype, table):
                    writer.add(row)
    writer.close()
    print(f"wrote {writer.path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
