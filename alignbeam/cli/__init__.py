"""The command line. ``main`` is what the ``alignbeam`` script runs."""

from __future__ import annotations

from alignbeam.cli.console import use_forgiving_encoding
from alignbeam.cli.exit import run_guarded


def main() -> int:
    """Run the command line and return the exit code of the process."""
    use_forgiving_encoding()
    return run_guarded(_run)


def _run() -> None:
    from alignbeam.cli.app import app

    app()
