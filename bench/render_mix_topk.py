"""Write the kernel's tables and its plot from the rows in ``bench/results``.

``python bench/render_mix_topk.py`` writes ``bench/results/mix_topk.md`` and, where matplotlib is
installed, ``mix_topk.svg``: how many times longer each peer takes, against the number of rows.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import bench_mix_topk
import rows as bench_rows
from markdown_table import markdown_table

Found = list[dict[str, Any]]
# Results files, by what follows "mix_topk_", and what must be known to read them.
_SETS = {
    "cpu": "",
    "cpu_avx2": "The same machine with ALIGNBEAM_CPU_ISA=avx2; the peers keep all that it has. ",
    "cpu_amd": "A CPU of another maker. ",
    "cpu_amd_many": "The same with ALIGNBEAM_CPU_READS=many, without compiled peers. ",
    "cuda": "",
    "cuda_h100": "Another card. ",
}


OURS = ("ours", "triton")
# Microseconds of a call on an H200, bf16, in a graph, L2 cold, by R: (gate, stretch).
CUDA_US = {1: (8, 5.5), 3: (12, 8.5), 24: (12, 8.5), 96: (21, 17.5), 256: (44, 39)}
_COPY_SHARE = (0.76, 0.86)  # of the measured copy bandwidth, at R = 256
_TIMES_FASTER = (4, 8)  # than the best peer
_TRITON = {1: 1.6, 3: 1.6, 96: 1.12, 256: 1.12}  # times CUDA's time at most


def pick(found: Found, **wanted: Any) -> Found:
    return [row for row in found if all(row[key] == value for key, value in wanted.items())]


def number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def middle(row: dict[str, Any]) -> float:
    """Median microseconds: CPU time where one thread does all the work, else wall time.

    The machines that measure are shared; CPU time does not count what others used.
    """
    return row["cpu_p50_us"] if row["basis"] == "cpu" else row["p50_us"]


def times_table(found: Found) -> str:
    """One line per system, one column per R: microseconds (p50), and times ours in brackets."""
    counts = sorted({row["rows"] for row in found})
    systems = list(dict.fromkeys(row["system"] for row in found))
    lines = []
    for system in systems:
        cells = []
        for count in counts:
            row = next(iter(pick(found, system=system, rows=count)), None)
            if row is None:
                cells.append("")
                continue
            ratio = "" if system in ("ours", "kernel") else f" ({row['ratio_to_ours_p50']:.1f}x)"
            cells.append(number(middle(row)) + ratio)
        lines.append([system, *cells])
    return markdown_table(
        [f"us (p50, {found[0]['basis']} time)", *(f"R = {count}" for count in counts)], lines
    )


def headline(found: Found) -> str:
    """Times faster than the best honest peer, per R."""
    lines = []
    for count in sorted({row["rows"] for row in found}):
        best = best_peer(pick(found, rows=count))
        if best is None:
            continue
        spread = "/".join(f"{best[f'ratio_to_ours_p{q}']:.1f}" for q in (20, 50, 80))
        ours, alone = (
            (pick(found, rows=count, system=name) or [None])[0] for name in ("ours", "kernel")
        )
        lines.append(
            [f"{count}", per_row(ours), per_row(alone), best["system"], per_row(best), spread]
        )
    return markdown_table(
        ["R", "us a row pair", "C++ call alone", "best peer", "us a row pair",
         "times ours, p20/p50/p80"],
        lines,
    )  # fmt: skip


def per_row(row: dict[str, Any] | None) -> str:
    return "" if row is None else number(middle(row) / row["rows"])


def targets(sets: dict[str, Found]) -> str:
    """Each target for the CPU, what was measured for it, and whether that meets it."""
    lines = []
    for name, threads, what, gate, stretch in (
        ("cpu", 1, "us a row pair in cache, bf16, 1 thread", 52, 44),
        ("cpu", 2, "us at R = 1, bf16, 2 threads, torch's asleep", 32, 26),
        ("cpu_avx2", 1, "us a row pair in cache, bf16, 1 thread, AVX2", 92, 80),
    ):
        found = pick(
            sets.get(name, []),
            system="kernel",
            dtype="bf16",
            rows=1,
            threads=threads,
            kind="peaked",
        )
        if threads > 1:
            found = [row for row in found if "asleep" in row["timer"]]
        if found:
            us = middle(found[0])
            lines.append([what, f"{gate}", f"{stretch}", number(us), met(-us, -gate, -stretch)])
    for row in pick(sets.get("cpu", []), system="ours", kind="peaked", threads=1):
        best = best_peer(pick(sets["cpu"], **{key: row[key] for key in _SAME}))
        if best is not None:
            times = best["ratio_to_ours_p50"]
            what = f"times faster than the best peer, R = {row['rows']}, {row['dtype']}, 1 thread"
            lines.append([what, "8", "12", f"{times:.1f}", met(times, 8, 12)])
    table = markdown_table(["target", "gate", "stretch", "measured", "met"], lines)
    return f"{table}\n\n{memory_bound(sets.get('cpu', []))}"


def cuda_table(found: Found, dtype: str) -> str:
    """One line per system, one column per R: microseconds a call (p50); then what they mean.

    ``found`` holds rows of one timer. Peers have their ratio to ours in brackets.
    """
    group = pick(found, op="mix_topk", kind="peaked", dtype=dtype)
    counts = sorted({row["rows"] for row in group})
    lines = []
    for system in dict.fromkeys(row["system"] for row in group):
        cells = []
        for count in counts:
            row = next(iter(pick(group, system=system, rows=count)), None)
            ratio = row["ratio_to_ours_p50"] if row and system in bench_mix_topk.HONEST else None
            times = f" ({ratio:.1f}x)" if ratio is not None and not math.isnan(ratio) else ""
            cells.append(number(row["p50_us"]) + times if row else "")
        lines.append([_CALLED.get(system, system), *cells])
    return markdown_table([f"{dtype}, us a call", *(f"R = {count}" for count in counts)], lines)


_CALLED = {
    "ours": "**mix_topk, CUDA**",
    "triton": "mix_topk, Triton",
    "copy": "device copy of the anchor's logits",
    "read": "a kernel that only reads both",
    "flashinfer": "FlashInfer top-k + eager merge",
    "flashinfer_compiled": "FlashInfer top-k + compiled merge",
}


def other_inputs(found: Found) -> str:
    """The inputs made to defeat a select: microseconds of ours and of the best peer."""
    cold = pick(found, op="mix_topk", timer="graph, cold L2")
    parts: dict[str, list[str]] = {}
    for row in cold:
        if row["kind"] == "peaked" or row["system"] not in OURS:
            continue
        same = {key: row[key] for key in ("dtype", "rows", "kind")}
        best = best_peer(pick(cold, **same))
        peer = f", best peer {number(best['p50_us'])}" if best else ""
        parts.setdefault(f"{row['dtype']}, R = {row['rows']}, {row['kind']}", []).append(
            f"{row['system']} {number(row['p50_us'])} us{peer}"
        )
    return "; ".join(f"{where}: {', '.join(said)}" for where, said in parts.items())


def cuda_targets(found: Found) -> str:
    """Each target for CUDA and Triton, what was measured for it, and whether that meets it."""
    cold = pick(found, op="mix_topk", kind="peaked", timer="graph, cold L2")
    lines = []
    for row in sorted(pick(cold, system="ours"), key=lambda row: (row["dtype"], row["rows"])):
        count, dtype = row["rows"], row["dtype"]
        same = pick(cold, rows=count, dtype=dtype)
        where = f"R = {count}, {dtype}"
        us = row["p50_us"]
        copy = next(iter(pick(same, system="copy")), None)  # of the same bytes, in turns
        # An H200's targets; where another card is held to them, it is by ratios.
        if dtype == "bf16" and count in CUDA_US and "H200" in row["machine"]["gpu"]:
            gate, stretch = CUDA_US[count]
            lines.append([f"us, {where}", f"{gate}", f"{stretch}", number(us),
                          met(-us, -gate, -stretch)])  # fmt: skip
        if copy is not None and count >= 96:
            share = row["gb_per_s"] / copy["gb_per_s"]
            judged = met(share, *_COPY_SHARE) if count == 256 else "no target"
            lines.append([f"share of copy bandwidth, {where}", f"{_COPY_SHARE[0]}",
                          f"{_COPY_SHARE[1]}", f"{share:.2f}", judged])  # fmt: skip
        best = best_peer(same)
        if best is not None:
            times = best["ratio_to_ours_p50"]
            lines.append([f"times faster than {best['system']}, {where}", f"{_TIMES_FASTER[0]}",
                          f"{_TIMES_FASTER[1]}", f"{times:.1f}",
                          met(times, *_TIMES_FASTER)])  # fmt: skip
        for triton in pick(same, system="triton"):
            if count in _TRITON:
                times = triton["ratio_to_ours_p50"]
                lines.append([f"Triton, times CUDA's time, {where}", f"{_TRITON[count]}", "",
                              f"{times:.2f}",
                              "gate" if times <= _TRITON[count] else "missed"])  # fmt: skip
    if not lines:
        return ""
    return markdown_table(["target", "gate", "stretch", "measured", "met"], lines)


def phases_table(found: Found, dtype: str) -> str:
    """One line per part of a step, one column per R: when it ended, and how long it took."""
    group = pick(found, dtype=dtype)
    counts = sorted({row["rows"] for row in group})
    lines = []
    for part in dict.fromkeys(row["part"] for row in group):
        cells = []
        for count in counts:
            row = next(iter(pick(group, part=part, rows=count)), None)
            took = "" if row is None or math.isnan(row["took_p50_us"]) else (
                f" ({row['took_p50_us']:.1f})"
            )  # fmt: skip
            cells.append(f"{row['since_start_p50_us']:.1f}{took}" if row else "")
        lines.append([part, *cells])
    header = [f"{dtype}, us since the start (took)", *(f"R = {count}" for count in counts)]
    return markdown_table(header, lines)


def phases_section(found: Found) -> str:
    machine = found[0]["machine"]
    tables = [phases_table(found, dtype) for dtype in dict.fromkeys(r["dtype"] for r in found)]
    return "\n\n".join([
        f"## Where a CUDA step's time goes\n\n{machine['gpu']}, commit {machine['commit']}: "
        "medians over the rows of eight steps, each alone and with no logits in a cache "
        "(`bench/phases.py`); marked, and with its code cold, a step is slower than in a graph.",
        *tables,
    ])  # fmt: skip


def met(value: float, gate: float, stretch: float) -> str:
    """Name what a value reaches; more is better."""
    return "stretch" if value >= stretch else "gate" if value >= gate else "missed"


def memory_bound(found: Found) -> str:
    """Say how near to the memory's limit the step comes where rows are in no cache."""
    parts = []
    for bound in pick(found, op="roofline", system="read_only"):
        if bound["rows"] == 1:
            continue
        same = {key: bound[key] for key in ("dtype", "rows", "threads")}
        ours = next(iter(pick(found, system="ours", kind="peaked", **same)), None)
        if ours is not None:
            parts.append(
                f"{bound['dtype']} at R = {bound['rows']}: {per_row(ours)} us a row pair, where a "
                f"loop that only reads it takes {number(middle(bound))}"
            )
    return f"Out of the caches one core's memory is the limit. {'; '.join(parts)}."


