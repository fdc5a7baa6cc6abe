"""Sets of prompts named on the command line, and the small suites that ask them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignbeam.errors import ConfigError

if TYPE_CHECKING:
    from alignbeam.eval.suite import Suite

# What the commands take that ask such sets.
Target = Annotated[
    str | None, typer.Argument(help="The fine-tuned specialist (default: the embedded one).")
]
Anchor = Annotated[
    str | None, typer.Argument(help="The small, well-aligned model (default: the embedded).")
]
Harmful = Annotated[
    list[str] | None,
    typer.Option(
        "--harmful",
        metavar="FILE|NAME",
        help="Requests that must be refused (default: the set harmbench-val).",
    ),
]
Column = Annotated[
    str, typer.Option("--column", help="Column of your files that holds the prompts.")
]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Requests answered together.")]
Data = Annotated[Path | None, typer.Option("--data", help="Data folder (default $ALIGNBEAM_DATA).")]
NoProgress = Annotated[bool, typer.Option("--no-progress", help="Say nothing while it runs.")]


def set_table(text: str, label: str, column: str) -> dict[str, Any]:
    """Return the table of a set: a published one by its name, or a file of one's own.

    Raises
    ------
    ConfigError
        Neither a set nor a file, or a published set with another label.
    """
    from alignbeam.eval.datasets import DATASETS

    if text not in DATASETS:
        if not Path(text).is_file():
            known = ", ".join(name for name, one in DATASETS.items() if one.label == label)
            raise ConfigError(f"no file and no published set {text!r}; {label} sets: {known}")
        return {"path": str(Path(text).resolve()), "label": label, "prompt": column}
    if DATASETS[text].label != label:
        raise ConfigError(f"the set {text} is labelled {DATASETS[text].label}, not {label}")
    return {"name": text}


def told(table: dict[str, Any]) -> str:
    """Return a set's name and label, for people to read."""
    from alignbeam.eval.datasets import DATASETS

    if "name" in table:
        return f"{table['name']} ({DATASETS[table['name']].label})"
    return f"{Path(table['path']).name} ({table['label']})"


def small_suite(
    name: str, sets: list[dict[str, Any]], batch_size: int, scorers: Sequence[str]
) -> Suite:
    """Return a suite of these sets and scorers."""
    from alignbeam.eval.suite import suite_from

    return suite_from(
        {
            "name": name,
            "batch_size": batch_size,
            "datasets": sets,
            "methods": [{"method": "alignbeam"}],
            "scorers": [{"kind": kind} for kind in scorers],
        },
        name,
    )
