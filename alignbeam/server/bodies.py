"""A request's bytes to a checked record: bounded, strict, and no surprise becomes a 500."""

from __future__ import annotations

import functools
import json
from typing import Any, Final, NoReturn, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from alignbeam.data_file import unique
from alignbeam.server.problems import Problem

Record = TypeVar("Record", bound=BaseModel)

#: Values in one body, those in lists and objects included; a long conversation has some thousand.
MAX_VALUES: Final = 1 << 14


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def parse_json(data: bytes) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    Problem
        400: more than ``MAX_VALUES`` values, not UTF-8, not JSON (NaN and Infinity are not), nested
        too deep, a name twice in one object, or no object.
    """
    _check_count(data)
    try:
        value = json.loads(
            data.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=unique
        )
        # A lone surrogate, anywhere, is no text; a tokenizer would break on it.
        json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise Problem(400, "invalid_json", "The body is nested too deep.") from error
    except ValueError as error:  # bad UTF-8 or JSON, surrogates, endless integers, names twice
        raise Problem(
            400, "invalid_json", "The body is not valid JSON in UTF-8, with every name once."
        ) from error
    if not isinstance(value, dict):
        raise Problem(400, "invalid_body", "The body must be a JSON object.")
    return value


def _check_count(data: bytes) -> None:
    """Refuse many small values before any is made: they cost far more than the bytes of a text."""
    # A backslash outside of a text is no JSON: the parser stops there, whatever is counted behind.
    unescaped = data.replace(rb"\\", b"").replace(rb"\"", b"")
    many = unescaped.count(b'"') > 4 * (MAX_VALUES + 1)  # each has a name and a text, if that
    if not many:
        outside = b"".join(unescaped.split(b'"')[::2])
        many = sum(map(outside.count, (b",", b"[", b"{"))) > MAX_VALUES
    if many:
        what = f"The body has too many values: at most {MAX_VALUES} are taken."
        raise Problem(400, "too_many_values", what)


def parse_as(model: type[Record], data: bytes) -> Record:
    """Read a JSON object as ``model``, which forbids unknown fields, as do the models in it.

    Raises
    ------
    Problem
        400, naming the first field that is wrong.
    """
    value = parse_json(data)
    # The clearest thing to say, wherever else the body may be wrong; and pydantic would make an
    # error of each.
    unknown = _unknown_field(model, value)
    if unknown is not None:
        field = _shown(unknown)
        raise Problem(400, "unknown_field", f"Unknown field: {field}", field)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _first_problem(error) from error


def _unknown_field(model: type[BaseModel], value: dict[str, Any]) -> str | None:
    """Return the path of the first field that ``model`` or a model in it has not."""
    for name, inner in _models_in(model).items():
        if isinstance(value.get(name), dict):
            unknown = _unknown_field(inner, value[name])
            if unknown is not None:
                return f"{name}.{unknown}"
    return next((name for name in value if name not in model.model_fields), None)


@functools.cache
def _models_in(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Return the fields of ``model`` that are models, or None, themselves."""
    found = {}
    for name, field in model.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found[name] = kind
    return found


def _first_problem(error: ValidationError) -> Problem:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    param = _path(first["loc"])
    if first["type"] == "missing":
        return Problem(400, "missing_field", f"Missing field: {param}", param)
    if first["type"] == "unsupported":
        return Problem(400, "unsupported_field", _printable(first["msg"]), param)
    return Problem(400, "invalid_value", f"{param}: {_printable(first['msg'])}", param)


def _path(place: tuple[int | str, ...]) -> str:
    # Names of union branches would only confuse; fields and indices are what the client wrote.
    words = [str(p) for p in place if isinstance(p, int) or not _is_branch(p)]
    return _shown(".".join(words))


def _shown(path: str) -> str:
    return _printable(path)[:200] or "body"


def _is_branch(name: str) -> bool:
    return name in ("str", "int", "float", "bool") or "[" in name


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
