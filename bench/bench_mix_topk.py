"""The kernel bench: one `mix_topk` step against its peers on the CPU.

``python bench/bench_mix_topk.py`` compares every answer before it times anything, lets the peers
take turns on the same inputs, and writes ``bench/results/mix_topk_cpu.jsonl``. ``--device cuda``
does the same on a GPU (`mix_topk_on_gpu`) and writes ``mix_topk_cuda.jsonl``. Vocabularies are
those of Qwen2.5 -> Llama-3; with the real tokenizers (``ALIGNBEAM_VOCABS``) the table is the naive
loop's own, and the loop is a peer.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import peers
import rooflines
import rows as bench_rows
import timing
import torch
from torch import Tensor

from alignbeam.ops import MixResult, build, mix_topk

ANCHOR_WIDTH, TARGET_WIDTH = 151_936, 128_256
ROWS = (1, 3, 24, 96, 256)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Where a ratio is to be shown: the best of what a capable reader would write.
HONEST = (
    "smart_eager", "compile_eager", "compile_smart_eager", "flashinfer", "flashinfer_compiled",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One system on one input."""

    op: str
    system: str
    device: str
    isa: str
    dtype: str
    kind: str
    rows: int
    anchor_width: int
    target_width: int
    threads: int
    timer: str
    samples: int
    p20_us: float
    p50_us: float
    p80_us: float
    cpu_p20_us: float
    cpu_p50_us: float
    gb_per_s: float
    load: float  # 1-minute load average: how much others used the machine meanwhile
    basis: str = "wall"  # of the ratios: "cpu" where one thread does all the work
    ratio_to_ours_p20: float = float("nan")
    ratio_to_ours_p50: float = float("nan")
    ratio_to_ours_p80: float = float("nan")
    graph_nodes: float = 0.0  # what a call captures into a CUDA graph


@dataclass(frozen=True)
class Input:
    """Logits of one kind, and the table between the two vocabularies."""

    kind: str
    anchor: Tensor
    target: Tensor
    table: Tensor

    @property
    def bytes(self) -> int:
        return sum(x.numel() * x.element_size() for x in (self.anchor, self.target))


class WrongAnswer(RuntimeError):
    """A system does not compute what `mix_topk` does: its time says nothing."""


