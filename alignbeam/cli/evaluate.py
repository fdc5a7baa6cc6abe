"""``alignbeam eval`` and ``alignbeam sweep``: comparisons that can be interrupted at any time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from alignbeam.cli import options
from alignbeam.cli.console import dump, make_console, quiet_loader
from alignbeam.cli.outputs import check_folder
from alignbeam.cli.watch import RunWatch, clock_time
from alignbeam.errors import ConfigError

if TYPE_CHECKING:
    from alignbeam.eval.run.run import Prepared
    from alignbeam.eval.suite import Suite

EVAL_EPILOG = """Examples:

ALIGNBEAM_DATA=./data alignbeam eval --suite quick

alignbeam eval --suite standard --target ./my-specialist --anchor Qwen/Qwen2.5-0.5B-Instruct

alignbeam eval --suite paper --dry-run

alignbeam eval --suite my-suite.toml --out runs/mine --generate-only

alignbeam eval --suite quick --set alpha=0.3 --set seed=1 --set judge.kind=wildguard

Run the same command again to take up an interrupted run.
"""

SWEEP_EPILOG = """Examples:

ALIGNBEAM_DATA=./data alignbeam sweep --suite quick

alignbeam sweep --suite standard --axis alpha=0,0.25,0.5,0.75,1 --axis mix_steps=1,6,20
"""

_SuiteName = Annotated[
    str,
    typer.Option("--suite", metavar="NAME|FILE.toml", help="quick, standard, full, paper, real."),
]
_Sets = Annotated[list[str] | None, typer.Option("--dataset", help="Only this set; repeatable.")]


def _folder(*names: str, help: str) -> Any:
    return Annotated[Path | None, typer.Option(*names, metavar="FOLDER", help=help)], None


def _count(name: str, help: str) -> Any:
    return Annotated[int | None, typer.Option(name, min=1, help=help)], None


def _switch(name: str, help: str) -> Any:
    return Annotated[bool, typer.Option(name, help=help)], False


#: What both commands take besides their own options and the settings.
_RUN: Final = {
    "out": _folder("--out", "-o", help="Of the run (default runs/NAME)."),
    "data": _folder("--data", help="Of the data sets (default $ALIGNBEAM_DATA)."),
    "limit": _count("--limit", "Most samples of each set."),
    "batch_size": _count("--batch-size", "Requests answered together."),
    "dry_run": _switch("--dry-run", "Time a few samples, and say what the whole would take."),
    "embedded": _switch("--embedded", "Put the embedded models in place of all the suite's."),
    "generate_only": _switch("--generate-only", "Answer; do not score."),
    "score_only": _switch("--score-only", "Score what is answered already."),
    "no_progress": _switch("--no-progress", "Say nothing while it runs."),
    "json": _switch("--json", "Figures, times and agreements as one JSON object a run."),
}
_SETTINGS: Final = ("target", "anchor", "judge", "max_new_tokens")


@options.with_settings(*_SETTINGS, over_suite=True)
@options.with_options(_RUN)
def evaluate(
    context: typer.Context,
    suite: _SuiteName = "quick",
    method: Annotated[
        list[str] | None, typer.Option("--method", help="Only this method; repeatable.")
    ] = None,
    dataset: _Sets = None,
) -> None:
    """Compare methods on published sets: safety, over-refusal, utility and time together."""
    from alignbeam.cli.tables import published_table
    from alignbeam.eval.suite import load_suite

    given = context.params
    asked = load_suite(suite).only(method or (), dataset or ())
    folder = given["out"] or Path("runs") / asked.name
    if not given["dry_run"]:
        check_folder(folder)
    runs: dict[str, Path] = {}
    failed = 0
    for pair in asked.pairs or (None,):
        one = _settled(asked if pair is None else asked.for_pair(pair), given)
        name = None if pair is None else pair.name
        where = folder if name is None else folder / name
        failed += _run(one, where, given, pair=name)
        runs[name or asked.name] = where
    if asked.published and not (given["dry_run"] or given["generate_only"] or given["json"]):
        published = [dict(row) for row in asked.published]
        make_console(sys.stdout).print(published_table(runs, published))
    if failed:
        raise typer.Exit(1)


@options.with_settings(*_SETTINGS, over_suite=True)
@options.with_options(_RUN)
def sweep(
    context: typer.Context,
    suite: _SuiteName = "quick",
    axis: Annotated[
        list[str] | None,
        typer.Option("--axis", metavar="NAME=V,V", help="Vary only this setting; repeatable."),
    ] = None,
    dataset: _Sets = None,
) -> None:
    """Vary one setting of AlignBeam at a time: the paper's ablations and more."""
    from alignbeam.eval.suite import load_suite
    from alignbeam.eval.sweep import parse_axis, sweep_suite

    base = load_suite(suite).only((), dataset or ())
    if base.pairs:
        raise ConfigError(f"suite {base.name} has several pairs of models; sweep one with --target")
    axes = dict(parse_axis(text) for text in axis) if axis else None
    given = context.params
    swept, described = sweep_suite(_settled(base, given), axes)
    folder = given["out"] or Path("runs") / swept.name
    if not given["dry_run"]:
        check_folder(folder)
    if _run(swept, folder, given, sweep=described):
        raise typer.Exit(1)


