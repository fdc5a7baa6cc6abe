"""A run's figures as tables on a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from alignbeam.eval.run.summary import Figure

#: Column heads: label of the sets, measure, scorer (None: the only one of its kind).
_COLUMNS = (
    ("harmful", "refused", "strict", "harmful refused"),
    ("harmful", "refused_then_complied", "strict", "refused, then complied"),
    ("benign", "refused", "strict", "benign refused"),
    ("utility", "correct", "answer", "right answers"),
)


def run_table(folder: Path) -> RenderableType:
    """Return one row per method: rates with 95 % Wilson intervals, and the time a sample."""
    from alignbeam.eval.refusal import MEASURED
    from alignbeam.eval.run.files import RunFiles
    from alignbeam.eval.run.summary import figures, latencies, pick

    files = RunFiles(folder)
    manifest = files.manifest()
    found = figures(files)
    times = {t.method: t for t in latencies(files)}
    judge = next((s["name"] for s in manifest["scorers"] if s["selects"]), None)
    columns = list(_COLUMNS)
    if judge is not None:
        columns.insert(2, ("harmful", "harmful", judge, "harmful by the judge"))
    parts = [
        (head, pick(found, dataset=label, measure=measure, scorer=scorer))
        for label, measure, scorer, head in columns
    ]
    parts = [(head, by_method) for head, by_method in parts if by_method]
    title = manifest["name"] + (f", {manifest['pair']}" if manifest["pair"] else "")
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("method")
    for head, by_method in parts:
        size = next(iter(by_method.values())).rate.n
        table.add_column(f"{head} (n = {size})", justify="right")
    table.add_column("ms a sample", justify="right")
    for method in manifest["methods"]:
        label = method["label"]
        cells = [str(by_method[label].rate) if label in by_method else "" for _, by_method in parts]
        took = times.get(label)
        mark = "*" if took is not None and took.shared else ""
        cells.append(f"{took.mean_ms:.0f}{mark}" if took is not None else "")
        table.add_row(label, *cells)
    note = (
        f"Strict reading ({MEASURED}); an answer that refuses and then complies counts as "
        "complied, a failed "
        "one against its method. Times are of whole batches, on the steered path"
        + ("; * shared by several points." if any(t.shared for t in times.values()) else ".")
    )
    return Group(table, Text(note, style="dim"))


def published_table(runs: dict[str, Path], published: list[dict[str, Any]]) -> RenderableType:
    """Return published figures beside those measured with the string lists they were made with.

    Parameters
    ----------
    runs : mapping of pair to folder
    """
    from alignbeam.eval.run.files import RunFiles
    from alignbeam.eval.run.summary import figures

    measured = {name: figures(RunFiles(folder)) for name, folder in runs.items()}
    table = Table(title="Published and measured", title_justify="left", title_style="bold")
    for head in ("pair", "set", "method", "measure"):
        table.add_column(head)
    table.add_column("published", justify="right")
    table.add_column("here", justify="right")
    for row in published:
        wanted = list(measured) if row["pair"] == "mean" else [row["pair"]]
        hits = [_find(measured.get(name, []), row) for name in wanted]
        here = [f for f in hits if f is not None]
        if not here:
            said = "not run"
        elif len(here) == 1 and row["pair"] != "mean":
            said = str(here[0].rate)
        else:
            said = f"{100 * sum(f.rate.value for f in here) / len(here):.1f} % of {len(here)} pairs"
        cells = [str(row[key]) for key in ("pair", "dataset", "method", "measure")]
        table.add_row(*cells, f"{row['value']:.1f} %", said)
    return table


def _find(found: list[Figure], row: dict[str, Any]) -> Figure | None:
    for f in found:
        if (f.dataset, f.method, f.measure) == (row["dataset"], row["method"], row["measure"]) and (
            f.scorer == row.get("scorer", "strings")
        ):
            return f
    return None
