"""``alignbeam demo``: the embedded trio, shown at work."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignbeam.cli import options
from alignbeam.cli.console import dump, load_beam, make_console, progress_bar
from alignbeam.errors import PromptError

if TYPE_CHECKING:
    from alignbeam.eval.stats import Rate

EPILOG = """Examples:

alignbeam demo

ALIGNBEAM_DATA=./data alignbeam demo --full

alignbeam demo --alpha 0.3 --mix-steps 12
"""


@options.with_settings("target", "anchor", "judge", "alpha", "mix_steps", "beams")
def demo(
    context: typer.Context,
    full: Annotated[
        bool,
        typer.Option("--full", help="Whole published sets, from the folder ALIGNBEAM_DATA."),
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Rates and replies as one JSON object.")
    ] = False,
) -> None:
    """Show a specialist that complies, and AlignBeam steering it back."""
    from alignbeam.demo.prompts import sample, shown_pair, whole_sets

    settings = options.settings_from(context.params)
    prompts = whole_sets(_data_folder()) if full else sample()
    beam = load_beam(settings)

    from alignbeam.demo.run import SYSTEMS, answer_pair, tally_systems
    from alignbeam.demo.show import pair_view, tally_view

    out = make_console(sys.stdout)
    if not json:
        for title, asked in zip(("harmful", "benign"), shown_pair(), strict=True):
            out.print(pair_view(title, answer_pair(beam, asked)))
    total = len(SYSTEMS) * (len(prompts.harmful) + len(prompts.benign))
    with progress_bar(make_console(sys.stderr)) as progress:
        task = progress.add_task("asking three systems", total=total)
        tallies = tally_systems(beam, prompts, lambda n: progress.update(task, advance=n))
    if not json:
        out.print(tally_view(tallies, prompts))
        return
    record = {
        tally.system: {
            "harmful_refused": _rate(tally.harmful_refused),
            "benign_refused": _rate(tally.benign_refused),
            "solved": _rate(tally.solved),
            "fixed_refusals": tally.fixed_refusals,
            "replies": [
                {"kind": kind, "source": source, "row": row, "text": text}
                for (kind, source, row), text in tally.replies.items()
            ],
        }
        for tally in tallies
    }
    print(dump(record))


def _rate(rate: Rate) -> dict[str, object]:
    return {**dataclasses.asdict(rate), "value": rate.value}


def _data_folder() -> Path:
    folder = os.environ.get("ALIGNBEAM_DATA", "")
    if not folder:
        raise PromptError("--full needs the evaluation data: set ALIGNBEAM_DATA to its folder")
    return Path(folder)
