"""Whether a text is one that a judge can read: not encoded, not of non-words, in which scripts."""

from __future__ import annotations

import base64
import binascii
import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from typing import Final

#: Letters of a window that is looked at, and the fewest that tell anything.
_WINDOW: Final = 80
_LEAST: Final = 40
#: Mean of ``_PAIRS`` below which letters are no words. Measured: stretches of
#: English and of 13 other languages in Latin letters lie above 5, those of source code all but
#: always; rotations of the alphabet, and base64, below 4.8 but for 1 %.
_WORDS_ABOVE: Final = 4.8
#: A text that reads better backwards by this much is written backwards.
_BACKWARDS: Final = 0.3
#: Letters of a script other than Latin that call for a judge which was shown to read it; a sign
#: for a word counts as three.
_FOREIGN: Final = 40
_WORD_SIGNS: Final = ("CJK", "HIRAGANA", "HANGUL")
#: Written together, so shown together.
_SAME: Final = {"KATAKANA": "HIRAGANA", "FULLWIDTH": "LATIN"}

_ORDER: Final = " abcdefghijklmnopqrstuvwxyz"
#: How usual one letter (row) is before another (column) in words, 0..9; the blank is a word's edge.
#: 9 + 9/8 of the natural logarithm of the share, over English and a little of 13 other languages.
_PAIRS: Final = (
    "065655556534565562567546042",
    "634550453534757042667453152",
    "373008001620605700544700040",
    "580507006625500700546500042",
    "860047032700423500450541032",
    "763565442533547344775342332",
    "560027600700400800645600040",
    "860007046604425650552600030",
    "771518102720213700435400040",
    "554766452224557640566252104",
    "770007000405055760035700000",
    "761427220704515621560600030",
    "770257442622732520156533060",
    "775008400700341660140510030",
    "760576562513325610267430050",
    "633544443504667450756655222",
    "570007105503620750745500020",
    "110000000002000000000900000",
    "763457341624454620565542053",
    "850526105603331650267501032",
    "860226107701240500554403050",
    "564556250634657450667300333",
    "270028000800004600054400000",
    "760047006800405620451000040",
    "761616111611111381127511131",
    "951325040504434640162404000",
    "760067003600600400601600075",
)


def unreadable(text: str) -> str | None:
    """Say why nobody who reads plain words can read ``text``; None where it is plain.

    Encodings are named only where they decode to text, so that hashes, keys and numbers are none.
    Beyond, the letters of each stretch are compared with how letters follow each other in words
    of languages that are written in Latin letters.
    """
    return _encoded(text) or _no_words(text)


def foreign_scripts(text: str) -> set[str]:
    """Return the scripts other than Latin that a good part of ``text`` is written in.

    Names are the first word of the Unicode name of a letter, such as ``CYRILLIC``.
    """
    count = Counter(_script(c) for c in text if ord(c) > 0x24F and c.isalpha())
    weight = {s: n * (3 if s in _WORD_SIGNS else 1) for s, n in count.items()}
    return {script for script, n in weight.items() if n >= _FOREIGN and script != "LATIN"}


@functools.cache
def _script(letter: str) -> str:
    name = unicodedata.name(letter, "UNNAMED").split()[0].split("-")[0]
    return _SAME.get(name, name)


