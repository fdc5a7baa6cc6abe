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
    """Create ``folder``, and those above it, for this user alone (0700) where they are missing.

    Raises
    ------
    OSError
        It cannot be created.
    """
    for level in (*reversed(folder.parents), folder):
        if not level.is_dir():
            level.mkdir(mode=0o700, exist_ok=True)


def untrusted(*paths: Path) -> str | None:
    """Return who else may put something at ``paths``, and the mend; None for nobody.

    Root and this process's user are trusted. A path that is not there is passed over. Whoever can
    write to a folder above may put another one in the place of a path, between this look and its
    use, unless what lies there is kept to its owners (as in ``/tmp``); a group of this user alone
    may write there.
    """
    if not hasattr(os, "geteuid"):  # no owners and modes on this system
        return None
    for path in paths:
        if fault := _changed_by_others(path):
            return fault
    # Of a link, where it lies and where it leads.
    whole = [found for path in paths for found in (path.absolute(), path.resolve())]
    for folder in dict.fromkeys(folder for path in whole for folder in path.parents):
        if fault := _changed_by_others(folder, above=True):
            return fault
    return None


def _changed_by_others(path: Path, *, above: bool = False) -> str | None:
    try:
        met = [path.lstat(), path.stat()]
    except OSError:  # whoever wants to use it meets the same error
        return None
    if any(found.st_uid not in (0, os.geteuid()) for found in met):
        return f"{path} belongs to another user; {_MEND}"
    mode, others = met[-1].st_mode, stat.S_IWGRP | stat.S_IWOTH
    if above and mode & stat.S_ISVTX:
        others = 0
    elif above and _of_one(met[-1].st_gid):
        others = stat.S_IWOTH
    if mode & others:
        return f"{path} can be changed by other users; chmod go-w it, or {_MEND}"
    return None


def _of_one(group: int) -> bool:
    """Whether a group is this user's own, of the same name and with nobody else in it."""
    import grp
    import pwd

    try:
        name, found = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(group)
    except KeyError:
        return False
    return found.gr_name == name and set(found.gr_mem) <= {name}
