"""The requests as pydantic models: every field of OpenAI's that we know, and no other.

A known field that is not supported takes its neutral values (what clients send by default) and
refuses the rest by name. This is the only module of the project that uses pydantic, which the web
framework brings.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NoReturn

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

_STRICT = ConfigDict(extra="forbid", strict=True)

#: Names in ``metadata`` and ``user`` are read by nobody; they are bounded all the same.
_Short = Annotated[str, Field(max_length=512)]


def _refuse(what: str) -> NoReturn:
    raise PydanticCustomError("unsupported", f"{what} is not supported")


def _neutral(what: str, *neutral: object) -> Any:
    """Return a validator that lets only ``neutral`` values pass."""

    def check(value: object) -> object:
        if not any(value == n and type(value) is type(n) for n in neutral):
            _refuse(what)
        return value

    return AfterValidator(check)


# Strict mode takes a JSON integer for a float, and no boolean.
_Number = float
_Off = Annotated[bool | None, _neutral("anything but false here", None, False)]
_Zero = Annotated[_Number | None, _neutral("a penalty other than 0", None, 0.0)]
_NoTools = Annotated[list[Any] | None, _neutral("tools", None, [])]
_Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class TextPart(BaseModel):
    """A part of a message: text is all we take."""

    model_config = _STRICT
    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One message of a conversation."""

    model_config = _STRICT
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1, fail_fast=True)]
    name: Annotated[_Short | None, _neutral("a name", None)] = None
    refusal: Annotated[_Short | None, _neutral("a refusal in a message", None)] = None
    tool_calls: _NoTools = None

    def plain(self) -> dict[str, str]:
        """Return the message as the controller takes it."""
        role = "system" if self.role == "developer" else self.role
        content = self.content
        if not isinstance(content, str):
            content = "".join(part.text for part in content)
        return {"role": role, "content": content}


class StreamOptions(BaseModel):
    """What a stream carries besides the text."""

    model_config = _STRICT
    include_usage: bool = False
    include_obfuscation: _Off = None


class TextFormat(BaseModel):
    """The only response format there is."""

    model_config = _STRICT
    type: Annotated[str, _neutral("any response format but text", "text")]


class Extension(BaseModel):
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
    alignbeam: Extension | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, however they were given."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class ChatRequest(_Common):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: _Off = None
    top_logprobs: Annotated[int | None, _neutral("top_logprobs", None, 0)] = None
    tools: _NoTools = None
    tool_choice: Annotated[str | None, _neutral("tool_choice", None, "none")] = None
    parallel_tool_calls: bool | None = None
    functions: _NoTools = None
    function_call: Annotated[str | None, _neutral("function_call", None, "none")] = None
    response_format: TextFormat | None = None
    metadata: dict[_Short, _Short] | None = None
    store: _Off = None
    chat_template_kwargs: TemplateArguments | None = None


class CompletionRequest(_Common):
    """``POST /v1/completions``: each prompt is one user message."""

    prompt: str | Annotated[list[str], Field(min_length=1, fail_fast=True)]
    echo: _Off = None
    suffix: Annotated[str | None, _neutral("suffix", None, "")] = None
    best_of: Annotated[int | None, _neutral("best_of other than 1", None, 1)] = None
    logprobs: Annotated[int | None, _neutral("logprobs", None)] = None
