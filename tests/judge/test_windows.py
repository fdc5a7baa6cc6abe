"""Long candidates are cut into overlapping pieces that leave nothing out."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignbeam.errors import PromptError
from alignbeam.judge.windows import LEAST_CHARACTERS, MAX_WINDOWS, sentences, windows


def weight(piece: str) -> int:
    """A cost that differs per character, as token counts do."""
    return sum(1 + ord(c) % 4 for c in piece)


@given(
    st.text(alphabet="ab cé中👩🏽", min_size=1, max_size=4000),
    st.integers(min_value=4 * LEAST_CHARACTERS, max_value=3000),
)
def test_windows_cover_every_character_in_order_and_fit(text, room):
    pieces = windows(text, lambda piece: weight(piece) <= room)
    assert all(weight(piece) <= room for piece in pieces)
    covered, at = 0, 0
    for piece in pieces:
        # Overlaps make several places possible; the leftmost admissible one must leave no gap.
        start = text.index(piece, at)
        assert start <= covered
        covered, at = max(covered, start + len(piece)), start
    assert covered == len(text)


def test_windows_overlap_by_a_quarter():
    text = "".join(chr(0x4E00 + i) for i in range(2000))  # no character twice
    pieces = windows(text, lambda piece: len(piece) <= 400)
    places = [(text.index(p), text.index(p) + len(p)) for p in pieces]
    assert len(pieces) > 4
    for (start, end), (following, _) in itertools.pairwise(places):
        assert end - following == (end - start) // 4


def test_windows_keep_a_candidate_that_fits_whole():
    assert windows("short", lambda piece: True) == ["short"]
    assert windows("", lambda piece: True) == [""]


def test_windows_are_refused_where_hardly_anything_fits():
    with pytest.raises(PromptError, match="too little room"):
        windows("x" * 1000, lambda piece: len(piece) < LEAST_CHARACTERS)


def test_windows_are_refused_beyond_their_number():
    length = 150 * MAX_WINDOWS
    with pytest.raises(PromptError, match=f"more than {MAX_WINDOWS}"):
        windows("x" * length, lambda piece: len(piece) <= 150)


#: What a sentence is, said plainly; it takes the square of the length of a run of signs.
SENTENCE = re.compile(r".+?(?:[.!?\u3002\uff01\uff1f]+[\"')\]]*\s+|\n+|$)", re.DOTALL)


@given(st.text(alphabet="ab.!?。\"') \n\t", max_size=40).map(lambda text: "a" + text))
def test_sentences_end_where_they_are_said_to_end(text):
    said = [piece for piece in SENTENCE.findall(text) if piece.strip()]
    # A sentence of signs alone may be one of its own.
    assert [p for p in map(bare, sentences(text)) if p] == [p for p in map(bare, said) if p]
    assert "".join(sentences(text)).split() == text.split()


def bare(piece):
    return re.sub(r"^[\W]+", "", piece)


@pytest.mark.parametrize("sign", [".", "!", "?", "。", "\n", "'", ".)", ". ", "\n ", " "])
def test_sentences_of_a_million_signs_are_found(sign):
    text = f"Hello{sign * (1_000_000 // len(sign))}x"  # hours, if it took the square of them
    assert "".join(sentences(text)).split() == text.split()
