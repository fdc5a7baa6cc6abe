"""What a command writes: tried before it works, so that hours end in no error about a folder."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

from alignbeam.errors import ConfigError


def check_folder(folder: Path, option: str = "--out") -> None:
    """Try whether a folder, there or not, can be written to; nothing is left behind.

    Raises
    ------
    ConfigError
        It cannot; names the option that takes another.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; {option} must name a folder")
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _cannot_write(folder, error, option) from error
    finally:
        for path in missing:
            with contextlib.suppress(OSError):  # another process may have put something there
                path.rmdir()


def check_file(path: Path, option: str = "--out") -> None:
    """Try whether a file, there or not, can be written; it is left as it was.

    Raises
    ------
    ConfigError
        It cannot; names the option that takes another.
    """
    if not path.parent.is_dir():
        raise ConfigError(f"{option}: there is no folder {path.parent}")
    was_there = path.exists()
    try:
        with open(path, "ab"):
            pass
    except OSError as error:
        raise _cannot_write(path, error, option) from error
    if not was_there:
        path.unlink()


def write_text(path: Path, text: str, option: str = "--out") -> None:
    """Write a file.

    Raises
    ------
    ConfigError
        It cannot be written; names the option that takes another.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise _cannot_write(path, error, option) from error


def _cannot_write(path: Path, error: OSError, option: str) -> ConfigError:
    why = error.strerror or error
    return ConfigError(f"cannot write {path}: {why}; name another place: {option}")
