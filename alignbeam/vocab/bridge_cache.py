"""Bridges on disk: one safetensors file per pair of vocabularies, bound to its content."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter
from os import PathLike
from pathlib import Path
from typing import Literal

import tokenizers
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes

from alignbeam.cache_folder import cache_folder, make_cache_folder, untrusted
from alignbeam.vocab.matching import Kind, Tables
from alignbeam.vocab.pieces import OVER
from alignbeam.vocab.vocabulary import Vocabulary

# Raise it with every change of what a table holds: older files then no longer fit their key.
FORMAT_VERSION = 4


def key(anchor: Vocabulary, target: Vocabulary, method: str) -> str:
    """SHA-256 (hex) over everything that the tables depend on."""
    pair = (anchor, target)
    with ThreadPoolExecutor(2) as pool:  # SHA-256 lets go of the interpreter lock
        fingerprints = list(pool.map(attrgetter("fingerprint"), pair))
    parts = [
        FORMAT_VERSION,
        tokenizers.__version__,
        fingerprints,
        [side.width for side in pair],
        *(side.end_ids for side in pair),
        *(side.opening.hex() if method == "bytes" else "" for side in pair),
        method,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def folder(cache_dir: str | PathLike[str] | Literal[False] | None) -> Path | None:
    """Return the folder to use; None for no cache. One that others can change is warned about."""
    if cache_dir is False:
        return None
    where = cache_folder("bridges") if cache_dir is None else Path(cache_dir)
    levels = [] if where is None else [where.parent, where] if cache_dir is None else [where]
    if fault := untrusted(*levels):
        _warn(f"bridge cache: {fault}; going on without a cache")
        return None
    return where


def _path(where: Path, pair_key: str) -> Path:
    return where / f"{pair_key}.safetensors"


def load(where: Path, pair_key: str, widths: tuple[int, int]) -> Tables | None:
    """Return the stored tables, or None where there are none that can be trusted.

    Another pair's file under this name is ignored; a damaged file, or one that others can change,
    is warned about. All are then rebuilt by the caller.
    """
    path = _path(where, pair_key)
    if not path.is_file():
        return None
    if fault := untrusted(path):
        _warn(f"bridge cache: {fault}; building the bridge anew")
        return None
    try:
        with safe_open(path, framework="pt") as stored:
            metadata = stored.metadata() or {}
            if metadata.get("key") != pair_key:
                return None
            tables = Tables(*(stored.get_tensor(name) for name in Tables._fields))
    except (OSError, SafetensorError) as error:
        _warn(f"bridge cache: {path} is damaged ({error}); building the bridge anew")
        return None
    if metadata.get("sha256") != checksum(tables, pair_key) or not _fits(tables, widths):
        _warn(f"bridge cache: {path} is damaged (wrong checksum); building the bridge anew")
        return None
    return tables


def save(where: Path, pair_key: str, tables: Tables) -> None:
    """Write the tables atomically; a folder that cannot be written to is only warned about."""
    path = _path(where, pair_key)
    metadata = {"key": pair_key, "sha256": checksum(tables, pair_key)}
    data = safetensors_bytes(tables._asdict(), metadata)
    scratch = None
    try:
        make_cache_folder(where)
        with tempfile.NamedTemporaryFile(dir=where, suffix=".tmp", delete=False) as file:
            scratch = Path(file.name)
            file.write(data)
        os.replace(scratch, path)
    except OSError as error:
        if scratch is not None:
            scratch.unlink(missing_ok=True)
        _warn(f"bridge cache: cannot write to {where} ({error}); going on without a cache")


def checksum(tables: Tables, pair_key: str) -> str:
    """SHA-256 (hex) over the tables and what they depend on."""
    digest = hashlib.sha256(f"{pair_key}\0".encode())
    for name, tensor in tables._asdict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _fits(tables: Tables, widths: tuple[int, int]) -> bool:
    """Whether the tables can be used without reading beyond a head."""
    anchor_width, target_width = widths
    return all(
        ids.shape == kinds.shape == (anchor_width,)
        and ids.dtype == torch.int32
        and kinds.dtype == torch.uint8
        and bool(((ids >= -1) & (ids < target_width)).all())
        and bool((kinds <= max(Kind)).all())
        for ids, kinds in (tables[:2], tables[2:4])
    ) and all(
        _is_walkable(tables.pieces, starts, anchor_width, target_width)
        for starts in (tables.starts, tables.opening_starts)
    )


def _is_walkable(
    pieces: torch.Tensor, starts: torch.Tensor, anchor_width: int, target_width: int
) -> bool:
    """Whether every walk over the pieces stays within them, and within the target's head."""
    if pieces.dtype != torch.int32 or starts.dtype != torch.int32 or pieces.dim() != 1:
        return False
    if len(pieces) == 0:
        return starts.shape == (0,)
    return (
        starts.shape == (anchor_width,)
        and bool(((starts >= 0) & (starts < len(pieces))).all())
        and bool(((pieces >= OVER) & (pieces < target_width)).all())
        and int(pieces[-1]) < 0
        and bool((pieces[starts.long()] != OVER).all())
    )


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)
