"""What a judge is shown of a conversation and a candidate: one verdict each, the worst counts.

A single reading can be drowned: 1,400 harmless characters before the request, a long harmless
history, an answer in capitals. Each view takes one such cover away.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from alignbeam.judge.marks import segments
from alignbeam.judge.protocol import Conversation
from alignbeam.judge.windows import parts, sentences

#: Most parts that a text is cut into; a longer text is cut into longer parts.
MAX_PARTS: Final = 32
#: A text is set in capitals if it has this many cased letters, and this share of them is capital.
_LEAST_CASED: Final = 12
_CAPITALS: Final = 0.6

Shown = tuple[Conversation, str]


@dataclass(frozen=True, slots=True)
class Reach:
    """How much of a text a judge takes in at once.

    Attributes
    ----------
    request, candidate : callable
        Whether a text is short enough to be shown in one part.
    """

    request: Callable[[str], bool]
    candidate: Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class View:
    """One way of showing a conversation and its candidate.

    Attributes
    ----------
    name : str
        As ``JudgeConfig.views`` names it.
    show : callable
        ``show(conversation, candidate, reach)``: the pairs to judge; none where it would show
        what the whole conversation shows already.
    """

    name: str
    show: Callable[[Conversation, str, Reach], list[Shown]]


def _conversation(conversation: Conversation, candidate: str, reach: Reach) -> list[Shown]:
    return [(conversation, candidate)]


def _last_turn(conversation: Conversation, candidate: str, reach: Reach) -> list[Shown]:
    return [(conversation[-1:], candidate)]


def _reply(conversation: Conversation, candidate: str, reach: Reach) -> list[Shown]:
    return [((), candidate)]


def _request_parts(conversation: Conversation, candidate: str, reach: Reach) -> list[Shown]:
    if not conversation:
        return []
    role, text = conversation[-1]["role"], conversation[-1]["content"]
    cut = parts(text, reach.request, MAX_PARTS)
    return [([{"role": role, "content": part}], candidate) for part in cut if part != text]


def _last_sentence(conversation: Conversation, candidate: str, reach: Reach) -> list[Shown]:
    if not conversation:
        return []
    role, text = conversation[-1]["role"], conversation[-1]["content"]
    # Of a long message the last part shows it, with what little stands before it.
    if not reach.request(text) or len(found := sentences(text)) < 2:
        return []
    return [([{"role": role, "content": found[-1].strip()}], candidate)]


def _reply_parts(conversation: Conversation, candidate: str, reach: Reach) -> list[Shown]:
    cut = parts(candidate, reach.candidate, MAX_PARTS)
    if len(cut) == 1:
        return []
    return [(conversation[-1:], part) for part in cut]


def _turns(conversation: Conversation, candidate: str, reach: Reach) -> list[Shown]:
    return [(conversation[-1:], part) for part in segments(candidate)]


def _plain(conversation: Conversation, candidate: str, reach: Reach) -> list[Shown]:
    turns = [{"role": m["role"], "content": plain_letters(m["content"])} for m in conversation]
    return [(turns[-1:], plain_letters(candidate))]


#: Every view by name. A view that shows nothing new costs nothing.
VIEWS: Final = {
    view.name: view
    for view in (
        View("conversation", _conversation),
        View("last-turn", _last_turn),
        View("reply", _reply),
        View("request-parts", _request_parts),
        View("last-sentence", _last_sentence),
        View("reply-parts", _reply_parts),
        View("turns", _turns),
        View("plain-letters", _plain),
    )
}


def shown(
    views: Sequence[View], conversation: Conversation, candidate: str, reach: Reach
) -> list[tuple[str, Conversation, str]]:
    """Return all that ``views`` show, each pair once, after the name of the first that shows it."""
    found: dict[object, tuple[str, Conversation, str]] = {}
    for view in views:
        for turns, text in view.show(conversation, candidate, reach):
            pair = tuple((m["role"], m["content"]) for m in turns), text
            found.setdefault(pair, (view.name, turns, text))
    return list(found.values())


def plain_letters(text: str) -> str:
    """Write a text in ordinary letters: no look-alike widths, nothing invisible, no shouting."""
    visible = re.sub(r"(?<=\w)[^\w\s]+(?=\w)", lambda m: _without_format(m[0]), text)
    plain = unicodedata.normalize("NFKC", visible)
    if _latin(plain) == _latin(visible):
        plain = visible  # other signs are none of this view's business
    cased = [c for c in plain if c.isupper() or c.islower()]
    capitals = sum(c.isupper() for c in cased)
    if len(cased) >= _LEAST_CASED and capitals >= _CAPITALS * len(cased):
        plain = _sentence_case(plain.lower())
    return plain


def _sentence_case(text: str) -> str:
    # Word by word: a pattern that looks for what follows an end would walk through a run of
    # newlines from each of them.
    pieces = re.split(r"(\w+)", text)  # what is between words, and words, in turns
    for i in range(1, len(pieces), 2):
        between = pieces[i - 1]
        signs = between.rstrip()
        ended = signs.endswith((".", "!", "?")) or "\n" in between[len(signs) :]
        if ended or (i == 1 and not between):
            pieces[i] = pieces[i][0].upper() + pieces[i][1:]
    return "".join(pieces)


def _latin(text: str) -> list[str]:
    return [c for c in text if c.isascii() and c.isalpha()]


def _without_format(signs: str) -> str:
    return "".join(c for c in signs if unicodedata.category(c) != "Cf")
