"""What a run of `on_gpu` found, in a page that fits a terminal's last 12,000 characters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import render_mix_topk as render
import rows
from markdown_table import markdown_table

LIMIT = 12_000
_SAID = 900  # characters of what one step said


def write(out: Path) -> str:
    """Sum up what the folder of a run holds; write it to ``summary.md`` there, and return it."""
    text = summary(
        rows.read_file(out / "mix_topk_cuda.jsonl"),
        rows.read_file(out / "decode_cuda.jsonl"),
        rows.read_file(out / "steps.jsonl"),
    )
    (out / "summary.md").write_text(text + "\n", encoding="utf-8")
    return text


def summary(kernel: render.Found, answers: render.Found, steps: render.Found) -> str:
    """Join the parts that have rows; what matters most comes last and is never cut."""
    parts = [
        _steps(steps),
        *(f"Other inputs: {text}" for text in [render.other_inputs(kernel)] if text),
        *(
            f"{timer}:\n\n{render.cuda_table(render.pick(kernel, timer=timer), dtype)}"
            for timer in ("host, eager", "graph, hot L2", "graph, cold L2")
            for dtype in ("fp32", "bf16")
            if render.pick(kernel, timer=timer, dtype=dtype, kind="peaked")
        ),
        _nodes(kernel),
        _answers(answers),
        render.cuda_targets(kernel),
        _machine([*kernel, *answers, *steps]),
    ]
    text = "\n\n".join(part for part in parts if part)
    cut = "(the beginning is left out; it is in the rows)\n"
    return text if len(text) <= LIMIT else cut + text[len(text) - LIMIT + len(cut) :]


def _machine(found: render.Found) -> str:
    if not found:
        return "no rows"
    m = found[0]["machine"]
    return (
        f"{m['gpu']}, driver {m['driver']}, CUDA {m['cuda']}, torch {m['torch']}, triton "
        f"{m['triton']}, Python {m['python']}, commit {m['commit'] or 'unknown'}, {m['utc']}"
    )


def _steps(steps: render.Found) -> str:
    lines = []
    for step in steps:
        lines.append(f"{step['step']}: {step['ended']}, {step['seconds']:.0f} s")
        lines += [f"    {line}" for line in step["said"][-_SAID:].splitlines()]
    return "\n".join(lines)


def _nodes(kernel: render.Found) -> str:
    found: dict[str, list[str]] = {}
    for row in render.pick(kernel, op="mix_topk", timer="graph, cold L2", kind="peaked"):
        count = f"{row['graph_nodes']:.2g}"
        counts = found.setdefault(row["system"], [])
        if count not in counts:
            counts.append(count)
    parts = [f"{system} {' or '.join(counts)}" for system, counts in found.items()]
    return f"Graph nodes a call: {', '.join(parts)}" if parts else ""


def _answers(found: list[dict[str, Any]]) -> str:
    names = ("target", "anchor", "mix", "judge", "other")
    lines = [
        [
            f"K = {row['beams']}: {row['system']}",
            f"{row['total_ms_p50']:.0f}",
            f"{row['ratio_to_plain_p50']:.2f}",
            f"{row['ratio_to_best_of_k_p50']:.2f}",
            *(f"{row[f'{name}_ms']:.1f}" for name in names),
            f"{row['runs']}",
        ]
        for row in found
    ]
    if not lines:
        return ""
    head = ["ms, p50", "all", "x plain", "x best-of-K", *names, "runs"]
    return f"{found[0]['models']}, {found[0]['new_tokens']} new tokens:\n\n" + markdown_table(
        head, lines
    )
