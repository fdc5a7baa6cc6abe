"""Write the tables of docs/scaling.md from the rows of bench_engines.py.

``python bench/render_engines.py`` fills between the markers; ``--check`` only says whether anything
would change (exit code 1).
"""

from __future__ import annotations

import argparse
import sys

import render_tables
import rows
from markdown_table import markdown_table

PAGE = render_tables.REPO / "docs" / "scaling.md"
_NAMES = {"target": "the target alone", "best-of-3": "best of 3",
          "step-by-step": "AlignBeam, a step at a time", "alignbeam": "AlignBeam"}  # fmt: skip


#: What was served, by the file of its rows.
_SERVED = {
    "engines": "the embedded trio on three vLLM CPU servers (float32)",
    "engines_real": "real models, {models}, on three vLLM CPU servers (float32), judged by the "
    "adapter of SmolLM2-135M merged into its weights",
}


def engines(kept: str) -> str:
    """What an answer costs each engine, and how long it takes beside best of 3."""
    found = rows.read(kept)
    if not found:
        return ""
    base = {
        (row["full"], row["concurrency"]): row["ms_p50"]
        for row in found
        if row["system"] == "best-of-3"
    }
    lines = [
        [
            _NAMES[row["system"]],
            "in full" if row["full"] else "to their end",
            f"{row['concurrency']}",
            f"{row['ms_p50']:,.0f}",
            f"{row['ms_p95']:,.0f}",
            f"{row['ms_p50'] / base[row['full'], row['concurrency']]:.2f}",
            f"{row['cpu_ms']:.0f}",
            f"{row['tokens']:.0f}",
            f"{row['trips']:.1f}",
            *(f"{row[f'{r}_requests']:.1f}" for r in ("target", "anchor", "judge")),
            *(f"{row[f'{r}_kib']:.0f}" for r in ("target", "anchor", "judge")),
            *(f"{row[f'{r}_read']:.0f}" for r in ("target", "anchor", "judge")),
        ]
        for row in found
    ]
    header = ["system", "answers", "at once", "ms (p50)", "ms (p95)", "of best of 3",
              "gateway CPU ms", "tokens", "trips", "target requests", "anchor", "judge",
              "target KiB", "anchor", "judge", "target reads", "anchor", "judge"]  # fmt: skip
    machine, first = found[0]["machine"], found[0]
    served = _SERVED[kept].format(models=first.get("models"))
    return (
        f"{markdown_table(header, lines)}\n\nConditions: {served}; gateway and engines on one "
        f"shared machine ({machine['cpu']}, {machine['cores']} cores): compare times with each "
        "other only. Reads: tokens of prompts beyond the prefix cache. Blocks of 32 "
        "tokens, no spinning workers. "
        f"{' or '.join(dict.fromkeys(str(row['answers']) for row in found))} questions a row, each "
        f"asked of all in turn; in full: {first['max_new_tokens']} tokens, whatever ends an "
        f"answer otherwise. Commit {machine['commit']}."
    )


def main() -> None:
    """Rewrite the page, or check it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if stale")
    check = parser.parse_args().check
    old = PAGE.read_text(encoding="utf-8")
    new = old
    for kept in _SERVED:
        new = render_tables.fill(new, kept, engines(kept))
    if check:
        sys.exit(f"{PAGE.name} is stale: run python bench/render_engines.py" if new != old else 0)
    PAGE.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
