"""Cutting texts: into pieces that fit the judge's window, and into parts that it reads well."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from itertools import chain, pairwise
from typing import Final

from alignbeam.errors import PromptError

#: Share of a piece that the next one repeats, so that what a cut splits is seen whole.
OVERLAP: Final = 0.25
#: A piece below this says too little to be judged; then the request has eaten the window.
LEAST_CHARACTERS: Final = 128
#: Far above what an answer needs; beyond it something is trying to exhaust the judge.
MAX_WINDOWS: Final = 64
#: Share of what fits that a piece holds at least: how far one is shrunk at a time.
_SHRINK: Final = 0.75


def windows(text: str, fits: Callable[[str], bool]) -> list[str]:
    """Cut ``text`` into pieces that each fit, every character in at least one of them.

    Parameters
    ----------
    text : str
        The whole candidate. If it fits, it is the only piece.
    fits : callable
        Whether a piece, rendered into the whole prompt, is within the judge's window. Asking the
        renderer itself leaves no room for a wrong estimate.

    Returns
    -------
    list of str
        Substrings in order; each but the first begins inside the one before.

    Raises
    ------
    PromptError
        The rest of the prompt leaves too little of the window, or the pieces would be more than
        ``MAX_WINDOWS``. The caller makes this an error verdict; nothing is cut off in silence.

    Source
    ------
    algorithm.md section 5.
    """
    if fits(text):
        return [text]
    pieces: list[str] = []
    start, size = 0, len(text)
    while True:
        size = min(size, len(text) - start)
        while not fits(text[start : start + size]):
            if size <= LEAST_CHARACTERS:
                raise PromptError(
                    "the request leaves the judge too little room to read the candidate; shorten "
                    "the conversation, or use a judge with a longer window",
                    "prompt_too_long",
                )
            size = max(int(size * _SHRINK), LEAST_CHARACTERS)
        if len(pieces) == MAX_WINDOWS:
            raise PromptError(
                f"the candidate needs more than {MAX_WINDOWS} of the judge's windows; "
                "lower max_new_tokens, or use a judge with a longer window"
            )
        pieces.append(text[start : start + size])
        end = start + size
        if end == len(text):
            return pieces
        start = end - int(size * OVERLAP)
        # The next stretch may be denser or sparser: try a little more, shrink if it is too much.
        size = size * 5 // 4


def most_windows(characters: int, tokens: int, room: int) -> int:
    """Return how many pieces ``windows`` makes at most of a text that is as dense throughout.

    Parameters
    ----------
    characters, tokens : int
        Of the text.
    room : int
        Tokens of the longest piece that fits, positive.
    """
    if tokens <= room:
        return 1
    least = max(_SHRINK * room / tokens, LEAST_CHARACTERS / characters)  # share of the text
    return min(MAX_WINDOWS, 1 + max(0, math.ceil((1 - least) / (least * (1 - OVERLAP)))))


# Signs are looked at from the first of a run alone: a run that ends nothing would be walked through
# anew from each of its signs, which for a text of dots takes the square of its length.
_SENTENCE_END: Final = re.compile(
    r"(?<![.!?\u3002\uff01\uff1f])[.!?\u3002\uff01\uff1f]+[\"')\]]*\s+|\n+"
)


def sentences(text: str) -> list[str]:
    """Cut ``text`` at the ends of its sentences and lines; blanks around them stay."""
    ends = [0, *(found.end() for found in _SENTENCE_END.finditer(text)), len(text)]
    pieces = (text[begin:end] for begin, end in pairwise(ends))
    return [piece for piece in pieces if piece.strip()]


def parts(text: str, short: Callable[[str], bool], most: int) -> list[str]:
    """Cut ``text`` into at most ``most`` parts, at the ends of sentences where it can.

    Parameters
    ----------
    text : str
    short : callable
        Whether a text is short enough for a part. Where that needs more than ``most`` parts,
        the parts are as long as ``most`` of them must be.
    most : int

    Returns
    -------
    list of str
        In order, every word in at least one; a part begins with the last sentence of the one
        before, where that leaves it short enough. The text itself where it is short.
    """
    if short(text):
        return [text]
    pieces = [piece for sentence in sentences(text) for piece in _halved(sentence, short)]
    found: list[list[str]] = []
    for piece in pieces:
        if found and short("".join([*found[-1], piece])):
            found[-1].append(piece)
        elif found and len(found[-1]) > 1 and short(found[-1][-1] + piece):
            found.append([found[-1][-1], piece])
        else:
            found.append([piece])
    each = -(-len(found) // most)
    joined = (chain.from_iterable(found[i : i + each]) for i in range(0, len(found), each))
    return ["".join(pieces).strip() for pieces in joined]


def _halved(text: str, short: Callable[[str], bool]) -> list[str]:
    """Halve a sentence, at a blank near its middle, until each piece is short."""
    if short(text) or len(text) < 2 * LEAST_CHARACTERS:
        return [text]
    at = text.rfind(" ", len(text) // 4, len(text) // 2) + 1 or len(text) // 2
    return [*_halved(text[:at], short), *_halved(text[at:], short)]