def _run(
    suite: Suite,
    folder: Path,
    given: Mapping[str, Any],
    *,
    pair: str | None = None,
    sweep: list[dict[str, Any]] | None = None,
) -> int:
    """Run one suite with one pair of models; the number of samples that failed."""
    from alignbeam.cli.tables import run_table
    from alignbeam.eval.run.files import RunFiles
    from alignbeam.eval.run.run import generate, prepare, price, score
    from alignbeam.eval.run.summary import digest

    console = make_console(sys.stderr)
    kind = "eval" if sweep is None else "sweep"
    with _loading(console) as told:
        prepared = prepare(
            suite, data=given["data"], kind=kind, sweep=sweep, pair=pair, progress=told
        )
    if given["dry_run"]:
        _print_price(prepared, price(prepared))
        return 0
    failed = 0
    with RunWatch(quiet=given["no_progress"]) as watch:
        if not given["score_only"]:
            failed = generate(prepared, folder, watch)
        if not given["generate_only"]:
            score(prepared, folder, watch)
    if not given["generate_only"]:
        if given["json"]:
            print(dump(digest(RunFiles(folder))))
        else:
            make_console(sys.stdout).print(run_table(folder))
    if failed:
        console.print(f"{failed} samples failed; the field error of {folder} says why")
    console.print(f"the run is in {folder}")
    return failed


@contextmanager
def _loading(console: Any) -> Iterator[Callable[[int, int | None], object]]:
    """Load models without the loader's own chatter; downloads are told on the status line."""
    quiet_loader()
    with console.status("loading models and data sets") as status:

        def told(done: int, total: int | None) -> None:
            of = f" of {total / 1e6:.1f}" if total else ""
            status.update(f"downloading {done / 1e6:.1f}{of} MB")

        yield told


def _print_price(prepared: Prepared, rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    title = f"{prepared.suite.name}: measured on a few samples, scoring not included"
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("methods")
    for head in ("samples", "s a sample", "time"):
        table.add_column(head, justify="right")
    for row in rows:
        each = f"{row['seconds_a_sample']:.2f}"
        names = ", ".join(row["methods"])
        table.add_row(names, str(row["samples"]), each, clock_time(row["seconds"]))
    total = sum(row["seconds"] for row in rows)
    table.add_row("together", "", "", clock_time(total), style="bold")
    make_console(sys.stdout).print(table)


def _settled(suite: Suite, given: Mapping[str, Any]) -> Suite:
    """Put options, environment and configuration file over the suite's own settings."""
    from alignbeam.config import merged_tables

    own = {"eval.limit": given["limit"], "eval.batch_size": given["batch_size"]}
    overrides = options.overrides_from(given, own)
    chosen = suite.with_embedded_models() if given["embedded"] else suite
    return chosen.settled(merged_tables(given["config"], overrides))