_SAME = ("dtype", "rows", "threads", "timer", "kind")


def best_peer(group: Found) -> dict[str, Any] | None:
    """Return the fastest of what a capable reader would write, of rows on one input."""
    honest = [row for row in group if row["system"] in bench_mix_topk.HONEST]
    return min(honest, key=middle, default=None)


def section(name: str, found: Found) -> str:
    device = found[0]["device"]
    machine = found[0]["machine"]
    where = machine["gpu"] or machine["cpu"]
    parts = [
        f"## {name}\n\n{_SETS[name]}{where}, torch {machine['torch']}, triton "
        f"{machine['triton']}, commit {machine['commit']}, {machine['utc']}; load average "
        f"while measuring {min(r['load'] for r in found):.0f} to "
        f"{max(r['load'] for r in found):.0f}. "
        "Qwen2.5 -> Llama-3 (151,936 -> 128,256 logits), "
        "B = 50, K = 3, alpha = 0.5, peaked logits unless said otherwise."
    ]
    main = [row for row in pick(found, op="mix_topk", kind="peaked")]
    if device == "cuda":
        return "\n\n".join([*parts, *cuda_section(found)])
    for dtype in dict.fromkeys(row["dtype"] for row in main):
        for threads in dict.fromkeys(row["threads"] for row in main):
            for timer in dict.fromkeys(row["timer"] for row in main):
                group = pick(main, dtype=dtype, threads=threads, timer=timer)
                if not group:
                    continue
                isa = f", {group[0]['isa']}, {threads} thread(s)" if device == "cpu" else ""
                tables = [times_table(group)]
                if any(row["system"] in bench_mix_topk.HONEST for row in group):
                    tables.insert(0, headline(group))
                parts.append("\n\n".join([f"### {dtype}{isa} ({timer})", *tables]))
    other = [row for row in found if row["op"] == "mix_topk" and row["kind"] != "peaked"]
    lines = [
        [f"{row['kind']}, {row['dtype']}", row["system"], number(row["p50_us"]),
         number(row["cpu_p50_us"]), f"{row['ratio_to_ours_p50']:.1f}x"]
        for row in other
    ]  # fmt: skip
    if lines:
        header = ["other inputs, R = 1", "system", "us (p50)", "cpu us", "times ours"]
        parts.append(markdown_table(header, lines))
    bounds = pick(found, op="roofline")
    lines = [
        [f"{row['system']}, {row['dtype']}, R = {row['rows']}", number(row["cpu_p50_us"]),
         f"{row['gb_per_s']:.0f}"]
        for row in bounds
    ]  # fmt: skip
    if lines:
        parts.append(markdown_table(["roofline", "cpu us a row pair", "GB/s"], lines))
    return "\n\n".join(parts)


