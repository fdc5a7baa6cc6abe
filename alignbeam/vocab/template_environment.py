"""Where chat templates run: transformers' environment, without transformers.

Its import takes a second, which the process that tries a template out would pay each time. The
tests compare what templates make of it with what transformers makes of it.
"""

from __future__ import annotations

import json
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace


class _Generation(Extension):
    """``{% generation %}`` marks answers for training; here it is passed over."""

    tags = {"generation"}  # noqa: RUF012  jinja2's interface

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Dict:
    """``dict``, without the attributes of a class."""

    def __call__(self, *args: Any, **keywords: Any) -> dict[Any, Any]:
        return dict(*args, **keywords)

    def fromkeys(self, *args: Any, **keywords: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **keywords)


class _Namespace(Namespace):
    """``namespace``, in which no underscored name can be stored."""

    def __init__(*args: Any, **keywords: Any) -> None:
        # No parameter is called self, for that is a name that a template may store.
        self, *given = args
        names = dict(*given, **keywords)
        for name in names:
            _check_stored(name)
        Namespace.__init__(self, names)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_stored(name)
        super().__setitem__(name, value)


def _check_stored(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot store {name!r}")


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


@lru_cache(1)
def environment() -> ImmutableSandboxedEnvironment:
    """Return the one environment, in which a template reaches nothing but what it is given."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    made.filters["tojson"] = _to_json
    made.globals.update(
        raise_exception=_raise_exception,
        strftime_now=lambda form: datetime.now().strftime(form),
        dict=_Dict(),
        namespace=_Namespace,
    )
    return made
