"""The requests as pydantic models: every field of OpenAI's that we know, and no other.

A known field that is not supported takes its neutral values (what clients send by default) and
refuses the rest by name. This is the only module of the project that uses pydantic, which the web
framework brings.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NoReturn

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from alignbeam.models.conversation import ROLES

_STRICT = ConfigDict(extra="forbid", strict=True)

#: Names in ``metadata`` and ``user`` are read by nobody; they are bounded all the same.
_Short = Annotated[str, Field(max_length=512)]
#: Names in ``metadata``, as OpenAI's.
_MAX_METADATA = 16


def _refuse(what: str) -> NoReturn:
    raise PydanticCustomError("unsupported", f"{what} is not supported")


def _neutral(what: str, *neutral: object) -> Any:
    """Return a validator that lets only ``neutral`` values pass."""

    def check(value: object) -> object:
        if not any(value == n and type(value) is type(n) for n in neutral):
            _refuse(what)
        return value

    return AfterValidator(check)


def _few(value: object) -> object:
    """Refuse an object of many names before each of them is looked at."""
    if isinstance(value, dict) and len(value) > _MAX_METADATA:
        raise PydanticCustomError(
            "too_long",
            "should have at most {most} names, not {count}",
            {"most": _MAX_METADATA, "count": len(value)},
        )
    return value


# Strict mode takes a JSON integer for a float, and no boolean.
_Number = float
_Off = Annotated[bool | None, _neutral("anything but false here", None, False)]
_Zero = Annotated[_Number | None, _neutral("a penalty other than 0", None, 0.0)]
_NoTools = Annotated[list[Any] | None, _neutral("tools", None, [])]
_Metadata = Annotated[dict[_Short, _Short], Field(max_length=_MAX_METADATA), BeforeValidator(_few)]
_Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]


#: What a message looks like, for the document; ``as_messages`` reads it.
_MessageObject = Annotated[
    dict[str, Any],
    WithJsonSchema(
        {
            "type": "object",
            "required": ["role"],
            "properties": {
                "role": {"enum": list(ROLES)},
                "content": {
                    "anyOf": [
                        {"type": "string"},
                        {"type": "array", "items": {"type": "object", "required": ["type"]}},
                        {"type": "null"},
                    ]
                },
            },
        }
    ),
]


class StreamOptions(BaseModel):
    """What a stream carries besides the text."""

    model_config = _STRICT
    include_usage: bool = False
    include_obfuscation: _Off = None


class TextFormat(BaseModel):
    """The only response format there is."""

    model_config = _STRICT
    type: Annotated[str, _neutral("any response format but text", "text")]


class AlignBeamFields(BaseModel):
    """The ``alignbeam`` object of a request; the operator says which of it is open."""

    model_config = _STRICT
    alpha: Annotated[_Number, Field(ge=0, le=1)] | None = None
    mix_steps: Annotated[int, Field(ge=0, le=4096)] | None = None
    beams: Annotated[int, Field(ge=1, le=8)] | None = None
    policy: Literal["full", "chunked"] | None = None
    explain: bool = False


class TemplateArguments(BaseModel):
    """The template arguments that are let through: none that changes what is rendered."""

    model_config = _STRICT
    enable_thinking: _Off = None


class _Common(BaseModel):
    """What chat and plain completions share."""

    model_config = _STRICT
    model: Annotated[str, Field(min_length=1, max_length=256)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[_Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[_Number, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    seed: _Seed | None = None
    stop: str | Annotated[list[str], Field(fail_fast=True)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: _Short | None = None
    frequency_penalty: _Zero = None
    presence_penalty: _Zero = None
    logit_bias: Annotated[dict[str, Any] | None, _neutral("logit_bias", None, {})] = None
    alignbeam: AlignBeamFields | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, however they were given."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class ChatRequest(_Common):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[_MessageObject], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: _Off = None
    top_logprobs: Annotated[int | None, _neutral("top_logprobs", None, 0)] = None
    tools: _NoTools = None
    tool_choice: Annotated[Any, _neutral("tool_choice", None, "none", "auto")] = None
    parallel_tool_calls: bool | None = None
    functions: _NoTools = None
    function_call: Annotated[Any, _neutral("function_call", None, "none", "auto")] = None
    modalities: Annotated[Any, _neutral("anything but text here", None, ["text"])] = None
    audio: Annotated[Any, _neutral("audio", None)] = None
    prediction: Annotated[Any, _neutral("prediction", None)] = None
    web_search_options: Annotated[Any, _neutral("web_search_options", None)] = None
    verbosity: Annotated[Any, _neutral("verbosity other than medium", None, "medium")] = None
    reasoning_effort: Annotated[
        Any, _neutral("reasoning_effort other than none or medium", None, "none", "medium")
    ] = None
    response_format: TextFormat | None = None
    # None of these changes an answer, and none is kept.
    metadata: _Metadata | None = None
    store: bool | None = None
    service_tier: _Short | None = None
    prompt_cache_key: _Short | None = None
    prompt_cache_retention: _Short | None = None
    safety_identifier: _Short | None = None
    chat_template_kwargs: TemplateArguments | None = None


class CompletionRequest(_Common):
    """``POST /v1/completions``: each prompt is one user message."""

    prompt: str | Annotated[list[str], Field(min_length=1, fail_fast=True)]
    echo: _Off = None
    suffix: Annotated[str | None, _neutral("suffix", None, "")] = None
    best_of: Annotated[int | None, _neutral("best_of other than 1", None, 1)] = None
    logprobs: Annotated[int | None, _neutral("logprobs", None)] = None