def cuda_section(found: Found) -> list[str]:
    """Every timer's tables, then the other inputs and the card's own bandwidths."""
    main = pick(found, op="mix_topk", kind="peaked")
    parts = []
    for timer in dict.fromkeys(row["timer"] for row in main):
        group = pick(main, timer=timer)
        tables = [cuda_table(group, name) for name in dict.fromkeys(r["dtype"] for r in group)]
        parts.append("\n\n".join([f"### {timer}", *tables]))
    if other := other_inputs(found):
        parts.append(f"Other inputs, in a graph, cold: {other}.")
    bounds = [f"{r['system']} {r['gb_per_s']:,.0f} GB/s" for r in pick(found, op="roofline")]
    if bounds:
        parts.append(f"Over a gibibyte: {', '.join(bounds)}.")
    return parts


def plot(name: str, found: Found, path: Path) -> bool:
    """Draw the ratios against R; False where matplotlib is missing."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    dtypes = list(dict.fromkeys(row["dtype"] for row in pick(found, op="mix_topk")))
    axes = figure.subplots(1, len(dtypes), sharey=True, squeeze=False)[0]
    for axis, dtype in zip(axes, dtypes, strict=True):
        group = pick(found, op="mix_topk", kind="peaked", dtype=dtype)
        first = (group[0]["threads"], group[0]["timer"])
        group = [row for row in group if (row["threads"], row["timer"]) == first]
        for system in dict.fromkeys(row["system"] for row in group):
            if system in ("ours", "kernel", "copy", "read"):
                continue
            line = sorted(pick(group, system=system), key=lambda row: row["rows"])
            axis.plot(
                [r["rows"] for r in line], [r["ratio_to_ours_p50"] for r in line], "o-",
                label=system,
            )  # fmt: skip
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set(xscale="log", yscale="log", xlabel="rows R", title=f"{name}, {dtype}")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("times the time of mix_topk")
    figure.legend(*axes[-1].get_legend_handles_labels(), loc="outside right", fontsize=8)
    # The same rows give the same file.
    with matplotlib.rc_context({"svg.hashsalt": "mix_topk"}):
        figure.savefig(path, metadata={"Date": None})
    return True


def main() -> None:
    sets = {name: bench_rows.read(f"mix_topk_{name}") for name in _SETS}
    sets = {name: found for name, found in sets.items() if found}
    sections = [f"## Targets\n\n{targets(sets)}"] if "cpu" in sets else []
    for name, found in sets.items():
        if name.startswith("cuda"):
            gpu = found[0]["machine"]["gpu"]
            sections.append(f"## Targets on a GPU: {gpu}\n\n{cuda_targets(found)}")
    if phases := bench_rows.read("phases_cuda"):
        sections.append(phases_section(phases))
    for name, found in sets.items():
        sections.append(section(name, found))
        path = bench_rows.RESULTS / f"mix_topk_{name}.svg"
        compared = any(row["system"] == "compile_smart_eager" for row in found)
        if compared and plot(name, found, path):
            sections.append(f"![times the time of mix_topk, against rows]({path.name})")
    text = (
        "# The mixing step, measured\n\nWritten by `bench/render_mix_topk.py` from the rows here."
    )
    path = bench_rows.RESULTS / "mix_topk.md"
    path.write_text("\n\n".join([text, *sections]) + "\n", encoding="utf-8")
    print("wrote", path)


if __name__ == "__main__":
    main()
