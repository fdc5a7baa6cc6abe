"""``alignbeam report``: runs as one offline page, still pictures and tables."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from alignbeam.cli.console import make_console
from alignbeam.cli.outputs import check_folder

EPILOG = """Examples:

alignbeam report runs/quick

alignbeam report runs/standard runs/sweep-standard --out report
"""


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Folders that eval, sweep, tune or attack wrote."),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where the report goes.")
    ] = Path("report"),
) -> None:
    """Make one offline page of runs, with pictures and tables beside it."""
    from alignbeam.eval.report.write import write_report

    check_folder(out)
    console = make_console(sys.stderr)
    with console.status("reading runs and drawing"):
        written, warnings = write_report(runs, out)
    for words in warnings:
        console.print(f"note: {words}")
    console.print(f"the page, {len(written) - 4} pictures and 3 tables are in {out}")
    print(written[0])
