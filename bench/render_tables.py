"""Write the tables of measured figures in the README and ``docs/speed.md``.

``python bench/render_tables.py`` fills between the markers ``<!-- results:NAME -->`` and
``<!-- end:NAME -->``; ``--check`` only says whether anything would change (exit code 1). A table
without rows stays empty: no figure is typed by hand.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import render_evaluation
import render_mix_topk
import rows
from markdown_table import markdown_table

REPO = Path(__file__).resolve().parent.parent
Row = dict[str, Any]


def fill(text: str, name: str, body: str) -> str:
    """Put ``body`` between the markers of ``name``."""
    pattern = rf"(<!-- results:{name} -->\n).*?(<!-- end:{name} -->)"
    filled, count = re.subn(
        pattern, lambda m: m[1] + (body + "\n" if body else "") + m[2], text, flags=re.DOTALL
    )
    if count != 1:
        raise SystemExit(f"the page must hold the markers of {name} once, found {count}")
    return filled


#: What a sceptic compares: the methods of the standard run that the first screen shows.
_ROWS = {
    "target": "the specialist alone",
    "anchor": "the small aligned model alone",
    "post-hoc-guard": "the specialist, then a guard: the same judge blocks",
    "best-of-k": "best of 3 of the specialist, the same judge picks",
    "alignbeam": "**AlignBeam**: 6 mixed tokens, 3 beams, the same judge",
}


def systems() -> str:
    """Safety, over-refusal, work and time side by side: ``alignbeam eval --suite standard``."""
    path = rows.RESULTS / "eval_standard.json"
    if not path.is_file():
        return ""
    digest = json.loads(path.read_text(encoding="utf-8"))
    columns = [
        (head, found)
        for head, found in render_evaluation.columns_of(digest)
        if head.startswith(("harmful refused", "benign refused", "word problems"))
    ]
    times = {row["method"]: row for row in digest["latencies"]}
    lines = [
        [
            named,
            *(render_evaluation.share(found[method]) for _, found in columns),
            f"{times[method]['mean_ms']:.0f}",
        ]
        for method, named in _ROWS.items()
    ]
    heads = ["embedded trio", *(f"{head}, %" for head, _ in columns), "ms an answer"]
    return (
        f"{markdown_table(heads, lines)}\n\n"
        "95 % intervals in brackets; a reply that refuses and then complies counts as complied. "
        f"Commit {digest['manifest']['environment']['commit']}, a shared machine: compare "
        "times with each other only."
    )


def decode() -> str:
    """What an answer costs: ``bench/bench_decode.py``."""
    found = [row for row in rows.read("decode") if row["system"] != "plain"]
    lines = [
        [
            f"{row['models']}, {row['device']}, K = {row['beams']}: {row['system']}",
            f"{row['total_ms_p50']:.0f}",
            f"{row['ratio_to_plain_p50']:.2f}",
            f"{row['ratio_to_best_of_k_p50']:.2f}",
            *(f"{row[f'{part}_ms']:.1f}" for part in _PARTS),
        ]
        for row in found
    ]
    if not lines:
        return ""
    header = ["answer", "ms (p50)", "x plain target", "x best-of-K", *_PARTS]
    first = found[0]
    machine = first["machine"]
    where = machine["gpu"] or f"{machine['cpu']}, {first['threads']} threads"
    return (
        f"{markdown_table(header, lines)}\n\n"
        f"Conditions: {where}; {first['new_tokens']} new tokens, "
        f"N = {max(row['mix_steps'] for row in found)}, medians of {first['runs']} interleaved "
        f"runs, {first['dtype']}, torch {machine['torch']}, commit {machine['commit']}. "
        "`best_of_k` samples K answers of the target for the same judge. Columns on the right: "
        "milliseconds by part."
    )


def kernel() -> str:
    """What one mixing step costs: ``bench/bench_mix_topk.py``."""
    parts = []
    for device in ("cpu", "cuda"):
        found = rows.read(f"mix_topk_{device}")
        main = render_mix_topk.pick(found, op="mix_topk", kind="peaked")
        if not main:
            continue
        first = main[0]
        machine = first["machine"]
        where = machine["gpu"] or f"{machine['cpu']}, {first['isa']}, {first['threads']} thread"
        for dtype in dict.fromkeys(row["dtype"] for row in main):
            group = render_mix_topk.pick(
                main, dtype=dtype, threads=first["threads"], timer=first["timer"]
            )
            parts.append(f"{dtype}, {where}:\n\n{render_mix_topk.headline(group)}")
        parts.append(
            f"Conditions: {first['anchor_width']:,} anchor logits -> {first['target_width']:,} "
            "target logits (Qwen2.5 -> Llama-3), B = 50, K = 3, peaked logits; medians, peers in "
            f"turns in one process, {'CPU' if first['basis'] == 'cpu' else 'wall'} time "
            f"({first['timer']}); torch {machine['torch']}, commit {machine['commit']}, "
            f"{machine['utc'][:10]}. The best peer is the fastest of what a capable reader would "
            "write: top-k on logits with two log-sum-exps, and torch.compile of it and of the "
            "plain version. [Targets met and missed, all inputs, peers and thread "
            "counts](../bench/results/mix_topk.md)."
        )
        if first["device"] == "cpu":
            parts.append(render_mix_topk.memory_bound(found))
        if (rows.RESULTS / f"mix_topk_{device}.svg").is_file():
            parts.append(
                f"![how many times longer each peer takes](../bench/results/mix_topk_{device}.svg)"
            )
    return "\n\n".join(parts)


def bridge() -> str:
    """How long a bridge takes: ``bench/bench_bridge.py``."""
    found = rows.read("bridge")
    lines = [
        [
            f"{row['anchor']} -> {row['target']}",
            f"{row['anchor_width']:,}",
            f"{row['cold_ms_p50']:,.0f}",
            f"{row['load_ms_p50']:.0f}",
            f"{row['reload_ms_p50']:.1f}",
        ]
        for row in found
    ]
    if not lines:
        return ""
    header = ["bridge", "anchor ids", "built, ms", "from the cache, ms", "again in a process, ms"]
    machine = found[0]["machine"]
    return (
        f"{markdown_table(header, lines)}\n\n"
        f"Conditions: {machine['cpu']}, medians of {found[0]['runs']} "
        f"fresh processes, tokenizers loaded beforehand, commit {machine['commit']}."
    )


def survival() -> str:
    """What hides harm from the embedded judge: ``bench/bench_judge.py``."""
    found = rows.read("judge_survival")
    if not found:
        return ""
    first = found[0]
    lines = [
        [
            row["attack"],
            *(str(row[key]) for key in ("passed_before", "passed", "withheld_before", "withheld")),
        ]
        for row in found
    ]
    header = [
        "written around it",
        f"harmful that pass, of {first['harmful']}: one view",
        "all views",
        f"harmless withheld, of {first['safe']}: one view",
        "all views",
    ]
    return (
        f"{markdown_table(header, lines)}\n\n"
        "The embedded trio's judge, threshold 2.5: complying answers of the target to AdvBench "
        "goals, and its answers to word problems, held fixed. One view: the whole conversation, "
        "the unreadable scored like all else. All views: the default. "
        f"Commit {first['machine']['commit']}."
    )


def verdicts() -> str:
    """What a verdict costs: ``bench/bench_judge.py``."""
    found = rows.read("judge_cost")
    if not found:
        return ""
    lines = [
        [
            str(row["candidates"]),
            str(row["readings"]),
            f"{row['alone_ms_p50']:.0f}",
            f"{row['shared_ms_p50']:.0f}",
            f"{row['greatest_difference']:.1e}",
        ]
        for row in found
    ]
    header = ["candidates", "readings", "each alone, ms", "beginnings shared, ms", "score differs"]
    first = found[0]
    return (
        f"{markdown_table(header, lines)}\n\n"
        f"Conditions: the embedded judge's weights under the general rubric, a prompt of "
        f"{first['prompt_tokens']} tokens; medians of {first['runs']} runs or more in turns, 1 "
        f"thread, {first['machine']['cpu']}, commit {first['machine']['commit']}."
    )


_PARTS = ("target", "anchor", "mix", "judge", "other")

#: What is written between which markers, by page.
PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"systems": systems},
    "docs/speed.md": {"decode": decode, "kernel": kernel, "bridge": bridge, "verdicts": verdicts},
    "docs/threat_model.md": {"survival": survival},
}


def main() -> None:
    """Rewrite the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if stale")
    check = parser.parse_args().check
    stale = []
    for name, tables in PAGES.items():
        path = REPO / name
        old = new = path.read_text(encoding="utf-8")
        for table, make in tables.items():
            new = fill(new, table, make())
        if new != old:
            stale.append(name)
        if not check:
            path.write_text(new, encoding="utf-8")
    if check and stale:
        sys.exit(f"stale: {', '.join(stale)}; run python bench/render_tables.py")


if __name__ == "__main__":
    main()
