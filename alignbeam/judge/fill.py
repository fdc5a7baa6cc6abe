"""Filling prompt templates, and writing a conversation down as plain text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from alignbeam.judge.marks import quoted
from alignbeam.judge.protocol import Conversation

#: How a request of several turns is written down.
TURN_NAMES: Final = {"system": "System", "user": "User", "assistant": "Assistant"}


def placeholders(template: str, known: tuple[str, ...]) -> list[str]:
    """Return which of the ``known`` placeholders occur, in order, repeated as they are."""
    return re.findall(r"\{(" + "|".join(known) + r")\}", template)


def fill(template: str, values: Mapping[str, str]) -> str:
    """Replace each ``{key}`` of ``values`` once, literally.

    One pass: braces inside a value stay as they are, so that a candidate that spells
    ``{nonce}`` does not learn it. Braces around anything else stay too.
    """
    pattern = r"\{(" + "|".join(map(re.escape, values)) + r")\}"
    return re.sub(pattern, lambda match: values[match[1]], template)


def transcript(conversation: Conversation, names: Mapping[str, str], marks: tuple[str, ...]) -> str:
    """Write messages as ``Name: text`` paragraphs; ``names`` maps each role to its name.

    Lines of the messages that begin like one of ``marks`` are quoted: see ``quoted``.
    """
    return "\n\n".join(f"{names[m['role']]}: {quoted(m['content'], marks)}" for m in conversation)


def request_text(conversation: Conversation, marks: tuple[str, ...] = ()) -> str:
    """Return what was asked: the message itself if there is one only, else a transcript."""
    if len(conversation) == 1:
        return quoted(conversation[0]["content"], marks)
    return transcript(conversation, TURN_NAMES, marks)
