"""Where built and fetched things are kept, and whether what lies there may be loaded."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

_MEND: Final = "set ALIGNBEAM_CACHE to a folder of your own"


def cache_folder(name: str) -> Path | None:
    """Return ``$ALIGNBEAM_CACHE/name``, else ``~/.cache/alignbeam/name``; None without a home."""
    if root := os.environ.get("ALIGNBEAM_CACHE"):
        return Path(root) / name
    try:
        return Path.home() / ".cache" / "alignbeam" / name
    except RuntimeError:  # a user without a home folder, as in some containers
        return None


def make_cache_folder(folder: Path) -> None:
    """Create ``folder``, and the one above it, for this user alone (0700) where they are missing.

    Raises
    ------
    OSError
        It cannot be created.
    """
    for level in (folder.parent, folder):
        level.mkdir(mode=0o700, parents=True, exist_ok=True)


def untrusted(*paths: Path) -> str | None:
    """Return who else may have put what lies at ``paths`` there, and the mend; None for nobody.

    Root and this process's user are trusted. A path that is not there is passed over.
    """
    if not hasattr(os, "geteuid"):  # no owners and modes on this system
        return None
    for path in paths:
        try:
            found = path.stat()
        except OSError:  # whoever wants to use it meets the same error
            continue
        if found.st_uid not in (0, os.geteuid()):
            return f"{path} belongs to another user; {_MEND}"
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return f"{path} can be changed by other users; chmod go-w it, or {_MEND}"
    return None
