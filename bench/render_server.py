"""Write the table of docs/deploying.md from the rows of bench_server.py.

``python bench/render_server.py`` fills between the markers; ``--check`` only says whether anything
would change (exit code 1).
"""

from __future__ import annotations

import argparse
import sys

import render_tables
import rows
from markdown_table import markdown_table

PAGE = render_tables.REPO / "docs" / "deploying.md"
_NAMES = {
    "streams": "all at once",
    "throughput": "the same work, two ways",
    "cancel": "given up in the middle",
    "memory": "one after another",
    "overload": "more than the queue takes",
    "hostile": "beside a hostile client",
    "flood": "beside clients that flood it",
}


def server() -> str:
    """What the server does under load."""
    found = rows.read("server")
    lines = [
        [
            f"{_NAMES[row['part']]}: {row['note']}",
            f"{row['requests']:,}",
            f"{row['concurrency']}",
            f"{row['lost']}",
            f"{row['wrong']}",
            f"{row['requests_per_s']:.1f}",
            f"{row['tokens_per_s']:.0f}",
            f"{row['total_ms_p50']:,.0f}",
            f"{row['total_ms_p95']:,.0f}",
        ]
        for part in _NAMES
        for row in found
        if row["part"] == part
    ]
    if not lines:
        return ""
    header = ["load", "requests", "at once", "lost", "wrong", "requests/s", "tokens/s",
              "ms (p50)", "ms (p95)"]  # fmt: skip
    first, machine = found[0], found[0]["machine"]
    commits = ", ".join(sorted({row["machine"]["commit"] for row in found}))
    return (
        f"{markdown_table(header, lines)}\n\nConditions: the embedded trio, streams over "
        f"loopback, client and server on one machine ({machine['cpu']}, {machine['cores']} cores), "
        f"{first['threads']} compute thread, at most {first['max_tokens']} tokens, greedy, "
        f"float32, torch {machine['torch']}, commit {commits}. Wrong: not the answer that the "
        "request gets alone."
    )


def main() -> None:
    """Rewrite the page, or check it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if stale")
    check = parser.parse_args().check
    old = PAGE.read_text(encoding="utf-8")
    new = render_tables.fill(old, "server", server())
    if check:
        sys.exit(f"{PAGE.name} is stale: run python bench/render_server.py" if new != old else 0)
    PAGE.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
