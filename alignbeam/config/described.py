"""Settings told to people: each with what it may be, its default, its value and what it does.

What it does is the docstring of its table's class, section ``Attributes``; there is no second text.
"""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Collection, Iterator, Mapping
from datetime import date, time
from typing import Any

from alignbeam.config.checked import CheckedSettings

_WIDTH = 96


def toml(value: Any) -> str:
    """Return a value as TOML spells it.

    Raises
    ------
    TypeError
        TOML, or this, has no such value.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's strings are TOML's, but for DEL.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, date | time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{toml(str(k))} = {toml(v)}" for k, v in value.items()) + " }"
    raise TypeError(f"no TOML for {type(value).__name__}")


def meanings(cls: type[CheckedSettings]) -> dict[str, str]:
    """Return what each setting of a table does, in one paragraph; without docstrings, nothing.

    Names that a docstring lists together share their paragraph.
    """
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        text = inspect.cleandoc(base.__dict__.get("__doc__") or "")
        _, _, attributes = text.partition("Attributes\n----------\n")
        # Each entry is a line at the margin, and what is indented below it.
        for names, body in re.findall(r"^(\w[^:\n]*).*\n((?:[ ]+.*\n?|\n)+)", attributes, re.M):
            words = " ".join(body.split()).replace("``", "`")
            found.update(dict.fromkeys(re.split(r",\s*", names.strip()), words))
    return found


def settings_file(
    tables: Mapping[str, CheckedSettings], names: Collection[str] | None = None
) -> str:
    """Return a configuration file that explains itself.

    Parameters
    ----------
    tables : mapping of name to settings
    names : collection of ``table.key``, or None
        What is told; None tells everything. What several tables share is told once.

    Returns
    -------
    str
        TOML. A value that is not the default stands in it, a default is commented out, and so is
        a secret, which is not shown.
    """
    parts = []
    told: set[str] = set()
    for table, settings in tables.items():
        keys = [k for k in settings.known_keys() if names is None or f"{table}.{k}" in names]
        if not keys:
            continue
        entries = list(_entries(settings, keys, told))
        parts.append("\n".join([f"[{table}]", *entries]))
    return "\n\n".join(parts) + "\n"


def _holds_a_password(value: Any) -> bool:
    return isinstance(value, str) and re.match(r"https?://[^/]*@", value) is not None


def _entries(settings: CheckedSettings, keys: list[str], told: set[str]) -> Iterator[str]:
    """Yield the lines of a table; ``told`` are the explanations that stand above already."""
    cls = type(settings)
    default, explained = cls(), meanings(cls)
    for key in keys:
        words = explained.get(key, "")
        if words and words not in told:
            told.add(words)
            yield ""
            yield from textwrap.wrap(
                words, _WIDTH, initial_indent="# ", subsequent_indent="# ", break_long_words=False
            )
        value, usual = getattr(settings, key), getattr(default, key)
        if value is not None and (key in cls.secret_keys() or _holds_a_password(value)):
            yield f"# {key} = ...  # {cls.wanted(key)}; it is set, and not shown"
        elif value != usual:
            not_set = "not set" if usual is None else toml(usual)
            yield f"{key} = {toml(value)}  # {cls.wanted(key)}; default: {not_set}"
        elif value is None:
            yield f"# {key} = ...  # {cls.wanted(key)}; not set"
        else:
            yield f"# {key} = {toml(value)}  # {cls.wanted(key)}"
