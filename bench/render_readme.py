"""Write the README's tables of measured figures from the rows in ``bench/results``.

``python bench/render_readme.py`` fills between the markers ``<!-- results:NAME -->`` and
``<!-- end:NAME -->``; ``--check`` only says whether anything would change (exit code 1). A table
without rows stays empty: no figure is typed by hand.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


#: The groups of ``examples/tiny_trio/evaluate.py`` that the first screen shows; the model card
#: has all of them.
_TRIO_GROUPS = ("harmful, all", "word problems", "over-refusal, XSTest safe", "judge")


def trio() -> str:
    """What the embedded trio does on held-out prompts: ``examples/tiny_trio/evaluate.py``."""
    found = rows.read("trio")
    shown = [
        row
        for group in _TRIO_GROUPS
        for row in found
        if row["group"] == group and (group != "judge" or row["goal"])
    ]
    lines = [
        [f"{row['group']}: {row['name']}", str(row["n"]), _value(row), row["goal"] or "\u2013"]
        for row in shown
    ]
    body = markdown_table(["embedded trio", "n", "value [95 % interval]", "wanted"], lines)
    if not shown:
        return ""
    first = shown[0]
    return (
        f"{body}\n\nConditions: faithful defaults (alpha 0.5, B 50, K 3, N 6), greedy, "
        f"{first['dtype']} on a CPU, torch {first['torch']}, transformers "
        f"{first['transformers']}, commit {first['commit']}. A reply that refuses and then "
        "complies counts as complied. More in [the model card](alignbeam/demo/MODEL_CARD.md)."
    )


def _value(row: Row) -> str:
    share = row["unit"] in ("share", "difference")
    value, low, high = (
        f"{100 * row[key]:.1f}" if share else f"{row[key]:.3f}" for key in ("value", "lo", "hi")
    )
    return f"{value}{' %' if share else ''} [{low}, {high}]"


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
            "counts](bench/results/mix_topk.md)."
        )
        if first["device"] == "cpu":
            parts.append(render_mix_topk.memory_bound(found))
        if (rows.RESULTS / f"mix_topk_{device}.svg").is_file():
            parts.append(
                f"![how many times longer each peer takes](bench/results/mix_topk_{device}.svg)"
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


_PARTS = ("target", "anchor", "mix", "judge", "other")

TABLES: dict[str, Callable[[], str]] = {
    "trio": trio,
    "decode": decode,
    "kernel": kernel,
    "bridge": bridge,
}


def render(text: str) -> str:
    """Return ``text`` with every table filled."""
    for name, make in TABLES.items():
        text = fill(text, name, make())
    return text


def main() -> None:
    """Rewrite ``README.md``, or check it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if stale")
    check = parser.parse_args().check
    path = REPO / "README.md"
    old = path.read_text(encoding="utf-8")
    new = render(old)
    if check:
        sys.exit("README.md is stale: run python bench/render_readme.py" if new != old else 0)
    path.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
