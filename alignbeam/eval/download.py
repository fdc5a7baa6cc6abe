"""Fetching one file: bounded in size and tries, checked before it gets its name."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Final

from alignbeam.errors import AlignBeamError

#: No file is taken that is longer, unless the caller sets another bound.
MAX_BYTES: Final = 512 << 20
_TRIES: Final = 4
_BLOCK: Final = 1 << 16
_TIMEOUT_S: Final = 30.0
_HUB_FILE: Final = re.compile(r"hf://datasets/([^/]+/[^/@]+)@([^/]+)/(.+)")

Progress = Callable[[int, int | None], object]


class DownloadError(AlignBeamError, OSError):
    """A file could not be fetched, or is not the file that was pinned."""


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(
    url: str,
    path: Path,
    sha256: str | None,
    *,
    max_bytes: int = MAX_BYTES,
    progress: Progress = lambda done, total: None,
    pause_s: float = 1.0,
) -> str:
    """Fetch ``url`` to ``path``; the file gets its name only when it is whole and right.

    Parameters
    ----------
    url : str
        ``http(s)://...``, or ``hf://datasets/OWNER/NAME@REVISION/FILE`` on the Hugging Face hub.
    sha256 : str or None
        The pinned hash. None: the hash of the first download is kept beside the file
        (``.sha256``), and a later download must be the same.
    max_bytes : int
        A longer file is refused: where the server says how long it is, before it is read.
    progress : callable
        Told bytes done and bytes in all (None where the server does not say).
    pause_s : float
        Wait before the second try; doubled for each further one.

    Returns
    -------
    str
        The file's SHA-256, hex.

    Raises
    ------
    DownloadError
        The address cannot be fetched, is longer than allowed, says not how long it is though no
        hash is pinned, or is not the pinned file. Nothing is kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    note = path.with_name(path.name + ".sha256")
    wanted = sha256
    if wanted is None and note.exists():
        wanted = note.read_text(encoding="ascii").strip()
    # A new folder of this user's alone: nobody has put a link where the file is written.
    with tempfile.TemporaryDirectory(dir=path.parent) as name:
        work = Path(name)
        if hub_file := _HUB_FILE.fullmatch(url):
            part = _from_hub(hub_file, work, max_bytes)
            progress(part.stat().st_size, part.stat().st_size)
        else:
            part = work / "part"
            _from_web(url, part, wanted is not None, max_bytes, progress, pause_s)
        found = sha256_of(part)
        if wanted is not None and found != wanted:
            raise DownloadError(
                f"{url} is not the pinned file: SHA-256 {found}, wanted {wanted}; it was removed"
            )
        if sha256 is None:
            (work / "note").write_text(found + "\n", encoding="ascii")
            os.replace(work / "note", note)
        os.replace(part, path)
    return found


def _from_hub(address: re.Match[str], work: Path, max_bytes: int) -> Path:
    """Fetch a file of a data set on the hub, of the commit that the revision stands for now."""
    from huggingface_hub import hf_hub_download

    repo, revision, name = address.groups()
    url = f"{name} of {repo} on the Hugging Face hub"
    try:
        there = hf_hub_download(
            repo, name, repo_type="dataset", revision=revision, local_dir=work, dry_run=True
        )
        if there.file_size is not None and there.file_size <= max_bytes:
            commit = there.commit_hash
            return Path(
                hf_hub_download(repo, name, repo_type="dataset", revision=commit, local_dir=work)
            )
    except Exception as error:  # the library's errors and its transport's share no base
        raise DownloadError(f"cannot fetch {url}: {error.__cause__ or error}") from error
    raise _too_long(url, there.file_size, max_bytes)


def _from_web(
    url: str, part: Path, pinned: bool, max_bytes: int, progress: Progress, pause_s: float
) -> None:
    reason = ""
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(pause_s * 2 ** (attempt - 1))
        try:
            if _get(url, part, pinned, max_bytes, progress):
                return
            reason = "the transfer broke off"
        except DownloadError:
            raise
        except urllib.error.HTTPError as error:
            if error.code < http.client.INTERNAL_SERVER_ERROR:
                raise DownloadError(f"cannot fetch {url}: {error}") from error
            reason = str(error)
        except (OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
    raise DownloadError(f"cannot fetch {url}: {reason}")


def _get(url: str, part: Path, pinned: bool, max_bytes: int, progress: Progress) -> bool:
    """Fetch ``url`` to ``part`` in one request; whether it is whole."""
    with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response, open(part, "wb") as file:
        total: int | None = response.length
        if total is None and not pinned:
            raise DownloadError(
                f"{url}: the server does not say how long it is, and no hash is pinned, so a part "
                "could pass for the whole; fetch it by hand"
            )
        done = 0
        while True:
            if max(done, total or 0) > max_bytes:
                raise _too_long(url, total, max_bytes)
            block = response.read(_BLOCK)
            if not block:
                return total is None or done == total
            file.write(block)
            done += len(block)
            progress(done, total)


def _too_long(url: str, total: int | None, max_bytes: int) -> DownloadError:
    says = "more" if total is None else f"{total:,}"
    return DownloadError(f"{url} is too long: {says} bytes, where {max_bytes:,} are allowed")
