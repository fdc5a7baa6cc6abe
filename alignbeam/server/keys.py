"""API keys: kept hashed, compared in constant time, read anew when their file changes."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path

from alignbeam.errors import ConfigError

_log = logging.getLogger(__name__)
_COMMENT = re.compile(r"(?:^|\s)#.*")
#: A hash, or what was meant to be one.
_HASHED = re.compile(r"(?:(.*):\s+)?sha256\s*:\s*(.*)", re.IGNORECASE)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.IGNORECASE)
_MIN_LENGTH = 16
ENVIRONMENT = "ALIGNBEAM_API_KEYS"
#: Of the keys that open ``/metrics`` and nothing else.
METRICS_ENVIRONMENT = "ALIGNBEAM_METRICS_KEYS"


class Keys:
    """The keys that are let in, by hash, with a name for the log each.

    Parameters
    ----------
    path : str or None
        One ``key`` or ``name: key`` per line, ``sha256:<hex>`` in place of a key; ``#`` begins a
        comment, at the beginning or after a blank. A name may have several keys; a key without a
        name is named after its hash. Read again when it changes, so that keys are rotated without
        a restart.
    environ : mapping or None
        Its ``variable``, comma-separated, adds to them; ``os.environ`` where None.
    variable : str

    Raises
    ------
    ConfigError
        A file that cannot be read, a key that is too short to be one, or a hash that is none.
    """

    def __init__(
        self,
        path: str | None = None,
        environ: Mapping[str, str] | None = None,
        variable: str = ENVIRONMENT,
    ) -> None:
        self._path = None if path is None else Path(path)
        given = (os.environ if environ is None else environ).get(variable, "")
        lines = [part for part in given.split(",") if part.strip()]
        self._fixed = _parse(lines, variable)
        self._stamp: tuple[int, ...] | None = None
        self._from_file: list[tuple[str, bytes]] = []
        self._read_file()

    def __bool__(self) -> bool:
        """Whether there is any key."""
        return bool(self._fixed or self._from_file)

    @property
    def required(self) -> bool:
        """Whether requests need a key: a keys file that lost its keys lets nobody in."""
        return bool(self) or self._path is not None

    def name_of(self, key: str) -> str | None:
        """Return the name of a key that is let in, else None; takes equally long for all."""
        self._read_file()
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        found = None
        for name, known in (*self._fixed, *self._from_file):
            if hmac.compare_digest(digest, known):
                found = name
        return found

    def _read_file(self) -> None:
        if self._path is None:
            return
        try:
            stat = self._path.stat()
            # Another file may have the same time and length, where times are set (as in images).
            stamp = (stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size)
            if stamp == self._stamp:
                return
            lines = self._path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            if self._stamp is None:
                raise ConfigError(f"cannot read the API keys in {self._path}: {error}") from error
            self._from_file = []  # the file went away: nobody is let in by it
            self._stamp = ()  # and may come back as it was
            return
        first = self._stamp is None
        self._stamp = stamp
        try:
            self._from_file = _parse(lines, str(self._path))
        except ConfigError as error:
            if first:
                raise
            # Which line was meant to be taken out cannot be known: nobody is let in by the file.
            _log.error("no key of the file is taken until it is mended: %s", error)
            self._from_file = []


def _parse(lines: list[str], where: str) -> list[tuple[str, bytes]]:
    """Return name and hash of each key; names may repeat, as they do while a key is changed."""
    keys = []
    for number, line in enumerate(lines, start=1):
        text = _COMMENT.sub("", line).strip()
        if not text:
            continue
        hashed = _HASHED.fullmatch(text)
        name, colon, key = text.rpartition(": ")
        if hashed is not None:
            name, colon, key = hashed[1] or "", hashed[1] or "", hashed[2]
        if hashed is not None:
            if not _DIGEST.fullmatch(key):
                raise ConfigError(
                    f"{where}, key {number}: after sha256: there must be 64 hexadecimal digits"
                )
            digest = bytes.fromhex(key)
        elif len(key) < _MIN_LENGTH:
            raise ConfigError(
                f"{where}, key {number}: a key needs at least {_MIN_LENGTH} characters"
            )
        else:
            digest = hashlib.sha256(key.encode()).digest()
        # Not its place in the list: another client's key may stand there later, or in a second
        # list, and would share its name, and with it its turns, its quota and its prefixes.
        keys.append((name.strip() if colon else f"key-{digest.hex()[:8]}", digest))
    return keys
