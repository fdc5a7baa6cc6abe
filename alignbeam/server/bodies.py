"""A request's bytes to a checked record: bounded, strict, and no surprise becomes a 500."""

from __future__ import annotations

import json
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from alignbeam.data_file import unique
from alignbeam.server.problems import Problem

Record = TypeVar("Record", bound=BaseModel)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def parse_json(data: bytes) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    Problem
        400: not UTF-8, not JSON (NaN and Infinity are not), nested too deep, a name twice in
        one object, or no object.
    """
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


def parse_as(model: type[Record], data: bytes) -> Record:
    """Read a JSON object as ``model``.

    Raises
    ------
    Problem
        400, naming the first field that is wrong.
    """
    value = parse_json(data)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _first_problem(error) from error


def _first_problem(error: ValidationError) -> Problem:
    errors = error.errors(include_url=False, include_input=False, include_context=False)
    # An unknown field is the clearest thing to say, wherever else the body may be wrong.
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    param = _path(first["loc"])
    if first["type"] == "extra_forbidden":
        return Problem(400, "unknown_field", f"Unknown field: {param}", param)
    if first["type"] == "missing":
        return Problem(400, "missing_field", f"Missing field: {param}", param)
    if first["type"] == "unsupported":
        return Problem(400, "unsupported_field", _printable(first["msg"]), param)
    return Problem(400, "invalid_value", f"{param}: {_printable(first['msg'])}", param)


def _path(place: tuple[int | str, ...]) -> str:
    # Names of union branches would only confuse; fields and indices are what the client wrote.
    words = [str(p) for p in place if isinstance(p, int) or not _is_branch(p)]
    return _printable(".".join(words))[:200] or "body"


def _is_branch(name: str) -> bool:
    return name in ("str", "int", "float", "bool") or "[" in name


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
