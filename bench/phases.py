"""Where a CUDA step's time goes: when the finisher of each row is done with each of its parts.

``python bench/phases.py`` builds the kernel with its marks (nvcc), runs steps whose logits lie in
no cache, and writes ``bench/results/phases_cuda.jsonl``. Marks cost some 30 ns each, and code is
cold too: single steps are slower here than in `bench_mix_topk`'s graphs.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import bench_mix_topk as bench
import kernel_library
import rows as bench_rows
import timing
import torch

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


def measure(library: Path, rows: int, dtype: str, table: torch.Tensor) -> list[Row]:
    """Time the parts of one shape; the first lines are of the readers."""
    x = bench.make_input("peaked", rows, bench.DTYPES[dtype], table, "cuda")
    kernel = kernel_library.Kernel(library, rows, x.anchor.shape[1], x.target.shape[1])
    made = kernel.library
    made.read_marks.restype = ctypes.c_char_p
    made.read_marks.argtypes = [ctypes.c_void_p] * 2
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    marks = torch.empty(made.most_rows(), made.mark_count(), dtype=torch.int64)
    blocks = torch.empty(made.most_blocks(), 2, dtype=torch.int64)
    since: dict[str, list[float]] = {}
    took: dict[str, list[float]] = {}
    for step in range(_STEPS):
        flush.fill_(step)
        made.forget_marks()
        torch.cuda.synchronize()
        kernel(x.anchor, x.target, x.table)
        error = made.read_marks(marks.data_ptr(), blocks.data_ptr())
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
        library = kernel_library.build(Path(folder) / "marked.so", marks=True)
        for dtype in ("bf16", "fp32"):
            for count in arguments.rows:
                for row in measure(library, count, dtype, table):
                    writer.add(row)
    writer.close()
    print(f"wrote {writer.path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
