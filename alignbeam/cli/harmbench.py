"""``alignbeam harmbench``: a run's answers to HarmBench's classifier, and its labels back."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignbeam.cli.outputs import write_text
from alignbeam.errors import ConfigError

if TYPE_CHECKING:
    from alignbeam.eval.run.records import Generation

app = typer.Typer(
    help="HarmBench's JSON files: completions out, test cases and labels in.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

_EXPORT_EPILOG = """Example:

alignbeam harmbench export runs/standard --method alignbeam -o completions.json
"""
_CASES_EPILOG = """Example:

alignbeam harmbench import-cases test_cases.json -o cases.jsonl

The file is a data set of one's own: see docs/harnesses.md.
"""
_LABELS_EPILOG = """Example:

alignbeam harmbench import-labels results.json runs/standard --method alignbeam
"""

_Run = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="Folder that alignbeam eval wrote.", show_default=False),
]
_Method = Annotated[str, typer.Option("--method", help="Whose answers: its label in the run.")]
_Dataset = Annotated[
    str | None,
    typer.Option("--dataset", help="Which set (default: the run's only one of HarmBench)."),
]
_Out = Annotated[
    Path, typer.Option("--out", "-o", metavar="FILE", help="Where to write.", show_default=False)
]
_JsonFile = Annotated[Path, typer.Argument(metavar="FILE.json", show_default=False)]


@app.command(epilog=_EXPORT_EPILOG)
def export(
    run: _Run,
    out: _Out,
    method: _Method = "alignbeam",
    dataset: _Dataset = None,
    skip_failed: Annotated[
        bool, typer.Option("--skip-failed", help="Leave out samples without an answer.")
    ] = False,
) -> None:
    """Write a method's answers as HarmBench's completions."""
    from alignbeam.harness.harmbench import completions_of, to_json

    chosen = _answers(run, method, dataset)
    there = [g for g in chosen if g.answer is not None] if skip_failed else chosen
    completions = completions_of(there)
    write_text(out, to_json(completions))
    failed = f"; {len(chosen) - len(there)} failed samples left out" if skip_failed else ""
    print(
        f"{len(there)} completions of {len(completions)} behaviours in {out}{failed}",
        file=sys.stderr,
    )


@app.command("import-cases", epilog=_CASES_EPILOG)
def import_cases(cases: _JsonFile, out: _Out) -> None:
    """Turn HarmBench's test cases into a data set for a suite."""
    from alignbeam.eval.run.records import dump_line
    from alignbeam.harness.harmbench import read_cases, requests_of

    if out.suffix != ".jsonl":
        raise ConfigError(f"--out must end in .jsonl, got {out}")
    rows = requests_of(read_cases(cases))
    write_text(out, "".join(dump_line(row) + "\n" for row in rows))
    print(f"{len(rows)} requests in {out}", file=sys.stderr)


@app.command("import-labels", epilog=_LABELS_EPILOG)
def import_labels(
    results: _JsonFile,
    run: _Run,
    method: _Method = "alignbeam",
    dataset: _Dataset = None,
    name: Annotated[
        str, typer.Option("--name", help="Of the classifier in the run's scores.")
    ] = "harmbench-classifier",
) -> None:
    """Add the labels of HarmBench's classifier to the run's scores."""
    from alignbeam.eval.imported import add_scores
    from alignbeam.eval.stats import rate
    from alignbeam.harness.harmbench import read_completions, scores_of

    classified = read_completions(results)
    scores = scores_of(_answers(run, method, dataset), classified, name)
    add_scores(run, name, scores, f"labels of another program, read from {results.name}")
    harmful = rate(score.cls != "safe" for score in scores)
    print(f"{method}, harmful by {name} (n = {harmful.n}): {harmful}")


def _answers(run: Path, method: str, dataset: str | None) -> list[Generation]:
    """Return the answers of a run that is there and complete."""
    from alignbeam.eval.run.files import RunFiles
    from alignbeam.harness.harmbench import pick

    files = RunFiles(run)
    if not files.manifest()["complete"]["generations"]:
        raise ConfigError(f"{run} is not complete; give the command that began it again")
    return pick(files.generations(), method, dataset)
