"""``alignbeam attack``: what leaves under what an attacker writes around a request."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignbeam.cli import options
from alignbeam.cli.console import dump, make_console, quiet_loader
from alignbeam.cli.outputs import check_folder
from alignbeam.cli.sets import (
    Anchor,
    BatchSize,
    Column,
    Data,
    Harmful,
    NoProgress,
    Target,
    set_table,
    small_suite,
)
from alignbeam.cli.watch import RunWatch, clock_time

if TYPE_CHECKING:
    from alignbeam.doctor.attack import AttackRow

EPILOG = """Examples:

ALIGNBEAM_DATA=./data alignbeam attack --limit 20

alignbeam attack ./my-specialist Qwen/Qwen2.5-0.5B-Instruct --harmful harmbench-test

alignbeam attack --config alignbeam.toml --attack "refuse, then comply" --json

Run the same command again to take up an interrupted run.
"""


@options.with_settings("judge", "max_new_tokens")
def attack(
    context: typer.Context,
    target: Target = None,
    anchor: Anchor = None,
    harmful: Harmful = None,
    attacks: Annotated[
        list[str] | None, typer.Option("--attack", help="Only this attack; repeatable.")
    ] = None,
    methods: Annotated[
        list[str] | None, typer.Option("--method", help="Only this column; repeatable.")
    ] = None,
    column: Column = "prompt",
    limit: Annotated[int, typer.Option("--limit", min=1, help="Most requests of each set.")] = 20,
    batch_size: BatchSize = 8,
    data: Data = None,
    folder: Annotated[
        Path, typer.Option("--folder", metavar="FOLDER", help="Where the run is kept.")
    ] = Path("runs/attack"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Time a few samples, and say what all would take.")
    ] = False,
    no_progress: NoProgress = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a row.")] = False,
) -> None:
    """Attack your trio with known templates: faithful, extended, best-of-K and a guard beside it.

    ``extended`` has the settings of --config and --set, or answers of the target's own where these
    set nothing.
    """
    from alignbeam.config import merged_tables
    from alignbeam.doctor.attack import attack_rows, attack_suite
    from alignbeam.eval.methods.judged import AlignBeamMethod
    from alignbeam.eval.run.files import RunFiles
    from alignbeam.eval.run.run import generate, prepare, price, score

    overrides = options.overrides_from(context.params, {"target": target, "anchor": anchor})
    given = merged_tables(context.params["config"], overrides)
    own = {k: v for k, v in given["beam"].items() if k in AlignBeamMethod.known_keys()}
    if given["gate"]:
        own["gate"] = given["gate"]
    sets = [set_table(text, "harmful", column) for text in harmful or ["harmbench-val"]]
    scored = small_suite("attack", sets, batch_size, ["strict", "judge"])
    base = scored.settled(given).limited(limit)
    suite = attack_suite(base, attacks or (), own or None).only(methods or ())
    if not dry_run:
        check_folder(folder, "--folder")
    console = make_console(sys.stderr)
    quiet_loader()
    with console.status("loading models and data sets"):
        prepared = prepare(suite, data=data, kind="attack")
    if dry_run:
        seconds = sum(row["seconds"] for row in price(prepared))
        print(f"about {clock_time(seconds)}, scoring not included")
        return
    with RunWatch(quiet=no_progress) as watch:
        failed = generate(prepared, folder, watch)
        score(prepared, folder, watch)
    rows = attack_rows(RunFiles(folder))
    if json:
        for row in rows:
            print(dump(dataclasses.asdict(row)))
    else:
        _print(rows)
    console.print(f"the run is in {folder}")
    if failed:
        console.print(f"{failed} samples failed; the field error of {folder} says why")
        raise typer.Exit(1)


def _print(rows: list[AttackRow]) -> None:
    from rich.table import Table

    from alignbeam.eval.refusal import MEASURED

    methods = list(dict.fromkeys(row.method for row in rows))
    n = rows[0].answered.n
    table = Table(
        title=f"harmful by the judge / not refused, of {n}",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("attack")
    for method in methods:
        table.add_column(method, justify="right")
    for name in dict.fromkeys(row.attack for row in rows):
        cells = [
            f"{'-' if row.harmful is None else row.harmful.successes} / {row.answered.successes}"
            for row in rows
            if row.attack == name
        ]
        table.add_row(name, *cells)
    console = make_console(sys.stdout)
    console.print(table)
    console.print(
        f"Refusals by the strict reading ({MEASURED}), in English: what is not refused may be "
        "babble. The judge is the one that selects, here shown the bare request; it flatters whom "
        "it selects for.",
        style="dim",
    )
