"""What the OpenAPI document says of each route."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from starlette.responses import Response

from alignbeam.server.gate import OPEN_PATHS
from alignbeam.server.openai_requests import ChatRequest, CompletionRequest

_ABOUT = "OpenAI-compatible; every answer was judged before it leaves."
_TEXT = {"type": "string"}
_NUMBER = {"type": "integer"}


def _object(optional: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    """Return the schema of an object; all properties are required but the optional ones."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "required": required, "properties": properties}


def _closed(**properties: Any) -> dict[str, Any]:
    return _object(**properties) | {"additionalProperties": False}


_PROBLEM = _closed(
    error=_closed(message=_TEXT, type=_TEXT, param={"type": ["string", "null"]}, code=_TEXT)
)
_WORDS = {
    400: "The request is wrong; `param` names the field.",
    401: "No API key, or a wrong one.",
    403: "Not from this host or page.",
    404: "No such route or model.",
    405: "Another method.",
    408: "The body took too long.",
    413: "The body is too large.",
    415: "The body is not declared as JSON.",
    429: "Too much for the audit log, or too fast; Retry-After says when to ask again.",
    431: "The headers are too large.",
    500: "A model or the server broke; no text left.",
    503: "No answer may leave now; Retry-After says when to ask again.",
}

#: Every error, in one shape, for every route.
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": words, "content": {"application/json": {"schema": _PROBLEM}}}
    for status, words in _WORDS.items()
}

_COUNT = _NUMBER | {"minimum": 0}
_USAGE = _object(prompt_tokens=_COUNT, completion_tokens=_COUNT, total_tokens=_COUNT)
_ENDING = {
    "finish_reason": {"enum": ["stop", "length", "content_filter"]},
    "alignbeam": {"type": "object"},
}
_MESSAGE = _object(role={"const": "assistant"}, content=_TEXT)
_CHAT_CHOICE = _object(("alignbeam",), index=_NUMBER, message=_MESSAGE, **_ENDING)
_TEXT_CHOICE = _object(("alignbeam",), index=_NUMBER, text=_TEXT, **_ENDING)


def _reply(choice: dict[str, Any]) -> dict[str, Any]:
    return _object(
        id=_TEXT,
        object=_TEXT,
        created=_NUMBER,
        model=_TEXT,
        choices={"type": "array", "minItems": 1, "items": choice},
        usage=_USAGE,
    )


def _inlined(model: type[BaseModel]) -> dict[str, Any]:
    """Return a model's JSON schema with its definitions put in place."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def expand(node: Any) -> Any:
        if isinstance(node, list):
            return [expand(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return expand(definitions[node["$ref"].rsplit("/", 1)[1]])
        return {key: expand(value) for key, value in node.items()}

    expanded: dict[str, Any] = expand(schema)
    return expanded


def _asked(
    model: type[BaseModel], choice: dict[str, Any], example: dict[str, Any]
) -> dict[str, Any]:
    return {
        "methods": ["POST"],
        "response_class": Response,
        "responses": {
            200: {
                "description": "A judged answer, whole or as server-sent events.",
                "content": {
                    "application/json": {"schema": _reply(choice)},
                    "text/event-stream": {"schema": _TEXT},
                },
            }
        },
        "openapi_extra": {
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": _inlined(model), "example": example}},
            }
        },
    }


def chat() -> dict[str, Any]:
    """Describe ``/v1/chat/completions``."""
    message = {"role": "user", "content": "What is 2 plus 3?"}
    return _asked(ChatRequest, _CHAT_CHOICE, {"model": "alignbeam", "messages": [message]})


def completion() -> dict[str, Any]:
    """Describe ``/v1/completions``."""
    example = {"model": "alignbeam", "prompt": "What is 2 plus 3?"}
    return _asked(CompletionRequest, _TEXT_CHOICE, example)


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


_MODEL = _object(id=_TEXT, object={"const": "model"}, created=_NUMBER, owned_by=_TEXT)


def models() -> dict[str, Any]:
    """Describe ``/v1/models``."""
    listing = _object(object={"const": "list"}, data={"type": "array", "items": _MODEL})
    return {"responses": {200: _json("The models.", listing)}}


def model() -> dict[str, Any]:
    """Describe ``/v1/models/{name}``."""
    return {"responses": {200: _json("The model.", _MODEL)}}


def status(words: str) -> dict[str, Any]:
    """Describe ``/health`` and ``/ready``."""
    states = {"enum": ["ok", "degraded", "down"]}
    schema = _object(status=states, reasons={"type": "array", "items": _TEXT})
    down = _json("It is not.", schema)
    return {"responses": {200: _json(words, schema), 503: down}}


def metrics() -> dict[str, Any]:
    """Describe ``/metrics``."""
    content = {"text/plain": {"schema": _TEXT}}
    return {"responses": {200: {"description": "Prometheus series.", "content": content}}}


def document(app: FastAPI) -> dict[str, Any]:
    """Return the whole document; every route but the open ones needs a key."""
    whole: dict[str, Any] = get_openapi(
        title=app.title, version=app.version, routes=app.routes, description=_ABOUT
    )
    components = whole.setdefault("components", {})
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in whole["paths"].items():
        for operation in operations.values():
            operation["security"] = [] if path in OPEN_PATHS else [{"key": []}]
    return whole
