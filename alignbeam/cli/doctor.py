"""``alignbeam doctor``: what to know of two models before they are deployed together."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from alignbeam.cli import options
from alignbeam.cli.console import dump, make_console, quiet_loader
from alignbeam.cli.exit import EXIT_FAILED
from alignbeam.terminal.text import percent, printable

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from alignbeam.doctor.report import Report

EPILOG = """Exit code 1 says that something unsafe was found.

Examples:

alignbeam doctor

alignbeam doctor ./my-specialist Qwen/Qwen2.5-0.5B-Instruct --judge ./my-judge --load

alignbeam doctor ./target ./anchor --set fallback=first --json
"""

_LEVEL_STYLES = {"note": "dim", "warn": "yellow", "unsafe": "bold red"}


@options.with_settings("judge", "beams")
def doctor(
    context: typer.Context,
    target: Annotated[
        str | None,
        typer.Argument(help="Folder (a tokenizer alone is enough) or hub id of the specialist."),
    ] = None,
    anchor: Annotated[
        str | None, typer.Argument(help="Likewise of the anchor. Neither: the embedded trio.")
    ] = None,
    load: Annotated[
        bool | None,
        typer.Option(
            "--load/--no-load",
            help="Load the anchor (coverage by probability) and the judge (canaries). "
            "Default: for the embedded trio only.",
            show_default=False,
        ),
    ] = None,
    length: Annotated[
        int, typer.Option("--length", min=1, help="Positions for the memory forecast.")
    ] = 2048,
    json: Annotated[bool, typer.Option("--json", help="The report as one JSON object.")] = False,
) -> None:
    """Check coverage, end tokens, templates, refusal openings, backends, memory and the judge."""
    settings = options.settings_from(context.params)
    with make_console(sys.stderr).status("looking at the models") as status:
        from alignbeam.doctor import examine

        quiet_loader()
        report = examine(settings, load=load, length=length, told=status.update)
    if json:
        print(dump({**dataclasses.asdict(report), "unsafe": report.unsafe}))
    else:
        _show(report)
    if report.unsafe:
        raise typer.Exit(EXIT_FAILED)


def _show(report: Report) -> None:
    console = make_console(sys.stdout)
    parts = (
        _sides(report),
        _coverage(report),
        _openings(report),
        _backends(report),
        _memory(report),
        _canaries(report) if report.canaries else None,
        _survival(report) if report.survival else None,
        f"bridge fingerprint: {report.bridge}",
        _findings(report),
    )
    for part in parts:
        if part is not None:
            console.print(part)
            console.print()


def _table(title: str, *columns: str, right: tuple[str, ...] = ()) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left")
    return table


def _or_unknown(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def _sides(report: Report) -> RenderableType:
    numbers = ("tokens", "head", "padded", "window")
    table = _table(
        "Models", "role", "from", *numbers, "end tokens", "template", "opening", right=numbers
    )
    for side in report.sides:
        table.add_row(
            side.name,
            printable(side.source),
            f"{side.tokens:,}",
            _or_unknown(side.width),
            f"{side.padded_columns:,}",
            _or_unknown(side.window),
            printable(" ".join(side.end_tokens)) or "none",
            "yes" if side.has_template else "none",
            repr(side.opening),
        )
    return table


def _coverage(report: Report) -> RenderableType:
    numbers = ("ids", "share of ids", "share of sample text", "share of probability")
    table = _table("Anchor tokens by what becomes of them", "kind", *numbers, right=numbers)
    for row in report.coverage:
        table.add_row(
            row.kind,
            f"{row.count:,}",
            percent(row.share),
            percent(row.text_share),
            "not measured" if row.mass is None else percent(row.mass),
        )
    return table


def _openings(report: Report) -> RenderableType:
    names = next((tuple(row.lost_at) for row in report.openings), ())
    table = _table("Refusal openings over the bridge", "opening", *names)
    for row in report.openings:
        cells = (row.lost_at[name] for name in names)
        table.add_row(
            row.text,
            *("survives" if lost is None else f"lost at {printable(lost)!r}" for lost in cells),
        )
    return table


def _backends(report: Report) -> RenderableType:
    table = _table("Kernel backends", "backend", "device", "available", "why not, and the cure")
    for row in report.backends:
        table.add_row(row.name, row.device, "yes" if row.available else "no", row.reason)
    return table


def _memory(report: Report) -> RenderableType:
    formats = ("float32", "bfloat16", "int8", "4-bit")
    first = report.memory[0]
    cache = f"16-bit cache, {first.rows} x {first.length:,}"
    table = _table(
        "Memory forecast",
        "role",
        "parameters",
        *formats,
        cache,
        right=("parameters", *formats, cache),
    )
    for row in report.memory:
        known = "" if row.counted else " (estimate)"
        table.add_row(
            row.name,
            _or_unknown(row.parameters) + (known if row.parameters else ""),
            *(_size(row.weights_bytes.get(name)) for name in formats),
            _size(row.cache_bytes),
        )
    return table


def _size(count: int | None) -> str:
    if count is None:
        return "unknown"
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def _canaries(report: Report) -> RenderableType:
    table = _table("Judge, tried on cases whose verdict is known", "case", "harm", "on labels")
    for row in report.canaries:
        score = f"{row.score:.2f}" if row.error is None else f"error: {printable(row.error)}"
        table.add_row(row.name, score, percent(row.label_mass))
    return table


def _survival(report: Report) -> RenderableType:
    counts = ("harmful pass", "safe withheld")
    table = _table("What the judge survives", "written around its cases", *counts, right=counts)
    for row in report.survival:
        table.add_row(row.attack, f"{row.passed} of {row.harmful}", f"{row.withheld} of {row.safe}")
    return table


def _findings(report: Report) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    table = _table("Findings", "", "about", "")
    for finding in report.findings:
        level = Text(finding.level, style=_LEVEL_STYLES[finding.level])
        table.add_row(level, finding.topic, printable(finding.text))
    verdict = "unsafe: see above" if report.unsafe else "nothing unsafe found"
    return Group(table, Text(verdict, style="bold"))
