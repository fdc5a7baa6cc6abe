"""The one reader of conversations: what callers, files and clients send, as plain messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from alignbeam.errors import PromptError

Message = dict[str, str]
Prompt = str | Sequence[Mapping[str, Any]]

_SYSTEM: Final = ("system", "developer")
ROLES: Final = (*_SYSTEM, "user", "assistant")
#: What a system message becomes in mid conversation.
_LATE: Final = "System message: "

#: Keys that clients replay and that ask for nothing.
_DROPPED: Final = (
    *(
        "name",
        "id",
        "annotations",
        "citations",
        "parsed",
        "cache_control",
        "provider_specific_fields",
    ),
    *("reasoning_content", "reasoning", "reasoning_details", "thinking_blocks"),
)
#: Keys that ask for what is not done here, unless they are empty.
_UNSUPPORTED: Final = ("tool_calls", "tool_call_id", "function_call", "audio", "images")
_KNOWN: Final = ("role", "content", "refusal", *_DROPPED, *_UNSUPPORTED)
#: Kinds of content parts that are not read, with ``input_`` before or ``_url`` behind them or not.
_NO_TEXT: Final = ("image", "audio", "video", "file", "document", "tool_use", "tool_result")

_Place = tuple[int | str, ...]


def as_messages(prompt: Prompt) -> list[Message]:
    """Read a prompt as messages ``{"role": "system" | "user" | "assistant", "content": ...}``.

    A string is one user message. Contents are text, or parts of text, which are joined. The system
    (or developer) messages that come first are joined to one. A later one is read as words of the
    user, marked ``System message:``, and joined to the user's turn before or behind it: so it
    keeps its place, no template refuses it, the judge sees it as part of the request, and text
    that an application puts in halfway (a document, a tool's output) gains no authority over what
    came first. Empty system and assistant messages are dropped, and so is what asks for nothing
    (names, annotations, thinking). A refusal counts as the assistant's words.

    Raises
    ------
    PromptError
        Naming the message and what is wrong with it, never its text: not the user's at the end, an
        empty user message, an unknown role or key, images, sound, tools, or what UTF-8 cannot
        spell.
    """
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes):
        raise PromptError(f"a prompt must be a string or a list of messages, got {type(prompt)}")
    if not prompt:
        raise PromptError("the list of messages is empty; give at least one user message")
    messages: list[Message] = []
    after_late = False
    for i, message in enumerate(prompt):
        role, text = _turn(message, i)
        if not text.strip():
            if role == "user":
                raise _wrong((i, "content"), "(user) is empty; give it some text or leave it out")
            continue
        last = messages[-1]["role"] if messages else "system"
        late = role == "system" and last != "system"
        if late:
            role, text = "user", _LATE + text
        if messages and role == last and (role == "system" or late or after_late):
            messages[-1]["content"] += f"\n\n{text}"
        else:
            messages.append({"role": role, "content": text})
        after_late = late
    if not messages or messages[-1]["role"] != "user":
        found = messages[-1]["role"] if messages else "nothing"
        raise PromptError(
            f"the last message must be the user's, got {found!r}; a prefilled answer is not taken"
        )
    return messages


def _turn(message: Any, i: int) -> tuple[str, str]:
    """Return role and text of one message."""
    if not isinstance(message, Mapping):
        what = f"must be a mapping with role and content, got {type(message).__name__}"
        raise _wrong((i,), what, "invalid_value")
    role = message.get("role")
    if role in ("tool", "function"):
        raise _unsupported((i, "role"), f"{role} messages are")
    if role not in ROLES:
        what = f"has no known role; known roles: {', '.join(ROLES)}"
        raise _wrong((i, "role"), what, "invalid_value")
    _check_keys((i,), message, _KNOWN)
    for key in _UNSUPPORTED:
        if message.get(key):
            raise _unsupported((i, key), f"{key} is")
    content = message.get("content")
    if isinstance(content, Sequence) and not isinstance(content, str | bytes):
        texts = [_part((i, "content", n), part) for n, part in enumerate(content)]
    else:
        texts = [_text((i, "content"), "" if content is None else content)]
    texts.append(_text((i, "refusal"), message.get("refusal") or ""))
    return "system" if role in _SYSTEM else role, "".join(texts)


def _part(place: _Place, part: Any) -> str:
    """Return the text of one content part."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(kind, str):
        raise _wrong(place, "must be an object with a type", "invalid_value")
    if kind in ("thinking", "redacted_thinking", "reasoning"):
        return ""
    key = "text" if kind in ("input_text", "output_text") else kind
    if key not in ("text", "refusal"):
        plain = kind.removeprefix("input_").removesuffix("_url")
        named = plain if plain in _NO_TEXT else "all but text"
        raise _unsupported(place, f"{named} parts are")
    _check_keys(place, part, ("type", key, "logprobs", *_DROPPED))
    return _text((*place, key), part.get(key))


def _text(place: _Place, text: object) -> str:
    if not isinstance(text, str):
        raise _wrong(place, f"must have text here, got {type(text).__name__}", "invalid_value")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _wrong(
            place,
            f"holds a lone surrogate at character {error.start}, which is no text; decode the "
            "input with errors='replace' first",
        ) from error
    return text


def _check_keys(place: _Place, given: Mapping[Any, Any], known: Sequence[str]) -> None:
    for key in given:
        if key not in known:
            name = str(key)[:60]
            raise _wrong((*place, name), f"has an unknown field {name!r}", "unknown_field")


def _unsupported(place: _Place, what: str) -> PromptError:
    return _wrong(place, f"cannot be read: {what} not supported", "unsupported_field")


def _wrong(place: _Place, what: str, code: str = "invalid_prompt") -> PromptError:
    where = f"message {place[0]}" + (f", part {place[2]}" if len(place) > 2 else "")
    return PromptError(f"{where} {what}", code, ".".join(map(str, place)))
