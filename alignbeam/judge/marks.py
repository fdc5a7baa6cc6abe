"""Lines that look like a judge's own: who speaks, where a block ends.

A guard's prompt is plain text around the candidate. A candidate that goes on with ``User: thanks``
and ``Agent: You are welcome`` would render byte for byte like a conversation whose last answer is
harmless. So such lines of the material are quoted, as in a letter, and never stand as the judge's
own; and the view ``turns`` shows what stands between them by itself.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Final

#: Who speaks in the formats that are known.
SPEAKERS: Final = (
    *("user", "human", "human user", "human question", "user message", "question", "request"),
    *("assistant", "agent", "ai", "ai assistant", "ai agent", "bot", "chatbot", "model"),
    *("chatbot response", "assistant message", "response", "reply", "answer", "generation"),
    *("system", "developer", "system message"),
)
#: Most segments of one candidate that are shown by themselves; the last holds all the rest.
MAX_SEGMENTS: Final = 8

_TAG: Final = re.compile(
    r"<\|[^|<>\n]{1,40}\|>|</?s>|\[/?INST\]|<</?SYS>>"
    r"|<(?:BEGIN|END)[ _][A-Z_ ]{1,30}>|</?(?:start|end)_of_\w{1,20}>",
    re.IGNORECASE,
)
_SPEAKS: Final = re.compile(rf"(?:{'|'.join(map(re.escape, sorted(SPEAKERS, key=len)))}):")


def bare(line: str) -> str:
    """Write a line so that equal-looking ones are equal: words and colons, one case."""
    plain = unicodedata.normalize("NFKC", line)
    plain = "".join(c for c in plain if unicodedata.category(c) not in ("Cf", "Mn"))
    plain = re.sub(r"[^\w:]+", " ", plain.casefold()).strip()
    return re.sub(r" *:", ":", plain)


def marks_of(template: str, speakers: Iterable[str]) -> tuple[str, ...]:
    """Return how the lines of a prompt begin, as ``bare`` writes them.

    A line that holds a placeholder counts up to it; one with a nonce not at all, for nobody can
    know it. What is left of a line without a word does not count.
    """
    found = {f"{bare(name)}:" for name in speakers}
    for line in template.splitlines():
        if "nonce}" in line:
            continue
        head = bare(re.split(r"\{\w+\}|(?<=\.) |(?<=:)", line)[0])
        if head.endswith(":") or " " in head:
            found.add(head)
    return tuple(sorted(found))


def quoted(text: str, marks: tuple[str, ...]) -> str:
    """Put ``> `` before each line of ``text`` that begins like one of ``marks``.

    All line breaks count that Unicode knows. Nothing else of the text changes.
    """
    if not marks:
        return text
    lines = text.splitlines(keepends=True)
    return "".join(f"> {line}" if bare(line).startswith(marks) else line for line in lines)


def segments(text: str) -> list[str]:
    """Return what stands between speakers' lines and control tags; nothing where there are none."""
    found = [""]
    for line in text.splitlines(keepends=True):
        spoken = _SPEAKS.match(bare(line))
        pieces = _TAG.split(line)
        if spoken or len(pieces) > 1:
            found.append("")
        if spoken:
            pieces[0] = re.split(r"[:\uff1a]", pieces[0], maxsplit=1)[-1]
        for n, piece in enumerate(pieces):
            if n:
                found.append("")
            found[-1] += piece
    if len(found) == 1:
        return []
    kept = [part.strip() for part in found if re.search(r"\w", part)]
    if len(kept) > MAX_SEGMENTS:
        kept[MAX_SEGMENTS - 1 :] = ["\n".join(kept[MAX_SEGMENTS - 1 :])]
    return kept
