"""Text, JSON and tables that somebody else wrote: read as meant, or refused with the line."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from alignbeam.errors import ConfigError

#: Endings of files that hold rows.
ROWS: Final = (".csv", ".tsv", ".tab", ".jsonl", ".ndjson", ".json")

#: Byte order marks; UTF-32's begins with UTF-16's.
_MARKS: Final = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class Row(dict[str, Any]):
    """One row by column name; names are also found in other case and with blanks around them.

    Attributes
    ----------
    where : str
        File and line, or file and row, for messages.
    """

    def __init__(self, cells: dict[str, Any], where: str) -> None:
        super().__init__(cells)
        self.where = where

    def __missing__(self, column: str) -> Any:
        near = [name for name in self if name.strip().casefold() == column.casefold()]
        if len(near) == 1:
            return self[near[0]]
        there = ", ".join(map(repr, self))
        raise ConfigError(
            f"{'two columns' if near else 'no column'} {column!r}; there are: {there}"
        )


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a CSV, TSV, JSON Lines or JSON file; its name's ending says which.

    A table's delimiter is the one of comma, semicolon and tab that parts its header the most.

    Raises
    ------
    ConfigError
        It cannot be read, or a row is broken; names file and line.
    """
    kind = path.suffix.lower()
    if kind not in ROWS:
        raise ConfigError(f"{path}: rows are read from files called {', '.join(ROWS)}")
    text = read_text(path)
    if kind in (".csv", ".tsv", ".tab"):
        return list(_table(text, ",;\t" if kind == ".csv" else "\t,;", str(path)))
    if kind == ".json":
        found = parse_json(text, str(path))
        if not isinstance(found, list):
            raise ConfigError(f"{path} must hold a list of JSON objects")
        return [_row(value, f"{path}, row {number}") for number, value in enumerate(found)]
    # Only line feeds part lines: a text may hold U+2028 and the like.
    return [
        _row(parse_json(line, str(path), number), f"{path}, line {number}")
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    ]


def read_text(path: Path) -> str:
    """Return a file's text, as ``decode`` reads it.

    Raises
    ------
    ConfigError
    """
    try:
        return decode(path.read_bytes(), str(path))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error


def decode(data: bytes, where: str) -> str:
    """Return the text of ``data``: UTF-8, or what its byte order mark says.

    Raises
    ------
    ConfigError
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8-sig")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        name = encoding.removesuffix("-sig").upper()
        raise ConfigError(
            f"{where} is not {name} (byte {error.start}); convert it, for instance with iconv"
        ) from error
    if "\0" in text:
        raise ConfigError(f"{where} holds NUL: no text, or UTF-16 without its byte order mark")
    return text


def parse_json(text: str, where: str, line: int | None = None) -> Any:
    """Parse JSON in which no name stands twice in one object.

    Parameters
    ----------
    line : int or None
        Where ``text`` is one line of its file: which one.

    Raises
    ------
    ConfigError
        Names the line.
    """
    try:
        return json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        why = str(error)
        if isinstance(error, json.JSONDecodeError):
            why, line = f"{error.msg} (column {error.colno})", line or error.lineno
        place = where if line is None else f"{where}, line {line}"
        raise ConfigError(f"{place} is not JSON: {why}") from error


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its pairs; for ``json.loads``, which would let the last of two win.

    Raises
    ------
    ValueError
        A name stands twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


def _row(value: object, where: str) -> Row:
    if not isinstance(value, dict):
        raise ConfigError(f"{where} must be a JSON object, got {type(value).__name__}")
    return Row(value, where)


def _table(text: str, delimiters: str, where: str) -> Iterator[Row]:
    def records(delimiter: str, *, strict: bool) -> Iterator[tuple[int, list[str]]]:
        """Yield the line on which a record begins, and its cells; blank ones are left out."""
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=strict)
        line = 1
        try:
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    yield line, cells
                line = reader.line_num + 1
        except csv.Error as error:
            raise ConfigError(
                f"{where}, line {line}: {error}; is a quote never closed, or one inside a quoted "
                "text not doubled?"
            ) from error

    # Excel's own first line; left empty, it keeps the others' numbers.
    told = re.match(r"\"?sep=([,;\t|])\"?(?=\r?\n)", text)
    if told:
        delimiters, text = told[1], text[told.end() :]
    limit = csv.field_size_limit(max(1, len(text)))  # of the whole process
    try:
        width, delimiter = max(
            ((len(next(records(d, strict=False), (0, []))[1]), d) for d in delimiters),
            key=lambda found: found[0],
        )
        header: list[str] = []
        for line, cells in records(delimiter, strict=True):
            if not header:
                header = [name.strip() for name in cells]
                named = [name for name in header if name]
                if len(set(named)) < len(named):
                    raise ConfigError(f"{where}: two columns have one name: {', '.join(named)}")
            elif len(cells) != width:
                raise ConfigError(
                    f"{where}, line {line}: {len(cells)} fields where the header has {width}; a "
                    f"text with {delimiter!r} in it must stand in quotes"
                )
            else:
                yield Row(dict(zip(header, cells, strict=True)), f"{where}, line {line}")
    finally:
        csv.field_size_limit(limit)
