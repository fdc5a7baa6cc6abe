"""The audit log: one JSON line per answer, appended before the answer leaves.

A line is one ``write`` to a file opened for appending, so a killed process leaves whole lines. A
write that fails part-way (a full disk) is cut off again, and whoever asked for it must not let the
answer leave.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from alignbeam.errors import ConfigError
from alignbeam.result import Result
from alignbeam.server.problems import AuditQuota, AuditUnavailable

_log = logging.getLogger(__name__)


def text_hash(text: str) -> str:
    """Return the SHA-256 of a text, hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def hashed(texts: Iterable[str]) -> list[dict[str, Any]]:
    """Return what the log keeps of texts that a client chose: hash and length, never the text."""
    return [{"sha256": text_hash(text), "characters": len(text)} for text in texts]


def cut(text: str, most: int) -> str:
    """Return a text, or its beginning and how much is missing."""
    return text if len(text) <= most else f"{text[:most]}[... {len(text) - most} more]"


class Quota:
    """How much one client's records may add to the log, so that no client can flush it.

    What was added is forgotten at an even pace, all of ``bytes_per_hour`` in an hour.
    """

    def __init__(self, bytes_per_hour: int) -> None:
        self._most = bytes_per_hour
        self._added: dict[str, tuple[float, float]] = {}  # bytes, and when they were so many

    def add(self, client: str, size: int) -> None:
        """Count a record that was written."""
        self._added[client] = (self._level(client) + size, time.monotonic())

    def check(self, client: str) -> None:
        """Refuse a client that has added too much.

        Raises
        ------
        AuditQuota
        """
        beyond = self._level(client) - self._most
        if beyond >= 0:
            raise AuditQuota(beyond * 3600 / self._most)

    def _level(self, client: str) -> float:
        size, then = self._added.get(client, (0.0, 0.0))
        return max(0.0, size - (time.monotonic() - then) * self._most / 3600)


class AuditLog:
    """Appends records to a file, rotated by size.

    Parameters
    ----------
    path : str or Path
        Its folder must exist. A torn last line (power loss) is cut off on opening.
    max_bytes : int
        A file that has grown to this is renamed to ``<name>.1`` (older ones move up).
    keep : int
        Renamed files kept.

    Raises
    ------
    ConfigError
        The file cannot be opened for appending.
    """

    def __init__(self, path: str | Path, max_bytes: int = 64 << 20, keep: int = 10) -> None:
        self._path, self._max_bytes, self._keep = Path(path), max_bytes, keep
        self._lock = threading.Lock()
        try:
            self._fd = self._open()
        except OSError as error:
            raise ConfigError(
                f"cannot open the audit log {path}: {error.strerror or error}"
            ) from error
        self._size = os.fstat(self._fd).st_size
        self._cut_torn_line()

    def write(self, record: Mapping[str, Any]) -> int:
        """Append one record; its size in bytes.

        Raises
        ------
        AuditUnavailable
            It could not be written whole; nothing of it is left in the file.
        """
        line = json.dumps({"time": round(time.time(), 3), **record}, allow_nan=False) + "\n"
        data = line.encode()
        with self._lock:
            try:
                self._follow()
                if self._size and self._size + len(data) > self._max_bytes:
                    self._rotate()
                written = os.write(self._fd, data)
            except OSError as error:
                _log.error("the audit log cannot be written: %s", error.strerror or error)
                raise AuditUnavailable(f"audit log: {error.strerror or error}") from error
            if written != len(data):
                with contextlib.suppress(OSError):
                    os.ftruncate(self._fd, self._size)
                _log.error("the audit log took only a part of a record")
                raise AuditUnavailable("audit log: the disk is full")
            self._size += written
            return written

    def close(self) -> None:
        """Close the file; what was written is brought to the disk."""
        with self._lock:
            with contextlib.suppress(OSError):
                os.fsync(self._fd)
            os.close(self._fd)

    def _open(self) -> int:
        return os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _follow(self) -> None:
        """Go on in the file that has the name now: others may rename, remove or cut it."""
        held = os.fstat(self._fd)
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != (held.st_dev, held.st_ino):
            fresh = self._open()
            os.close(self._fd)
            self._fd, held = fresh, os.fstat(fresh)
        self._size = held.st_size

    def _cut_torn_line(self) -> None:
        if not self._path.is_file() or self._size == 0:
            return
        tail = os.pread(self._fd, 1 << 20, max(0, self._size - (1 << 20)))
        torn = len(tail) - (tail.rfind(b"\n") + 1)
        if torn:
            _log.warning("the audit log ended in a torn line of %d bytes; it was cut off", torn)
            self._size -= torn
            os.ftruncate(self._fd, self._size)

    def _rotate(self) -> None:
        os.fsync(self._fd)
        names = [self._path.with_name(f"{self._path.name}.{n}") for n in range(1, self._keep + 1)]
        names.insert(0, self._path)
        # Up to the first gap: a rotation that failed half-way is gone on with, and none older than
        # the last one is lost by trying again.
        last = next((n for n, name in enumerate(names) if not name.exists()), self._keep)
        for number in range(last, 0, -1):
            names[number - 1].replace(names[number])
        if not self._keep:
            self._path.unlink()
        self._follow()


def candidates_of(result: Result, *, text: bool, most: int) -> list[dict[str, Any]]:
    """Return what the log keeps of each candidate: scores and hashes; if asked, the texts too.

    Of each text ``most`` characters are kept.
    """
    kept = []
    for candidate in result.candidates:
        told = candidate.full(digits=6)
        entry: dict[str, Any] = {
            "sha256": text_hash(candidate.judged_text),
            "tokens": len(candidate.token_ids),
            "logprob": told["logprob"],
            "score": told["verdict"] and told["verdict"]["score"],
            "failure": candidate.failure,
            "unsteered": candidate.unsteered,
            "view": candidate.view,
        }
        if text:  # a judge's own words may quote what it judged
            entry["text"] = cut(candidate.judged_text, most)
            error = told["verdict"] and told["verdict"]["error"]
            entry["error"] = error and cut(error, most)
        kept.append(entry)
    return kept
