"""``alignbeam settings``: what can be set, to what, and what is."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from alignbeam.cli.console import shown
from alignbeam.cli.options import settings_from, with_settings
from alignbeam.config import names_of, settings_file

EPILOG = """Examples:

alignbeam settings > alignbeam.toml

alignbeam settings threshold server.release

alignbeam settings --config alignbeam.toml server
"""


@with_settings()
def settings(
    context: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Tables, keys or TABLE.KEY (default: all)."),
    ] = None,
) -> None:
    """Explain the settings, and check and show those in force, as a configuration file.

    A value that is not the default stands for itself, a default is commented out.
    """
    found = vars(settings_from(context.params))
    text = settings_file(found, names_of(names) if names else None)
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None and not sys.stdout.isatty():
        # TOML is UTF-8, whatever the locale.
        reconfigure(encoding="utf-8", errors="backslashreplace")
    print(shown(text, sys.stdout), end="")
