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
    """Return who else may put something at ``paths``, and the mend; None for nobody.

    Root and this process's user are trusted. A path that is not there is passed over. Whoever can
    write to a folder above may put another one in the place of a path, between this look and its
    use, unless what lies there is kept to its owners (as in ``/tmp``).
    """
    if not hasattr(os, "geteuid"):  # no owners and modes on this system
        return None
    for path in paths:
        if fault := _changed_by_others(path):
            return fault
    # Of a link, where it lies and where it leads.
    whole = [found for path in paths for found in (path.absolute(), path.resolve())]
    for above in dict.fromkeys(folder for path in whole for folder in path.parents):
        if fault := _changed_by_others(above, unless=stat.S_ISVTX):
            return fault
    return None


def _changed_by_others(path: Path, unless: int = 0) -> str | None:
    try:
        met = [path.lstat(), path.stat()]
    except OSError:  # whoever wants to use it meets the same error
        return None
    if any(found.st_uid not in (0, os.geteuid()) for found in met):
        return f"{path} belongs to another user; {_MEND}"
    mode = met[-1].st_mode
    if mode & (stat.S_IWGRP | stat.S_IWOTH) and not mode & unless:
        return f"{path} can be changed by other users; chmod go-w it, or {_MEND}"
    return None
