"""A Markdown table, as all pages have it."""

from __future__ import annotations

from collections.abc import Sequence


def markdown_table(
    header: Sequence[str], lines: Sequence[Sequence[str]], rule: str = "---:"
) -> str:
    """A table whose columns after the first are set as ``rule`` says; empty without lines."""
    if not lines:
        return ""
    rules = ["---", *[rule] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rules, *lines))
