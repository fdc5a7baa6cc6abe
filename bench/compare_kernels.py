"""CUDA kernels of several checkouts, in turns on one GPU, in seconds.

    python bench/compare_kernels.py now=csrc before=../before/csrc
    python bench/compare_kernels.py now=csrc other=../other/csrc --rows 24 --dtypes bf16

Each is built by nvcc, without the package around it (`kernel_library`), must give the bits of the
first one, and is timed as in `bench_mix_topk`: CUDA graphs, L2 cold. Where a GPU is at hand for
minutes only, build before: ``--build DIR --arch 90`` needs none, and ``--libraries DIR`` takes what
lies there, by name. A step that hangs ends the process. Rows go to ``results/kernels_cuda.jsonl``.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import bench_mix_topk as bench
import kernel_library
import mix_topk_on_gpu as on_gpu
import rows as bench_rows
import timing
import torch

_SYSTEM_S = 0.02
_HANGS_S = 40  # one shape takes some three


@dataclass(frozen=True)
class ComparedRow:
    """One kernel, or a roofline, on one shape; microseconds a call in a graph with a cold L2."""

    system: str
    dtype: str
    rows: int
    samples: int
    p20_us: float
    p50_us: float
    p80_us: float
    ratio_p50: float  # to the first kernel, turn by turn


def named(text: str) -> tuple[str, Path]:
    """NAME=FOLDER of a csrc."""
    name, given, folder = text.partition("=")
    path = Path(folder)
    if not given or not name.isidentifier() or not (path / "mix_topk.cu").is_file():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FOLDER of a csrc")
    return name, path


def build_all(kernels: list[tuple[str, Path]], folder: Path, arch: str) -> dict[str, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    made = {}
    for name, csrc in kernels:
        made[name] = kernel_library.build(folder / f"{name}.so", csrc, arch)
        print(f"built {made[name]}", flush=True)
    return made


def measure(
    libraries: dict[str, Path], rows: int, dtype: str, table: torch.Tensor
) -> list[ComparedRow]:
    """Check and time all kernels on one shape. RuntimeError where two give different bits."""
    cache = torch.cuda.get_device_properties().L2_cache_size
    count = on_gpu.copies_for(rows, bench.DTYPES[dtype], cache)
    big = bench.make_input("peaked", rows * count, bench.DTYPES[dtype], table, "cuda")
    inputs = on_gpu.parts(big, rows)
    x = inputs[0]
    calls: dict[str, Callable[[bench.Input], object]] = {}
    first = None
    for name, library in libraries.items():
        kernel = kernel_library.Kernel(library, rows, x.anchor.shape[1], x.target.shape[1])
        for _ in range(2):  # the second finds the workspace as the first left it
            kernel(x.anchor, x.target, x.table)
            first = kernel.out.clone() if first is None else first
            if not torch.equal(kernel.out, first):
                raise RuntimeError(f"{name} gives other bits at {dtype}, R = {rows}")
        calls[name] = lambda one, k=kernel: k(one.anchor, one.target, one.table)
    copy_to = torch.empty_like(x.anchor)
    calls["copy"] = lambda one: copy_to.copy_(one.anchor)
    reader = on_gpu.read_call()
    if reader is not None:
        calls["read"] = reader
    passes = {
        name: timing.capture(on_gpu.works_on(on_gpu.cold_calls(inputs, turn), call))
        for turn, (name, call) in enumerate(calls.items())
    }
    samples = timing.take_turns_on_gpu(passes, _SYSTEM_S * len(passes), least=9)
    base = samples[next(iter(libraries))]
    return [
        ComparedRow(
            name, dtype, rows, len(found.wall), *(1e6 * t for t in timing.spread(found.wall)),
            timing.spread(timing.ratios(found, base, "wall"))[1],
        )
        for name, found in samples.items()
    ]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kernels", nargs="*", type=named, metavar="NAME=CSRC")
    parser.add_argument("--rows", type=int, nargs="+", default=list(bench.ROWS))
    parser.add_argument("--dtypes", choices=bench.DTYPES, nargs="+", default=["bf16", "fp32"])
    parser.add_argument("--build", type=Path, metavar="DIR", help="build into DIR, and no more")
    parser.add_argument("--arch", default="", help="of --build: 90 for an H100; the GPU's own")
    parser.add_argument("--libraries", type=Path, metavar="DIR", help="take what --build made")
    parser.add_argument("--out", type=Path, default=bench_rows.RESULTS / "kernels_cuda.jsonl")
    arguments = parser.parse_args()
    if not arguments.kernels and arguments.libraries is None:
        parser.error("name kernels, or the --libraries that were built of them")
    if arguments.build:
        if not arguments.arch and not torch.cuda.is_available():
            parser.error("--build needs --arch where torch sees no GPU")
        build_all(arguments.kernels, arguments.build, arguments.arch)
        return 0
    if not torch.cuda.is_available():
        print("no GPU here (torch sees none): nothing was compared", file=sys.stderr)
        return 2
    writer = bench_rows.Writer(arguments.out)
    table = bench.real_pair(None)[0].cuda()
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        libraries = build_all(arguments.kernels, Path(folder), "")
        if arguments.libraries:
            libraries |= {path.stem: path for path in sorted(arguments.libraries.glob("*.so"))}
        for dtype in arguments.dtypes:
            for rows in arguments.rows:
                # No handler: the signal ends a process that waits for the GPU, too.
                signal.alarm(_HANGS_S)
                found = measure(libraries, rows, dtype, table)
                signal.alarm(0)
                for row in found:
                    writer.add(row)
                line = ", ".join(f"{row.system} {row.p50_us:.2f}" for row in found)
                print(f"{dtype}, R = {rows}: {line}", flush=True)
                torch.cuda.empty_cache()
    writer.close()
    print(f"wrote {writer.path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