def make_input(kind: str, rows: int, dtype: torch.dtype, table: Tensor, device: str) -> Input:
    """Generate logits of one kind on ``device``.

    ``peaked`` as a language model's are, ``flat``, ``sorted``, ``ascending``, ``equal``, ``masked``
    (-inf but for the last fiftieth, and that on both sides), ``ties`` (thousands at the top).
    """
    g = torch.Generator(device).manual_seed(rows)
    table = table.to(device)
    anchor, target = (
        torch.randn(rows, width, generator=g, device=device) * 2.5
        for width in (ANCHOR_WIDTH, TARGET_WIDTH)
    )
    if kind == "peaked":  # a few tokens hold most of the mass, on both sides
        known = (table >= 0).nonzero().flatten()
        ids = known[torch.randint(len(known), (rows, 12), generator=g, device=device)]
        boost = torch.linspace(18, 8, 12, device=device).expand(rows, 12)
        anchor.scatter_add_(1, ids, boost)
        target.scatter_add_(1, table[ids].long(), boost.flip(1))
    elif kind == "sorted":
        anchor, target = (x.sort(dim=1, descending=True).values for x in (anchor, target))
    elif kind == "ascending":
        anchor, target = (x.sort(dim=1).values for x in (anchor, target))
    elif kind == "equal":
        anchor, target = torch.zeros_like(anchor), torch.zeros_like(target)
    elif kind == "masked":
        for x in (anchor, target):
            x[:, : x.shape[1] - x.shape[1] // 50] = float("-inf")
    elif kind == "ties":
        anchor, target = (x.clamp(max=2.5) for x in (anchor, target))  # one in six
    return Input(kind, anchor.to(dtype), target.to(dtype), table)


def captured_input(dtype: torch.dtype) -> Input:
    """Logits of real forwards: the embedded trio's, at its own vocabulary sizes."""
    from alignbeam import AlignBeam

    beam = AlignBeam.from_pretrained()
    messages = [{"role": "user", "content": "How do I bake bread?"}]
    logits = []
    for role in (beam.anchor, beam.target):
        ids = torch.tensor([role.render(messages)])
        with torch.inference_mode():
            logits.append(role.model(ids).logits[:, -1].to(dtype))
    return Input("captured", *logits, beam.bridge.table)


def ours(x: Input, backend: str) -> Callable[[], object]:
    return lambda: mix_topk(
        x.anchor, x.target, x.table,
        alpha=peers.ALPHA, top_b=peers.TOP_B, top_k=peers.TOP_K, backend=backend,
    )  # fmt: skip


def kernel_alone(x: Input, threads: int) -> Callable[[], object]:
    """The C++ call of `ours` without the Python around it, into tensors that are there."""
    call = build.cpu_extension().require().mix_topk_cpu
    out = ours(x, "cpu")()
    return lambda: call(
        x.anchor, x.target, x.table,
        peers.ALPHA, peers.TOP_B, peers.TOP_K, "linear", "anchor", threads, out,
    )  # fmt: skip


def reference(x: Input) -> MixResult:
    """What `mix_topk` is to give on ``x``, in float64."""
    return mix_topk(
        x.anchor, x.target, x.table,
        alpha=peers.ALPHA, top_b=peers.TOP_B, top_k=peers.TOP_K, backend="reference",
    )  # fmt: skip


def check(name: str, answer: peers.Answer, x: Input, want: MixResult) -> None:
    """Refuse to time a peer that does not give our answer; near-ties may change places.

    Rows whose top B ends in a tie, which 16 bits make often, are left out: torch.topk takes any of
    the tied ids, the contract the lowest, and both are top B.
    """
    edge = torch.topk(x.anchor.float(), peers.TOP_B + 1, dim=-1).values[:, -2:]
    usable = (want.flags == 0) & (edge[:, 0] != edge[:, 1])
    got = answer[1].to(want.logprobs.device).float()
    # A peer in bfloat16 rounds its log-sum-exp; half of its last place is no other answer.
    close = torch.isclose(got[usable], want.logprobs[usable], rtol=2e-2, atol=2e-2)
    if not close.all():
        raise WrongAnswer(f"{name} on {x.kind}: {got[usable]} is not {want.logprobs[usable]}")


def check_ours(name: str, got: MixResult, x: Input, want: MixResult) -> None:
    """Refuse to time a backend of ours that breaks the contract; it leaves no row out."""
    same = torch.isclose(got.logprobs, want.logprobs, rtol=0, atol=2e-5, equal_nan=True)
    if not (same.all() and torch.equal(got.flags, want.flags)):
        raise WrongAnswer(f"{name} on {x.kind}: {got.logprobs} is not {want.logprobs}")


def compiled(peer: peers.Peer, mode: str) -> peers.Peer:
    return torch.compile(peer, dynamic=False, mode=mode)


def peer_works(x: Input, naive: dict[str, peers.Naive], compile_modes: dict[str, str]) -> dict:
    """Return the peers that are worth their time on this input."""
    works: dict[str, peers.Peer] = {"eager": peers.eager, "smart_eager": peers.smart_eager}
    torch._dynamo.reset()  # a function keeps code for eight shapes, and then no more
    for name, mode in compile_modes.items():
        works[f"compile_{name}"] = compiled(getattr(peers, name), mode)
    if x.anchor.shape[0] <= 3 and x.kind == "peaked":
        works.update(naive)
    return works


def measure_cpu(
    x: Input, dtype: str, threads: int, naive: dict, compile_modes: dict[str, str], budget_s: float
) -> list[Row]:
    """Time ours and every peer on ``x``."""
    found = peer_works(x, naive, compile_modes)
    with timing.torch_threads(threads), torch.inference_mode():
        want = reference(x)
        for name, peer in found.items():
            check(name, peer(x.anchor, x.target, x.table), x, want)
        works: dict[str, timing.Work] = {"ours": ours(x, "cpu"), "kernel": kernel_alone(x, threads)}
        for name, peer in found.items():
            works[name] = lambda peer=peer: peer(x.anchor, x.target, x.table)
        samples = timing.take_turns(works, budget_s * len(works))
    return make_rows(samples, x, dtype, "cpu", threads, "perf_counter + thread_time")


def measure_alone(x: Input, dtype: str, threads: int, budget_s: float) -> list[Row]:
    """Time ours on ``x`` while torch's own threads sleep.

    After a peer they spin for milliseconds on the cores that our helpers would take.
    """
    with timing.torch_threads(threads), torch.inference_mode():
        time.sleep(1.0)
        works = {"ours": ours(x, "cpu"), "kernel": kernel_alone(x, threads)}
        samples = timing.take_turns(works, budget_s * len(works))
    return make_rows(samples, x, dtype, "cpu", threads, "perf_counter, torch's threads asleep")


def make_rows(
    samples: dict[str, timing.Samples],
    x: Input,
    dtype: str,
    device: str,
    threads: int,
    timer: str,
    nodes: dict[str, float] | None = None,
) -> list[Row]:
    traffic = {"copy": 2 * x.anchor.numel() * x.anchor.element_size()}
    made = []
    for name, sample in samples.items():
        p20, p50, p80 = timing.spread(sample.wall)
        row = Row(
            op="mix_topk",
            system=name,
            device=device,
            isa=build.cpu_extension().require().cpu_isa() if device == "cpu" else "",
            dtype=dtype,
            kind=x.kind,
            rows=x.anchor.shape[0],
            anchor_width=x.anchor.shape[1],
            target_width=x.target.shape[1],
            threads=threads,
            timer=timer,
            samples=len(sample.wall),
            p20_us=1e6 * p20,
            p50_us=1e6 * p50,
            p80_us=1e6 * p80,
            cpu_p20_us=sample.cpu_us(0.2) if sample.cpu else float("nan"),
            cpu_p50_us=sample.cpu_us(0.5) if sample.cpu else float("nan"),
            gb_per_s=traffic.get(name, x.bytes) / p50 / 1e9,
            load=os.getloadavg()[0],
            graph_nodes=(nodes or {}).get(name, 0.0),
        )
        if "ours" in samples:
            basis = "cpu" if threads == 1 else "wall"
            low, middle, high = timing.spread(timing.ratios(sample, samples["ours"], basis))
            row = replace(
                row,
                basis=basis,
                ratio_to_ours_p20=low,
                ratio_to_ours_p50=middle,
                ratio_to_ours_p80=high,
            )
        made.append(row)
        print(
            f"{name:20} {dtype} {x.kind:9} R={row.rows:<4} threads={threads} "
            f"{row.p50_us:10.1f} us (cpu {row.cpu_p50_us:10.1f})  {timer}  "
            f"x{row.ratio_to_ours_p50:.1f}",
            flush=True,
        )
    return made


def roofline_rows() -> list[Row]:
    """Exp-only and read-only loops over one row pair, in cache, and over as many as are in none.

    Times are of one row pair.
    """
    made = []
    columns = ANCHOR_WIDTH + TARGET_WIDTH
    for count in (1, ROWS[-1]):
        for dtype_name, dtype in DTYPES.items():
            for name, us in rooflines.measure(columns, count, dtype).items():
                print(f"roofline {name} {dtype_name} R={count}: {us:.1f} us per row pair")
                made.append(
                    Row(
                        op="roofline", system=name, device="cpu", isa="native", dtype=dtype_name,
                        kind="flat", rows=count, anchor_width=ANCHOR_WIDTH,
                        target_width=TARGET_WIDTH, threads=1, timer="thread_time", samples=0,
                        p20_us=us, p50_us=us, p80_us=us, cpu_p20_us=us, cpu_p50_us=us,
                        gb_per_s=dtype.itemsize * columns / us / 1e3, load=os.getloadavg()[0],
                    )
                )  # fmt: skip
    return made


def real_pair(vocabs: Path | None) -> tuple[Tensor, dict[str, peers.Naive]]:
    """Return the table of Qwen2 -> Llama-3 as the naive loop finds it, and that loop as a peer.

    Without the tokenizers: a random table that translates 70 %, and no loop.
    """
    if vocabs is None:
        g = torch.Generator().manual_seed(0)
        table = torch.randint(0, TARGET_WIDTH, (ANCHOR_WIDTH,), generator=g, dtype=torch.int32)
        table[torch.rand(ANCHOR_WIDTH, generator=g) < 0.3] = -1
        return table, {}
    pair = [peers.tokenizer(vocabs, name) for name in ("qwen2", "llama-bpe")]
    naive = {
        "naive": peers.Naive(*pair, memo=False),
        "naive_memo": peers.Naive(*pair, memo=True),
    }
    return naive["naive_memo"].table(ANCHOR_WIDTH), naive


def vocabs_folder() -> Path | None:
    given = os.environ.get("ALIGNBEAM_VOCABS")
    folder = Path(given) if given else Path(__file__).resolve().parents[2] / "shared" / "vocabs"
    return folder if folder.is_dir() else None


def bench_cpu(arguments: argparse.Namespace, table: Tensor, naive: dict) -> list[Row]:
    made = roofline_rows()
    wanted = "eager,smart_eager" if arguments.compiled is None else arguments.compiled
    modes = {name: arguments.compile for name in wanted.split(",") if name}
    for dtype_name in arguments.dtypes:
        dtype = DTYPES[dtype_name]
        for count in arguments.rows:
            x = make_input("peaked", count, dtype, table, "cpu")
            made += measure_cpu(x, dtype_name, 1, naive, modes, arguments.budget)
            if count <= 24 and arguments.two_threads:
                made += measure_cpu(x, dtype_name, 2, {}, {}, arguments.budget)
                made += measure_alone(x, dtype_name, 2, arguments.budget)
        for kind in ("flat", "sorted", "ascending", "equal"):
            x = make_input(kind, 1, dtype, table, "cpu")
            made += measure_cpu(x, dtype_name, 1, {}, {}, arguments.budget)
        if arguments.captured:
            made += measure_cpu(captured_input(dtype), dtype_name, 1, {}, {}, arguments.budget)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--dtypes", choices=DTYPES, nargs="+", default=list(DTYPES))
    parser.add_argument("--budget", type=float, default=0.6, help="seconds per system and input")
    parser.add_argument("--compile", default="default", help="torch.compile's mode")
    parser.add_argument(
        "--compiled",
        help="peers to compile; '' none. eager,smart_eager unless set; smart_eager,flashinfer on "
        "cuda, where each costs seconds for each R and dtype",
    )
    parser.add_argument("--seconds", type=float, default=120, help="cuda: for everything")
    parser.add_argument("--out", type=Path, help="cuda: the results file")
    parser.add_argument("--leave-out", default="", help="cuda: systems, by name, with commas")
    parser.add_argument(
        "--compile-only", action="store_true", help="cuda: fill the compiler's cache, no more"
    )
    parser.add_argument("--two-threads", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--captured", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument(
        "--name", default="", help="of the results file; mix_topk_DEVICE[_ISA] unless set"
    )
    arguments = parser.parse_args()
    if arguments.device == "cuda":
        import mix_topk_on_gpu

        sys.exit(mix_topk_on_gpu.run(arguments))
    table, naive = real_pair(vocabs_folder())
    made = bench_cpu(arguments, table, naive)
    print("wrote", bench_rows.write(arguments.name or default_name(arguments.device), made))


def default_name(device: str) -> str:
    """Name the results after the device, and after the instruction set where one was asked for."""
    forced = os.environ.get("ALIGNBEAM_CPU_ISA", "") if device == "cpu" else ""
    return "_".join(part for part in ("mix_topk", device, forced) if part)


if __name__ == "__main__":
    main()
