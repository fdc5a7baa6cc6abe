"""Cutting a candidate that is longer than the judge's window into overlapping pieces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from alignbeam.errors import PromptError

#: Share of a piece that the next one repeats, so that what a cut splits is seen whole.
OVERLAP: Final = 0.25
#: A piece below this says too little to be judged; then the request has eaten the window.
LEAST_CHARACTERS: Final = 128
#: Far above what an answer needs; beyond it something is trying to exhaust the judge.
MAX_WINDOWS: Final = 64


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
            size = max(size * 3 // 4, LEAST_CHARACTERS)
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