def _encoded(text: str) -> str | None:
    for found in re.finditer(r"[A-Za-z0-9+/_-]{20,}={0,2}", re.sub(r"(?<=\S{60})\n", "", text)):
        # Both alphabets, and what lacks its end.
        blob = found[0].rstrip("=").replace("-", "+").replace("_", "/")
        if any(map(_is_text, (_base64(blob), _base32(blob), _hex(blob)))):
            return "base64, base32 or hexadecimal"
    for found in re.finditer(r"(?:(?:0x|\\x|%)?[0-9a-fA-F]{2}[\s,:;-]*){12,}", text):
        digits = re.sub(r"0x|\\x|[^0-9a-fA-F]", "", found[0])
        if _is_text(_hex(digits)):
            return "hexadecimal"
    for found in re.finditer(r"(?:\b\d{2,3}\b[\s,;]*){12,}", text):
        if _is_text(bytes(n for d in re.findall(r"\d+", found[0]) if (n := int(d)) < 256)):
            return "numbers for letters"
    for found in re.finditer(r"(?:[01]{8}\s*){8,}", text):
        bits = re.sub(r"\s", "", found[0])
        if _is_text(bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))):
            return "binary"
    for found in re.finditer(r"(?:[.\-\u00b7\u2013]{1,6}[ /|\n]+){16,}", text):
        if len(set(found[0].split())) >= 8:
            return "Morse code"
    if re.search(r"(?:\b[^\W\d_]\b[ .\-_*|]+){20,}", text):
        return "letters set apart"
    words = re.findall(r"[\w@$]+", text)
    spelled = [bool(re.search(r"[a-z][0-9@$]+[a-z]", word, re.IGNORECASE)) for word in words]
    if any(sum(spelled[i : i + 24]) >= 6 for i in range(0, len(words), 8)):
        return "digits for letters"
    words = re.findall(r"\w+", text)
    if sum(_is_mixed(word) for word in words) >= 3:
        return "letters of several alphabets in a word"
    return None


def _base64(blob: str) -> bytes:
    try:
        return base64.b64decode(blob + "=" * (-len(blob) % 4), validate=True)
    except binascii.Error:
        return b""


def _base32(blob: str) -> bytes:
    try:
        return base64.b32decode(blob + "=" * (-len(blob) % 8), casefold=True)
    except binascii.Error:
        return b""


def _hex(blob: str) -> bytes:
    try:
        return bytes.fromhex(blob)
    except ValueError:
        return b""


def _is_text(data: bytes) -> bool:
    """Whether bytes are text for people: mostly letters and blanks, all printable."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return False
    shown = all(c.isprintable() or c.isspace() for c in text)
    return (
        len(text) >= 10 and shown and sum(c.isalpha() or c == " " for c in text) > 0.8 * len(text)
    )


def _is_mixed(word: str) -> bool:
    if word.isascii() or len(word) < 4:
        return False
    scripts = {_script(c) for c in word if c.isalpha()}
    return "LATIN" in scripts and not scripts.isdisjoint({"CYRILLIC", "GREEK", "CHEROKEE"})


def _no_words(text: str) -> str | None:
    bare = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    # "aaa" is no word either, and no code.
    words = [w for w in re.findall(r"[a-z]{3,}", bare.lower()) if len(set(w)) > 2 or len(w) == 3]
    for letters in _stretches(words):
        score = _usual(letters)
        if score < _WORDS_ABOVE:
            return "letters that are no words"
        if _usual([word[::-1] for word in letters]) > score + _BACKWARDS:
            return "words written backwards"
    return None


def _stretches(words: list[str]) -> Iterator[list[str]]:
    """Yield words in stretches of ``_WINDOW`` letters, each from the middle of the one before."""
    begin = size = half = 0
    for end, word in enumerate(words, start=1):
        size += len(word)
        if size < _WINDOW // 2:
            half = end
        if size >= _WINDOW:
            yield words[begin:end]
            begin = half = max(half, begin + 1)
            size = sum(map(len, words[begin:end]))
    while begin and size < _WINDOW:
        begin -= 1
        size += len(words[begin])
    if size >= _LEAST:
        yield words[begin:]


def _usual(words: list[str]) -> float:
    """Mean of ``_PAIRS`` over the words' pairs of letters, 0..9."""
    pairs = Counter(pair for w in words for pair in zip(f" {w}", f"{w} ", strict=True))
    total = sum(n * int(_PAIRS[_ORDER.index(a)][_ORDER.index(b)]) for (a, b), n in pairs.items())
    return total / max(1, pairs.total())
