"""How a command fails: one clear line on stderr and an exit code, never a traceback."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

from alignbeam.errors import AlignBeamError, ModelLoadError
from alignbeam.terminal.text import printable

#: Exit codes. 2 is also what a wrong option gives.
EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

_DEBUG = "ALIGNBEAM_DEBUG"


def exit_code_of(error: BaseException) -> int:
    """2 for what the caller can mend by other input, 1 for everything else."""
    ours = isinstance(error, AlignBeamError)
    bad_input = ours and isinstance(error, ValueError | ModelLoadError)
    return EXIT_BAD_INPUT if bad_input else EXIT_FAILED


def describe(error: BaseException) -> str:
    """One line for ``error``; a foreign exception is named, our own speak for themselves."""
    text = " ".join(str(error).split())
    if not isinstance(error, AlignBeamError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return printable(text)


def report(error: BaseException) -> None:
    """Write ``error`` to stderr in one line, and in full with ``ALIGNBEAM_DEBUG=1``."""
    if os.environ.get(_DEBUG, "") not in ("", "0"):
        traceback.print_exception(error)
    hint = "" if isinstance(error, AlignBeamError) else f" ({_DEBUG}=1 shows where)"
    print(f"alignbeam: error: {describe(error)}{hint}", file=sys.stderr)


def run_guarded(command: Callable[[], None]) -> int:
    """Run ``command`` and return the exit code of the process.

    A reader that went away (``alignbeam ... | head``) is no failure worth a word; Ctrl-C ends with
    130, as shells expect.
    """
    try:
        code = _exit_code(command)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _point_stdout_nowhere()
        return EXIT_FAILED
    except Exception as error:  # the outermost frame: whatever it is, the user gets one line
        report(error)
        return exit_code_of(error)
    return code


def _exit_code(command: Callable[[], None]) -> int:
    try:
        command()
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        print(stop.code, file=sys.stderr)
        return EXIT_FAILED
    return 0


def _point_stdout_nowhere() -> None:
    """Give stdout a file that swallows the rest, so that the flush at exit cannot fail again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
