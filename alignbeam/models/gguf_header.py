"""What a GGUF file says of itself, read within the file's bounds before a library may read it."""

from __future__ import annotations

import mmap
import shutil
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

from alignbeam.errors import ModelLoadError

_VERSIONS: Final = (2, 3)
#: struct's letter of each number type.
_NUMBERS: Final = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS: Final = 4


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor: its shape in torch's order, its ggml type, and where in the file it ends."""

    shape: tuple[int, ...]
    kind: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """Metadata by key, arrays as lists; tensors by name.

    Attributes
    ----------
    spans : dict of str to (int, int)
        First byte and end of each entry of metadata.
    table : (int, int)
        The same of the list of tensors.
    start : int
        First byte of the weights, a multiple of ``alignment``.
    """

    metadata: dict[str, Any]
    tensors: dict[str, TensorEntry]
    spans: dict[str, tuple[int, int]]
    table: tuple[int, int]
    start: int
    alignment: int

    @property
    def n_params(self) -> int:
        """Number of weights."""
        return sum(prod(entry.shape) for entry in self.tensors.values())


def read_header(path: Path) -> Header:
    """Read what precedes the weights, and check that these are all there.

    Raises
    ------
    ModelLoadError
        No GGUF file, a damaged or truncated one, or of a version or type that is not known.
    """
    from gguf.constants import GGML_QUANT_SIZES

    sizes = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
    try:
        with open(path, "rb") as file, _mapped(file.fileno(), path) as data:
            if (magic := data[:4]) != b"GGUF":
                raise ModelLoadError(
                    f"{path} is no GGUF file (it begins with {bytes(magic)!r}); a pointer of Git "
                    "LFS or a saved web page looks like this: fetch the file itself"
                )
            return _Reader(data, path, sizes).header()
    except OSError as error:
        raise ModelLoadError(f"cannot read {path}: {error.strerror or error}") from error
    except (struct.error, IndexError, ValueError, OverflowError, MemoryError) as error:
        raise ModelLoadError(
            f"{path} is damaged or truncated: its header cannot be read ({error}); fetch it again"
        ) from error


def without_vocabulary(path: Path, header: Header, slim: Path) -> None:
    """Copy a file without its tokenizer, whose every word a library may take a long look at."""
    kept = [span for key, span in header.spans.items() if not key.startswith("tokenizer.")]
    own = f"{header.metadata['general.architecture']}.vocab_size"
    rows = header.tensors["token_embd.weight"].shape[0]
    size = b"" if own in header.spans else _text(own) + struct.pack("<II", 4, rows)
    counts = struct.pack("<IQQ", _VERSIONS[-1], len(header.tensors), len(kept) + bool(size))
    with open(path, "rb") as file, open(slim, "wb") as out:
        out.write(b"GGUF" + counts + size)
        for begin, end in [*kept, header.table]:
            file.seek(begin)
            out.write(file.read(end - begin))
        out.write(bytes(-out.tell() % header.alignment))
        file.seek(header.start)
        shutil.copyfileobj(file, out, 1 << 24)


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _mapped(handle: int, path: Path) -> mmap.mmap:
    if path.stat().st_size < 4:
        raise ModelLoadError(f"{path} is no GGUF file: it is empty; fetch it again")
    return mmap.mmap(handle, 0, access=mmap.ACCESS_READ)


class _Reader:
    def __init__(self, data: mmap.mmap, path: Path, sizes: dict[int, tuple[int, int]]) -> None:
        self._data, self._path, self._sizes = data, path, sizes
        self._at = 4

    def header(self) -> Header:
        version = self._number("I")
        if version not in _VERSIONS:
            raise ModelLoadError(
                f"{self._path} is of GGUF version {version}; versions 2 and 3 (little-endian) are "
                "read: convert the model again with a current llama.cpp"
            )
        tensors, pairs = self._number("Q"), self._number("Q")
        metadata: dict[str, Any] = {}
        spans = {}
        for _ in range(pairs):
            begin = self._at
            key = self._string()
            metadata[key] = self._value(self._number("I"))
            spans[key] = (begin, self._at)
        begin = self._at
        entries = [self._entry() for _ in range(tensors)]
        table = (begin, self._at)
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"an alignment of {alignment!r}")
        start = -(-self._at // alignment) * alignment
        placed = {
            name: TensorEntry(shape, kind, start + offset + size)
            for name, shape, kind, offset, size in entries
        }
        needed = max((entry.end for entry in placed.values()), default=0)
        if needed > len(self._data):
            raise ModelLoadError(
                f"{self._path} is truncated: it has {len(self._data):,} of {needed:,} bytes; "
                "fetch it again"
            )
        return Header(metadata, placed, spans, table, start, alignment)

    def _entry(self) -> tuple[str, tuple[int, ...], int, int, int]:
        name = self._string()
        dimensions = self._number("I")
        if dimensions > _MAX_DIMENSIONS:
            raise ValueError(f"a tensor of {dimensions} dimensions")
        shape = tuple(self._number("Q") for _ in range(dimensions))[::-1]
        kind, offset = self._number("I"), self._number("Q")
        if kind not in self._sizes:
            raise ModelLoadError(
                f"{self._path} holds weights of type {kind}, which this gguf package does not "
                "know; pip install -U gguf, or take a file of another quantisation"
            )
        weights, size = self._sizes[kind]
        return name, shape, kind, offset, prod(shape) // weights * size

    def _number(self, letter: str) -> Any:
        (value,) = struct.unpack_from(f"<{letter}", self._data, self._at)
        self._at += struct.calcsize(f"<{letter}")
        return value

    def _string(self) -> str:
        length = self._number("Q")
        raw = self._data[self._at : self._at + length]
        if len(raw) != length:
            raise ValueError("a text goes on beyond the end of the file")
        self._at += length
        return raw.decode("utf-8", errors="replace")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            if kind not in _NUMBERS:
                raise ValueError(f"a value of unknown type {kind}")
            return self._number(_NUMBERS[kind])
        item, count = self._number("I"), self._number("Q")
        if item == _STRING:
            return [self._string() for _ in range(count)]
        if item not in _NUMBERS:
            raise ValueError(f"an array of unknown type {item}")
        # Compared before anything is made as long as a damaged count says.
        width = struct.calcsize(f"<{_NUMBERS[item]}")
        if count * width > len(self._data) - self._at:
            raise ValueError("an array goes on beyond the end of the file")
        values = struct.unpack_from(f"<{count}{_NUMBERS[item]}", self._data, self._at)
        self._at += count * width
        return list(values)
