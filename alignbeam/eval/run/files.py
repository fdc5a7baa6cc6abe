"""A run's folder: read whole, written line by line, and sound after a kill at any point."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

from alignbeam.errors import ConfigError
from alignbeam.eval.run.records import (
    GENERATIONS,
    MANIFEST,
    SCORES,
    TIMES,
    Generation,
    RecordError,
    Score,
    Time,
)

_LOCK: Final = ".lock"


class RunFiles:
    """The files of one run.

    Parameters
    ----------
    folder : path
        Need not exist for writing.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def manifest(self) -> dict[str, Any]:
        """Return the manifest.

        Raises
        ------
        RecordError
            There is none, or it is no JSON object.
        """
        path = self.folder / MANIFEST
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise RecordError(f"{self.folder} holds no run: {error}") from error
        except ValueError as error:
            raise RecordError(f"{path} is no JSON: {error}") from error
        if not isinstance(found, dict):
            raise RecordError(f"{path} must hold a JSON object")
        return found

    def has_manifest(self) -> bool:
        """Whether a run was begun here."""
        return (self.folder / MANIFEST).is_file()

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Write the manifest, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(manifest, indent=1, allow_nan=False)
        _replace(self.folder / MANIFEST, text.encode() + b"\n")

    def generations(self) -> list[Generation]:
        """Return all answers; a torn last line is left out."""
        return [Generation.from_line(line) for line in _lines(self.folder / GENERATIONS)]

    def scores(self) -> list[Score]:
        """Return all scores; a torn last line is left out."""
        return [Score.from_line(line) for line in _lines(self.folder / SCORES)]

    def times(self) -> list[Time]:
        """Return all measured times; a torn last line is left out."""
        return [Time.from_line(line) for line in _lines(self.folder / TIMES)]


def lock_run(folder: Path) -> AbstractContextManager[object]:
    """Keep a second writer out of a folder until ``with`` ends, or the process dies.

    Raises
    ------
    ConfigError
        Another process writes here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return FileLock(folder / _LOCK).acquire(blocking=False)
    except Timeout as error:
        raise ConfigError(
            f"another process is writing to {folder}; wait for it, or name another folder"
        ) from error


class Journal:
    """An append-only file of lines with an identity each.

    A kill can tear only the last line; opening the journal cuts a torn line off. Appended lines
    are on the disk when ``append`` returns.

    Parameters
    ----------
    path : Path
        Created where it does not exist.
    identity : sequence of str
        Keys of a line that together name it; a second line with the same ones is left out.

    Raises
    ------
    RecordError
        A line other than the last one cannot be read.
    ConfigError
        The file is a link.
    """

    def __init__(self, path: Path, identity: Sequence[str]) -> None:
        self._path, self._identity = path, tuple(identity)
        self._found: dict[tuple[str, ...], bytes] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = 0
        if path.exists():
            for line in _lines(path):
                self._found.setdefault(self._name(line), line)
                whole += len(line) + 1
        self._file = open(path, "ab", opener=_no_link)  # noqa: SIM115  closed by close()
        if self._file.tell() != whole:
            self._file.truncate(whole)

    def __contains__(self, name: tuple[str, ...]) -> bool:
        """Whether there is a line of this identity."""
        return name in self._found

    def __len__(self) -> int:
        """Return how many lines there are."""
        return len(self._found)

    def append(self, lines: Iterable[str]) -> None:
        """Append lines that are not there yet, all in one write."""
        fresh = []
        for text in lines:
            line = text.encode()
            name = self._name(line)
            if name not in self._found:
                self._found[name] = line
                fresh.append(line + b"\n")
        if fresh:
            self._file.write(b"".join(fresh))
            self._file.flush()
            os.fsync(self._file.fileno())

    def finish(self, order: Sequence[tuple[str, ...]]) -> None:
        """Put the file into canonical order, whole or not at all, and close it.

        Parameters
        ----------
        order : sequence of identities
            All that belong to the run, each of which must be there.

        Raises
        ------
        RecordError
            One is missing.
        """
        missing = [name for name in order if name not in self._found]
        if missing:
            raise RecordError(f"{self._path.name}: {len(missing)} of {len(order)} lines missing")
        self.close()
        content = b"".join(self._found[name] + b"\n" for name in dict.fromkeys(order))
        if self._path.read_bytes() != content:
            _replace(self._path, content)

    def close(self) -> None:
        """Close the file; what was appended stays."""
        self._file.close()

    def _name(self, line: bytes) -> tuple[str, ...]:
        values = json.loads(line)
        return tuple(str(values[key]) for key in self._identity)


def forget(path: Path, column: str, values: Collection[str]) -> None:
    """Take the lines out of a run's file in which ``column`` has one of ``values``."""
    lines = _lines(path)
    kept = [line for line in lines if json.loads(line)[column] not in values]
    if len(kept) < len(lines):
        _replace(path, b"".join(line + b"\n" for line in kept))


def _lines(path: Path) -> list[bytes]:
    """Whole lines of a file; the last one is left out where a kill tore it."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    lines = content.split(b"\n")
    torn = lines.pop()  # empty where the file ends with a whole line
    del torn
    for number, line in enumerate(lines, 1):
        try:
            sound = isinstance(json.loads(line), dict)
        except ValueError:
            sound = False
        if not sound:
            if number == len(lines):  # a file system may keep the length and lose the content
                return lines[:-1]
            raise RecordError(
                f"{path}: line {number} of {len(lines)} is damaged, and not by a kill, which "
                "tears the last line only; mend or remove the line"
            )
    return lines


def _no_link(path: str, flags: int) -> int:
    """Open a file, but no link, which would lead the writing to another one.

    Raises
    ------
    ConfigError
        It is a link.
    """
    try:
        return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ConfigError(f"{path} is a link, and is not written to; remove it") from error
        raise


def _replace(path: Path, content: bytes) -> None:
    """Write a file so that a kill leaves the old one or the new one."""
    fresh = path.with_name(path.name + ".new")
    with open(fresh, "wb", opener=_no_link) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)
