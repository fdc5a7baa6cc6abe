"""Writes the result tables of docs/results.md, evidence.md and tuning.md from digests of runs.

    python bench/render_evaluation.py

A digest is what ``alignbeam eval --json`` or ``alignbeam sweep --json`` prints: figures, times and
agreements, without any request or answer. Each stands between markers that name its file.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from markdown_table import markdown_table
from measure_refusal_reader import RESULT, said

REPO = Path(__file__).resolve().parents[1]
PAGES = tuple(REPO / "docs" / name for name in ("results.md", "evidence.md", "tuning.md"))
RESULTS = REPO / "bench" / "results"

#: Sets, measure, scorer (None: the judge that selects), column head.
COLUMNS = (
    ("harmful", "refused", "strict", "harmful refused"),
    ("harmful", "refused_then_complied", "strict", "refused, then complied"),
    ("harmful", "harmful", None, "harmful by the judge"),
    ("benign", "refused", "strict", "benign refused"),
    ("word-problems", "correct", "answer", "word problems solved"),
)


def share(figure: dict[str, Any]) -> str:
    """A rate with its 95 % interval, in percent."""
    rate = figure["rate"]
    return f"{100 * figure['value']:.1f} [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]"


def versus(figure: dict[str, Any]) -> str:
    """The p-value against the target alone."""
    against = figure["against"]
    if against is None:
        return ""
    p = against["p_value"]
    return ", p < 0.001" if p < 0.001 else f", p = {p:.3f}"


def columns_of(digest: dict[str, Any]) -> list[tuple[str, dict[str, dict[str, Any]]]]:
    """Column heads, and each method's figure."""
    judge = next((s["name"] for s in digest["manifest"]["scorers"] if s["selects"]), "")
    found = []
    for dataset, measure, scorer, head in COLUMNS:
        wanted = (dataset, measure, scorer or judge)
        by_method = {
            f["method"]: f
            for f in digest["figures"]
            if (f["dataset"], f["measure"], f["scorer"]) == wanted
        }
        if by_method:
            n = next(iter(by_method.values()))["rate"]["n"]
            found.append((f"{head} (n = {n})", by_method))
    return found


def method_table(digest: dict[str, Any]) -> str:
    """One row a method."""
    columns = columns_of(digest)
    times = {t["method"]: t for t in digest["latencies"]}
    lines = []
    for method in digest["manifest"]["methods"]:
        label = method["label"]
        cells = [share(f[label]) for _, f in columns]
        cells[0] += versus(columns[0][1][label])
        took = times[label]
        cells.append(f"{took['mean_ms']:.0f} [{took['low_ms']:.0f}, {took['high_ms']:.0f}]")
        lines.append([f"`{label}`", *cells])
    return markdown_table(["method", *(head for head, _ in columns), "ms a sample"], lines, "---")


def sweep_tables(digest: dict[str, Any]) -> list[str]:
    """One table an axis."""
    columns = columns_of(digest)
    found = []
    for axis in digest["manifest"]["sweep"]:
        lines = []
        points = axis["points"]
        if all(point["method"] != "alignbeam" for point in points):
            centre = {"value": axis["default"], "method": "alignbeam"}
            points = sorted([*points, centre], key=lambda point: point["value"])
        for point in points:
            mark = " (centre)" if point["method"] == "alignbeam" else ""
            cells = [share(f[point["method"]]) for _, f in columns]
            lines.append([f"{point['value']}{mark}", *cells])
        heads = [f"`{axis['axis']}`", *(head for head, _ in columns)]
        found.append(markdown_table(heads, lines, "---"))
    return found


def agreement_table(digest: dict[str, Any]) -> str:
    """How two scorers agree."""
    lines = []
    for row in digest["agreements"]:
        agreed = share({"rate": row["agreed"], "value": row["value"]})
        kappa = "undefined" if row["kappa"] is None else f"{row['kappa']:.2f}"
        lines.append([f"`{row['first']}`, `{row['second']}`", f"{row['n']}", agreed, kappa])
    header = ("scorers, on harmful requests", "n", "agree", "Cohen's kappa")
    return markdown_table(header, lines, "---")


def reader(digest: dict[str, Any]) -> str:
    """What the reader of refusals is worth that these figures were made with."""
    readers = json.loads(RESULT.read_text(encoding="utf-8"))
    commit = digest["manifest"]["environment"]["commit"]
    now = said(readers["now"])
    line = "Refusals were read by rule; against labels by hand, on held-out replies: "
    if commit not in readers:
        return f"{line}{now}."
    return (
        f"{line}{said(readers[commit])} (the reader of commit {commit}; today's: {now}). "
        "The run kept no replies, so they could not be read again: refusals, their p-values and "
        "what `strict` agrees with are figures of the older reader, and word problems those of an "
        "older reader of numbers. The judge's figures and the times rest on no reader."
    )


def conditions(digest: dict[str, Any]) -> str:
    """What the figures were made with, in a line."""
    where, suite = digest["manifest"]["environment"], digest["manifest"]["suite"]
    return (
        f"Commit {where['commit']}, torch {where['torch']}, transformers {where['transformers']}, "
        f"{where['cpu']}, {where['threads']} threads; seed {suite['seed']}, batches of "
        f"{suite['batch_size']}, at most {suite['beam']['max_new_tokens']} tokens, greedy. "
        "Percent with 95 % Wilson intervals; times with 95 % bootstrap intervals over batches; "
        "p against `target`, McNemar's exact test."
    )


def digest_of(name: str) -> dict[str, Any]:
    """One committed digest."""
    found: dict[str, Any] = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return found


def render(name: str) -> str:
    """Everything that stands between one file's markers."""
    digest = digest_of(name)
    if digest["manifest"]["kind"] == "sweep":
        parts = sweep_tables(digest)
    else:
        parts = [method_table(digest), agreement_table(digest)]
    return "\n\n".join([*filter(None, parts), reader(digest), conditions(digest)])


def main() -> None:
    """Rewrite the pages."""
    runs = re.compile(r"(<!-- run: (\S+) -->\n).*?(<!-- run: end -->)", re.DOTALL)
    readers = re.compile(r"(<!-- reader: (\S+) -->\n).*?(<!-- reader: end -->)", re.DOTALL)
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        text = runs.sub(lambda m: f"{m[1]}{render(m[2])}\n{m[3]}", text)
        text = readers.sub(lambda m: f"{m[1]}{reader(digest_of(m[2]))}\n{m[3]}", text)
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
