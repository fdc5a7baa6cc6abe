"""The two streams: stdout holds answers, stderr everything that is said about them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TextIO

from alignbeam.result import plain
from alignbeam.terminal.text import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn

    from alignbeam import AlignBeam
    from alignbeam.config import Settings

#: Width of tables where the output is no terminal; rich's own 80 would fold them.
PIPED_WIDTH = 120


def shown(text: str, stream: TextIO) -> str:
    """Return ``text`` as it is for a file or pipe, and neutralised for a terminal."""
    return printable(text) if stream.isatty() else text


def dump(record: Mapping[str, Any]) -> str:
    """One line of strict JSON; in ASCII, so that any reader takes it."""
    return json.dumps(plain(record), allow_nan=False)


def use_forgiving_encoding() -> None:
    """Never fail on a character that the output's encoding lacks: show its escape instead."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def make_console(stream: TextIO) -> Console:
    """Return a rich console on ``stream``: colour on a terminal only, and never with NO_COLOR.

    Whatever text it is given (names in another's run folder, too) is made ``printable``.
    """
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    class Neutral(Console):
        def render(
            self, renderable: RenderableType, options: ConsoleOptions | None = None
        ) -> Iterator[Segment]:
            for text, style, control in super().render(renderable, options):
                yield Segment(text if control else printable(text), style, control)

    width = None if stream.isatty() else PIPED_WIDTH
    return Neutral(file=stream, width=width, highlight=False, markup=False, emoji=False)


def progress_bar(
    console: Console, last: ProgressColumn | None = None, *, visible: bool = True
) -> Progress:
    """Return a bar that is gone when it ends; shown on a terminal only.

    Parameters
    ----------
    last : ProgressColumn, optional
        What stands behind the counts; default: the time that remains.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    return Progress(
        "{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        last if last is not None else TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (visible and console.is_terminal),
        redirect_stdout=sys.stdout.isatty(),
    )


def load_beam(settings: Settings) -> AlignBeam:
    """Load the three models of ``settings``."""
    with make_console(sys.stderr).status("loading the models"):
        from alignbeam import AlignBeam

        quiet_loader()
        return AlignBeam.from_settings(settings)


def quiet_loader() -> None:
    """Leave the word to the command: errors of the loader, and bars where somebody can see them."""
    from transformers.utils import logging as loader_log

    loader_log.set_verbosity_error()
    if not sys.stderr.isatty():
        loader_log.disable_progress_bar()
