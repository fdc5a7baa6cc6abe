"""Settings: every value checked, unknown keys refused, one road from file, environment and options.

``BeamConfig`` steers one answer, ``GateConfig`` says which need no steering, ``RoleConfig`` how one
model is loaded and prompted, ``JudgeConfig`` adds what only the judge has, ``ServerConfig`` and
``EvalConfig`` are the operator's and the evaluator's. ``Settings`` is all of them, as a TOML file
holds them.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

from alignbeam.config.beam import (
    AnchorTokens,
    BeamConfig,
    BeamCount,
    Count,
    Harm,
    Margin,
    Share,
    Whole,
)
from alignbeam.config.checked import CheckedSettings, Range, suggest
from alignbeam.config.described import settings_file, toml
from alignbeam.config.gate import GateConfig
from alignbeam.config.tables import EvalConfig, JudgeConfig, RoleConfig, ServerConfig, Settings
from alignbeam.errors import ConfigError

__all__ = [
    "AnchorTokens",
    "BeamConfig",
    "BeamCount",
    "CheckedSettings",
    "Count",
    "EvalConfig",
    "GateConfig",
    "Harm",
    "JudgeConfig",
    "Margin",
    "Range",
    "RoleConfig",
    "ServerConfig",
    "Settings",
    "Share",
    "Whole",
    "from_assignments",
    "from_flat",
    "load_settings",
    "merged_tables",
    "names_of",
    "read_value",
    "settings_file",
    "suggest",
    "toml",
]

#: Values as given, by table and key.
Tables = dict[str, dict[str, Any]]

_TABLES: dict[str, type[CheckedSettings]] = get_type_hints(Settings)
_ROLES = ("target", "anchor", "judge")
_PREFIX = "ALIGNBEAM_"

#: Flat names, and the ``table.key`` that they set.
_SHORT: dict[str, tuple[str, ...]] = {
    **{key: (f"beam.{key}",) for key in BeamConfig.known_keys()},
    **{role: (f"{role}.model",) for role in _ROLES},
    **{key: tuple(f"{role}.{key}" for role in _ROLES) for key in ("device", "dtype")},
    "judge_kind": ("judge.kind",),
}
_DOTTED = [f"{table}.{key}" for table, cls in _TABLES.items() for key in cls.known_keys()]


def read_value(text: str) -> Any:
    """Return what a person typed: TOML where it is a value of it, else the text itself."""
    try:
        read = tomllib.loads(f"v = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return read["v"] if len(read) == 1 else text


def from_flat(values: Mapping[str, Any]) -> Tables:
    """Sort flat names into tables.

    A name is ``table.key``, a key of ``[beam]`` by itself, ``target``, ``anchor`` or ``judge``
    (the model), ``judge_kind``, or ``device`` or ``dtype`` (of all three models); ``-`` is as
    good as ``_``. Of two names for the same setting the later wins.

    Raises
    ------
    ConfigError
        A name that there is not, with the nearest one that there is.
    """
    tables: Tables = {}
    for given, value in values.items():
        name = given.replace("-", "_")
        places = (name,) if name in _DOTTED else _SHORT.get(name)
        if places is None:
            raise ConfigError(f"unknown setting {given!r}{_nearest(name)}")
        for place in places:
            table, _, key = place.partition(".")
            tables.setdefault(table, {})[key] = value
    return tables


def names_of(given: Iterable[str]) -> list[str]:
    """Return the ``table.key`` that each of ``given`` names: a table, a key of any, or one itself.

    What ``from_flat`` knows by a shorter name goes by that as well.

    Raises
    ------
    ConfigError
        A name that there is not, with the nearest one that there is.
    """
    found = []
    for text in given:
        name = text.replace("-", "_")
        if name in _TABLES:
            found += [dotted for dotted in _DOTTED if dotted.startswith(f"{name}.")]
        elif name in _DOTTED:
            found.append(name)
        elif places := [dotted for dotted in _DOTTED if dotted.endswith(f".{name}")]:
            found += places
        elif name in _SHORT:
            found += _SHORT[name]
        else:
            raise ConfigError(f"unknown setting {text!r}{_nearest(name, _TABLES)}")
    return found


def from_assignments(texts: Iterable[str]) -> dict[str, Any]:
    """Read ``NAME=VALUE`` texts into flat names and values.

    Raises
    ------
    ConfigError
        Not of that form.
    """
    flat: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"a setting is written like temperature=0.7; got {text!r}")
        flat[name.strip()] = read_value(value)
    return flat


def _place_of(name: str, value: object) -> str:
    homes = [table for table, settings in _TABLES.items() if name in settings.known_keys()]
    if homes and not isinstance(value, Mapping):
        return f"; it belongs under [{homes[0]}]"
    return suggest(name, _TABLES)


def merged_tables(
    path: str | Path | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Tables:
    """Return what is set at all, defaults left out; arguments and errors as ``load_settings``."""
    merged: Tables = {table: {} for table in _TABLES}
    sources = (
        (f"{path}: ", {} if path is None else _from_file(path)),
        ("environment: ", _from_environment(os.environ if environ is None else environ)),
        ("", overrides or {}),
    )
    for place, tables in sources:
        for table, values in tables.items():
            if table not in _TABLES:
                raise ConfigError(f"{place}unknown table [{table}]{_place_of(table, values)}")
            if not isinstance(values, Mapping):
                raise ConfigError(f"{place}{table} must be a table, written [{table}]")
            _TABLES[table].check_each(values, f"{place}[{table}]: ")
            merged[table].update(values)
    return merged


def load_settings(
    path: str | Path | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Merge ``overrides`` (command line) over the environment over a TOML file over defaults.

    Parameters
    ----------
    path : str, Path or None
        TOML file with any of the tables that ``Settings`` has as fields.
    overrides : mapping of table to mapping
        Values that win, such as ``{"beam": {"alpha": 0.3}}``; ``from_flat`` makes them.
    environ : mapping or None
        ``os.environ`` where None. ``ALIGNBEAM_BEAM_ALPHA`` sets ``beam.alpha``, and so on.

    Raises
    ------
    ConfigError
        A file that cannot be read, an unknown table or key, a value of the wrong type or range.
    """
    merged = merged_tables(path, overrides, environ)
    parts: dict[str, Any] = {
        table: cls.from_mapping(merged[table], where=f"[{table}]") for table, cls in _TABLES.items()
    }
    return Settings(**parts)


def _from_file(path: str | Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def _from_environment(environ: Mapping[str, str]) -> Tables:
    """``ALIGNBEAM_BEAM_ALPHA=0.3`` sets ``beam.alpha``; other variables are not ours to read."""
    found: Tables = {}
    for name, text in environ.items():
        table, _, key = name.removeprefix(_PREFIX).lower().partition("_")
        if name.startswith(_PREFIX) and key and table in _TABLES:
            found.setdefault(table, {})[key] = read_value(text)
    return found


def _nearest(name: str, more: Iterable[str] = ()) -> str:
    """Return the end of an error about ``name``; a bare key is looked for in every table."""
    same = [dotted for dotted in _DOTTED if dotted.endswith(f".{name}")]
    near = same or difflib.get_close_matches(name, [*more, *_SHORT, *_DOTTED], n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    others = ", ".join(f"[{table}]" for table in _TABLES if table != "beam")
    return f"; known: {', '.join(sorted(_SHORT))}, and TABLE.KEY of {others}"
