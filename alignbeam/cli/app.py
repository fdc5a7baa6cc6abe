"""The commands and what their help says. Importing this loads no model library."""

from __future__ import annotations

from typing import Annotated

import typer

from alignbeam.cli import (
    attack,
    chat,
    demo,
    doctor,
    evaluate,
    generate,
    harmbench,
    probe,
    report,
    serve,
    settings,
    tune,
)
from alignbeam.version import __version__

app = typer.Typer(
    name="alignbeam",
    help="Safe decoding of fine-tuned language models: a well-aligned anchor steers the first "
    "tokens, a judge picks among several continuations, and errs on the safe side.",
    epilog="Exit codes: 0 done, 1 failed (or unsafe, for doctor), 2 bad input, 130 interrupted. "
    "ALIGNBEAM_DEBUG=1 shows where an error came from.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"alignbeam {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print it.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Hold what stands before every command."""


root.__doc__ = None

app.command(epilog=generate.EPILOG)(generate.generate)
app.command(epilog=chat.EPILOG)(chat.chat)
app.command(epilog=doctor.EPILOG)(doctor.doctor)
app.command(epilog=demo.EPILOG)(demo.demo)
app.command("eval", epilog=evaluate.EVAL_EPILOG)(evaluate.evaluate)
app.command(epilog=evaluate.SWEEP_EPILOG)(evaluate.sweep)
app.command(epilog=tune.EPILOG)(tune.tune)
app.command(epilog=attack.EPILOG)(attack.attack)
app.command(epilog=probe.EPILOG)(probe.probe)
app.command(epilog=report.EPILOG)(report.report)
app.command(epilog=serve.EPILOG)(serve.serve)
app.command(epilog=settings.EPILOG)(settings.settings)
app.add_typer(harmbench.app, name="harmbench")
