"""Answers in OpenAI's shapes: whole ones, and the frames of streams."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from alignbeam.result import FinishReason
from alignbeam.server.job import Delivery

Kind = Literal["chat", "text"]

_REASONS: dict[FinishReason, str] = {
    "stop": "stop",
    "stop_string": "stop",
    "length": "length",
    "content_filter": "content_filter",
    "dropped": "length",  # no answer's
}
_WORDS = re.compile(r"\s*\S+|\s+\Z")
DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": waiting for the judge\n\n"


@dataclass(frozen=True, slots=True)
class Shape:
    """One reply's constant parts: the id is the same in every frame."""

    kind: Kind
    model: str
    include_usage: bool = False
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def _head(self, *, stream: bool) -> dict[str, Any]:
        if self.kind == "text":
            name = "text_completion"
        else:
            name = "chat.completion.chunk" if stream else "chat.completion"
        return {"id": self.id, "object": name, "created": self.created, "model": self.model}

    def whole(self, answers: Sequence[Delivery], prompts: int, *, explain: bool) -> dict[str, Any]:
        """Return the body of a reply that is not streamed."""
        choices = []
        for index, answer in enumerate(answers):
            result = answer.result
            choice: dict[str, Any] = {"index": index, "logprobs": None}
            if self.kind == "chat":
                choice["message"] = {
                    "role": "assistant",
                    "content": result.text,
                    "refusal": None,
                }
            else:
                choice["text"] = result.text
            choice["finish_reason"] = _REASONS[result.finish_reason]
            if explain:
                choice["alignbeam"] = explanation(answer)
            choices.append(choice)
        return {
            **self._head(stream=False),
            "choices": choices,
            "usage": usage(answers, prompts),
        }

    def role_frame(self, index: int) -> bytes:
        """Return the first frame of a choice: its role, and no text."""
        return self._choice(index, {"role": "assistant", "content": ""}, "", None)

    def text_frames(self, index: int, text: str, words: int) -> Iterator[bytes]:
        """Yield a text in frames of so many words: frames are what costs, not tokens."""
        for piece in pieces(text, words):
            yield self._choice(index, {"content": piece}, piece, None)

    def last_frame(self, index: int, answer: Delivery, *, explain: bool) -> bytes:
        """Return the frame that says why a choice ended."""
        extra = {"alignbeam": explanation(answer)} if explain else {}
        return self._choice(index, {}, "", _REASONS[answer.result.finish_reason], **extra)

    def usage_frame(self, answers: Sequence[Delivery], prompts: int) -> bytes:
        """Return the frame that only counts."""
        return _data({**self._head(stream=True), "choices": [], "usage": usage(answers, prompts)})

    def _choice(
        self, index: int, delta: dict[str, Any], text: str, reason: str | None, **extra: Any
    ) -> bytes:
        choice: dict[str, Any] = {"index": index, "logprobs": None, "finish_reason": reason}
        if self.kind == "chat":
            choice["delta"] = delta
        else:
            choice["text"] = text
        choice.update(extra)
        frame = {**self._head(stream=True), "choices": [choice]}
        if self.include_usage:
            frame["usage"] = None
        return _data(frame)


def error_frame(body: dict[str, Any]) -> bytes:
    """Return the frame of a failure after the stream began."""
    return _data(body)


def _data(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def pieces(text: str, words: int) -> Iterator[str]:
    """Yield ``text`` in pieces of ``words`` words, blanks kept."""
    found = _WORDS.findall(text)
    for start in range(0, len(found), words):
        yield "".join(found[start : start + words])


def usage(answers: Sequence[Delivery], prompts: int) -> dict[str, int]:
    """Count tokens; the choices of one prompt share it."""
    each = max(1, len(answers) // max(1, prompts))
    prompt = sum(answer.result.prompt_tokens for answer in answers[::each])
    completion = sum(answer.result.completion_tokens for answer in answers)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def explanation(answer: Delivery) -> dict[str, Any]:
    """Return why this answer, as ``Result.public`` tells it, and how long it took."""
    told = answer.result.public()
    spent = {"queued": round(answer.queued_ms, 3), "total": round(answer.total_ms, 3)}
    times = {**told["timings_ms"], **spent}
    return {**told, "fail_open": answer.fail_open, "timings_ms": times}
