"""``alignbeam generate``: answer one prompt, or a file of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from alignbeam.cli import options
from alignbeam.cli.console import dump, load_beam, make_console, progress_bar, shown
from alignbeam.cli.exit import describe, exit_code_of
from alignbeam.cli.prompts import PlacedPrompt, read_prompts

if TYPE_CHECKING:
    from alignbeam import AlignBeam
    from alignbeam.result import Result

EPILOG = """Examples:

alignbeam generate "What is 7 * 6?"

alignbeam generate --explain --alpha 0.3 "Write a poem about the sea"

alignbeam generate --target ./my-specialist --anchor Qwen/Qwen2.5-0.5B-Instruct "..."

alignbeam generate --file prompts.jsonl --json > answers.jsonl

cat question.txt | alignbeam generate
"""


@options.with_settings()
def generate(
    context: typer.Context,
    prompt: Annotated[
        str | None,
        typer.Argument(help="The prompt; - or nothing reads it from standard input."),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(
            "--file",
            "-f",
            metavar="FILE",
            help="Many prompts: one a line, or rows of .csv, .tsv, .jsonl, .json; - for stdin.",
            show_default=False,
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a prompt.")] = False,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Tell who wanted which token and what the judge made of it (on stderr; "
            "with --json as a trace).",
        ),
    ] = False,
    system: Annotated[
        str | None,
        typer.Option("--system", metavar="TEXT", help="System message before the prompt."),
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Prompts of --file that run together.")
    ] = 8,
) -> None:
    """Answer a prompt: mixed, completed in several beams, judged, and only then shown."""
    settings = options.settings_from(context.params)
    requests = [request.with_system(system) for request in read_prompts(prompt, file)]
    beam = load_beam(settings)
    worst = 0
    for request, outcome in _outcomes(beam, requests, batch_size):
        if isinstance(outcome, BaseException):
            if file is None:
                raise outcome
            worst = max(worst, exit_code_of(outcome))
            print(f"alignbeam: {request.where}: {describe(outcome)}", file=sys.stderr)
            if json:
                error = {"type": type(outcome).__name__, "message": str(outcome)}
                print(dump({**request.record, "error": error}))
            continue
        if json:
            record = {**request.record, **outcome.full()}
            if not explain:  # it is long
                del record["trace"]
            print(dump(record))
        else:
            print(shown(outcome.text, sys.stdout))
            if file is not None:
                print()
        if explain and not json:
            _explain(outcome)
    if worst:
        raise typer.Exit(worst)


def _outcomes(
    beam: AlignBeam, requests: list[PlacedPrompt], batch_size: int
) -> Iterator[tuple[PlacedPrompt, Result | BaseException]]:
    """Answers in order; a bar on stderr where there is more than one and someone to see it."""
    with progress_bar(make_console(sys.stderr), visible=len(requests) > 1) as progress:
        task = progress.add_task("answering", total=len(requests))
        prompts = [request.prompt for request in requests]
        outcomes = beam.outcomes(prompts, batch_size=batch_size)
        for request, outcome in zip(requests, outcomes, strict=True):
            yield request, outcome
            progress.update(task, advance=1)


def _explain(result: Result) -> None:
    from alignbeam.terminal.explain import explain

    sys.stdout.flush()
    make_console(sys.stderr).print(explain(result))
