"""``alignbeam tune``: settings for one trio and one's own prompts, with what they are worth."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from alignbeam.cli import options
from alignbeam.cli.console import make_console, quiet_loader
from alignbeam.cli.outputs import check_file, check_folder, write_text
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
    told,
)
from alignbeam.cli.watch import RunWatch, clock_time
from alignbeam.errors import ConfigError

EPILOG = """Examples:

alignbeam tune ./my-specialist Qwen/Qwen2.5-0.5B-Instruct --benign mine.csv --max-over-refusal 5%

alignbeam tune --benign mine.csv --max-over-refusal 10% --max-latency 1.5x --dry-run

alignbeam serve --config alignbeam.toml

Run the same command again to take up an interrupted search. Exit code 1: the file is written, but
the held-out half does not show a limit to be kept; what more is needed is said.
"""


@options.with_settings("judge", "max_new_tokens")
def tune(
    context: typer.Context,
    benign: Annotated[
        list[str],
        typer.Option(
            "--benign",
            metavar="FILE|NAME",
            help="Requests of yours that must be answered (.csv, .tsv, .jsonl, .json), or a set.",
        ),
    ],
    max_over_refusal: Annotated[
        str,
        typer.Option("--max-over-refusal", metavar="5%", help="Most of them that may be refused."),
    ],
    target: Target = None,
    anchor: Anchor = None,
    harmful: Harmful = None,
    max_latency: Annotated[
        str | None,
        typer.Option("--max-latency", metavar="1.2x", help="Most time, in times of the target's."),
    ] = None,
    column: Column = "prompt",
    candidates: Annotated[
        int, typer.Option("--candidates", min=2, help="How many settings are tried.")
    ] = 12,
    first: Annotated[
        int, typer.Option("--first", min=2, help="Prompts of each set in the first round.")
    ] = 16,
    batch_size: BatchSize = 8,
    data: Data = None,
    folder: Annotated[
        Path, typer.Option("--folder", metavar="FOLDER", help="Where the runs are kept.")
    ] = Path("runs/tune"),
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE.toml", help="The file that is written.")
    ] = Path("alignbeam.toml"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would take, and what it could show.")
    ] = False,
    no_progress: NoProgress = False,
) -> None:
    """Search settings that keep over-refusal and latency within limits, on your own prompts."""
    from alignbeam.config import load_settings, merged_tables
    from alignbeam.eval.loading import load_models
    from alignbeam.eval.methods.judged import AlignBeamMethod
    from alignbeam.eval.promises import Goal
    from alignbeam.eval.tune import Tuning, population
    from alignbeam.eval.tuned_file import check_ours, tuned_file

    check_file(out)
    check_ours(out)
    if not dry_run:
        check_folder(folder, "--folder")
    goal = Goal(
        _number(max_over_refusal, "%", "--max-over-refusal", 0.01),
        None if max_latency is None else _number(max_latency, "x", "--max-latency"),
    )
    overrides = options.overrides_from(context.params, {"target": target, "anchor": anchor})
    given = merged_tables(context.params["config"], overrides)
    sets = [
        *(set_table(text, "harmful", column) for text in harmful or ["harmbench-val"]),
        *(set_table(text, "benign", column) for text in benign),
    ]
    suite = small_suite("tune", sets, batch_size, ["strict"]).settled(given)
    held = {k: v for k, v in given["beam"].items() if k in AlignBeamMethod.known_keys()}
    if given["gate"]:
        held["gate"] = given["gate"]
    console = make_console(sys.stderr)
    quiet_loader()
    with console.status("loading models and data sets"):
        models = load_models(suite)
    guard = getattr(models.beam.judge.judge, "guard", None)
    asks = bool(getattr(guard, "request_harm", ()))
    longest = models.config.max_new_tokens
    drawn = population(candidates, suite.seed, held, longest=longest, asks_request=asks)
    tuning = Tuning(suite, models, goal, drawn, folder, first=first, data=data)
    could = tuning.could_show()
    if could is not None:
        console.print(could)
    if dry_run:
        _print_price(tuning.price())
        return
    with RunWatch(quiet=no_progress) as watch:
        tuned = tuning.run(watch)
    asked = [told(table) for table in sets]
    write_text(out, tuned_file(given, tuned, goal, asked))
    load_settings(out, environ={})
    for promise in tuned.promises:
        print(f"{'shown' if promise.shown else 'NOT SHOWN'}: {promise.words}")
    console.print(f"wrote {out}; the runs are in {folder}")
    if not all(promise.shown for promise in tuned.promises):
        raise typer.Exit(1)


def _number(text: str, unit: str, option: str, scale: float = 1.0) -> float:
    """Read ``5%`` or ``0.05``, ``1.2x`` or ``1.2``."""
    bare = text.strip().removesuffix(unit)
    try:
        return float(bare) * (scale if bare != text.strip() else 1.0)
    except ValueError:
        like = {"%": "5% or 0.05", "x": "1.2x or 1.2"}[unit]
        raise ConfigError(f"{option} is written like {like}, got {text!r}") from None


def _print_price(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table(title="measured on a few samples", title_justify="left")
    for head in ("round", "candidates", "samples", "time"):
        table.add_column(head, justify="left" if head == "round" else "right")
    for row in rows:
        counts = str(row["candidates"]), str(row["samples"])
        table.add_row(row["round"], *counts, clock_time(row["seconds"]))
    total = clock_time(sum(row["seconds"] for row in rows))
    table.add_row("together", "", "", total, style="bold")
    make_console(sys.stdout).print(table)
