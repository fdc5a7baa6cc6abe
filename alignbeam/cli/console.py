"""The two streams: stdout holds answers, stderr everything that is said about them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TextIO

from alignbeam.terminal.text import printable

if TYPE_CHECKING:
    from rich.console import Console

    from alignbeam import AlignBeam
    from alignbeam.config import Settings

#: Width of tables where the output is no terminal; rich's own 80 would fold them.
PIPED_WIDTH = 120


def shown(text: str, stream: TextIO) -> str:
    """Return ``text`` as it is for a file or pipe, and neutralised for a terminal."""
    return printable(text) if stream.isatty() else text


def use_forgiving_encoding() -> None:
    """Never fail on a character that the output's encoding lacks: show its escape instead."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def make_console(stream: TextIO) -> Console:
    """Return a rich console on ``stream``: colour on a terminal only, and never with NO_COLOR."""
    from rich.console import Console

    width = None if stream.isatty() else PIPED_WIDTH
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


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
