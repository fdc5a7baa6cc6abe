"""Settings that check themselves: a field's annotation says what it may hold."""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin, get_type_hints

from alignbeam.errors import ConfigError


def suggest(name: str, known: Iterable[str]) -> str:
    """Return the end of an error about an unknown ``name``: the nearest known one, or all."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(names)}"


@dataclass(frozen=True)
class Range:
    """Bounds of a number, both included: ``Annotated[float, Range(0, 1)]``."""

    low: float
    high: float | None = None

    def __contains__(self, value: float) -> bool:
        """Whether ``value`` lies within; NaN does not."""
        return self.low <= value and (self.high is None or value <= self.high)

    def __str__(self) -> str:
        return f"at least {self.low}" if self.high is None else f"in {self.low}..{self.high}"


@dataclass(frozen=True, kw_only=True)
class CheckedSettings:
    """Base of the settings classes: frozen dataclasses whose annotations are checked.

    Understood are ``bool``, ``int``, ``float`` and ``str``, ``Literal`` of strings, ``Mapping``,
    ``Annotated[number, Range(low, high)]``, ``tuple[item, ...]`` (a list, or a single string,
    becomes one; its strings must not be empty), and ``| None`` behind any of them. What several
    fields must obey together belongs into a subclass's ``__post_init__``, after this one's.

    Raises
    ------
    ConfigError
        A value of the wrong type or out of range.
    """

    def __post_init__(self) -> None:
        for name, check in self._checks().items():
            value = getattr(self, name)
            checked = check(name, value)
            if checked is not value:
                object.__setattr__(self, name, checked)

    @classmethod
    def secret_keys(cls) -> set[str]:
        """Names of the settings that are shown to nobody."""
        return {field.name for field in dataclasses.fields(cls) if not field.repr}

    @classmethod
    def wanted(cls, name: str) -> str:
        """Return what a setting may be, in words: ``a number in 0..1``."""
        return cls._checks()[name].wanted

    @classmethod
    @functools.cache
    def _checks(cls) -> dict[str, _Check]:
        """Return the check of each field; read once a class, for requests copy their settings."""
        hints = get_type_hints(cls, include_extras=True)
        return {field.name: _check_of(hints[field.name]) for field in dataclasses.fields(cls)}

    @classmethod
    def known_keys(cls) -> list[str]:
        """Names of all settings."""
        return list(cls._checks())

    @classmethod
    def refuse_unknown(cls, names: Iterable[str], where: str = "") -> None:
        """Raise ``ConfigError`` for the first of ``names`` that is no setting."""
        known = cls._checks()
        for name in names:
            if name not in known:
                raise ConfigError(f"{where}unknown setting {name!r}{suggest(name, known)}")

    @classmethod
    def check_each(cls, values: Mapping[str, Any], where: str = "") -> None:
        """Check ``values`` one by one, as those of one of several sources; ``where`` names it.

        Raises
        ------
        ConfigError
            An unknown key, a wrong type or a value out of range.
        """
        cls.refuse_unknown(values, where)
        for name, value in values.items():
            try:
                cls._checks()[name](name, value)
            except ConfigError as error:
                raise ConfigError(f"{where}{error}") from None

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str = "") -> Self:
        """Build from a mapping such as a TOML table; ``where`` names it in errors.

        Raises
        ------
        ConfigError
            An unknown key, a wrong type or a value out of range.
        """
        place = f"{where}: " if where else ""
        cls.refuse_unknown(values, place)
        try:
            return cls(**values)
        except ConfigError as error:
            raise ConfigError(f"{place}{error}") from None

    def replace(self, **changes: Any) -> Self:
        """Return a copy with ``changes``; unknown names are refused."""
        self.refuse_unknown(changes)
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True)
class _Check:
    """What a field may hold."""

    wanted: str
    #: Returns the value of a field of that name as it is kept, or raises ``ConfigError``.
    read: Callable[[str, Any], Any]

    def __call__(self, name: str, value: Any) -> Any:
        return self.read(name, value)


_WANTED: dict[Any, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    Mapping: "a table",
}


def _check_of(hint: Any) -> _Check:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        (present,) = (part for part in inner if part is not NoneType)
        return _optional(_check_of(present))
    if origin is Literal:
        return _choice(inner)
    if origin is tuple:
        return _sequence(get_args(inner[0]))
    if origin is Annotated:
        return _typed(inner[0], inner[1])
    return _typed(origin or hint, None)


def _optional(check: _Check) -> _Check:
    return _Check(check.wanted, lambda name, value: None if value is None else check(name, value))


def _choice(choices: tuple[str, ...]) -> _Check:
    wanted = f"one of {', '.join(choices)}"

    def read(name: str, value: Any) -> Any:
        if value not in choices:
            raise ConfigError(f"{name} must be {wanted}, got {value!r}")
        return value

    return _Check(wanted, read)


def _sequence(choices: tuple[str, ...]) -> _Check:
    """Strings, all of ``choices`` where there are any."""
    wanted = f"any of {', '.join(choices)}" if choices else "non-empty strings"

    def read(name: str, value: Any) -> Any:
        items = (value,) if isinstance(value, str) else value
        if not isinstance(items, list | tuple):
            raise ConfigError(f"{name} must be a list of strings, got {value!r}")
        for item in items:
            if not isinstance(item, str) or not item or (choices and item not in choices):
                raise ConfigError(f"{name} must hold {wanted}, got {item!r}")
        return tuple(items)

    return _Check(f"a list of {wanted}", read)


def _typed(kind: Any, bounds: Range | None) -> _Check:
    accepted = (int, float) if kind is float else kind
    wanted = _WANTED[kind]

    def read(name: str, value: Any) -> Any:
        # True is an int to Python; to a reader of the file it is not.
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise ConfigError(f"{name} must be {wanted}, got {value!r}")
        if bounds is not None and value not in bounds:
            raise ConfigError(f"{name} must be {bounds}, got {value}")
        # Whoever computes with it is to find what the annotation says.
        return _as_float(name, value) if kind is float else value

    return _Check(wanted if bounds is None else f"{wanted} {bounds}", read)


def _as_float(name: str, value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:
        raise ConfigError(f"{name} must be a number that a float holds") from None
