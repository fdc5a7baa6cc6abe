"""Results as JSON: one object a line, strict JSON (no NaN), ASCII, so that any reader takes it."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

from alignbeam.cli.prompts import Request
from alignbeam.result import Result


def result_record(request: Request, result: Result, *, trace: bool) -> dict[str, Any]:
    """Return what ``--json`` prints for an answer; the trace only where asked for, it is long."""
    record: dict[str, Any] = {_key(request): request.prompt}
    record.update(dataclasses.asdict(result))
    for candidate, made in zip(record["candidates"], result.candidates, strict=True):
        candidate["score"] = made.score
        candidate["label_mass"] = made.label_mass
    if not trace:
        del record["trace"]
    return record


def error_record(request: Request, error: BaseException) -> dict[str, Any]:
    """Return what ``--json`` prints for a request that failed."""
    return {
        _key(request): request.prompt,
        "error": {"type": type(error).__name__, "message": str(error)},
    }


def dump(record: dict[str, Any]) -> str:
    """One line of JSON; a number that JSON cannot spell becomes null."""
    return json.dumps(_spellable(record), allow_nan=False)


def _key(request: Request) -> str:
    return "prompt" if isinstance(request.prompt, str) else "messages"


def _spellable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _spellable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_spellable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
