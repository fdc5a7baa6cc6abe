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
    "cuda": "",
}


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
            if system in ("ours", "kernel"):
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
    axes[-1].legend(fontsize=8)
    # The same rows give the same file.
    with matplotlib.rc_context({"svg.hashsalt": "mix_topk"}):
        figure.savefig(path, metadata={"Date": None})
    return True


def main() -> None:
    sets = {name: bench_rows.read(f"mix_topk_{name}") for name in _SETS}
    sets = {name: found for name, found in sets.items() if found}
    sections = [f"## Targets\n\n{targets(sets)}"] if "cpu" in sets else []
    for name, found in sets.items():
        sections.append(section(name, found))
        path = bench_rows.RESULTS / f"mix_topk_{name}.svg"
        if plot(name, found, path):
            sections.append(f"![times the time of mix_topk, against rows]({path.name})")
    text = (
        "# The mixing step, measured\n\nWritten by `bench/render_mix_topk.py` from the rows here."
    )
    path = bench_rows.RESULTS / "mix_topk.md"
    path.write_text("\n\n".join([text, *sections]) + "\n", encoding="utf-8")
    print("wrote", path)


if __name__ == "__main__":
    main()
