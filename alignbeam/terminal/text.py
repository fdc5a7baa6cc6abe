"""Text for human eyes: what a model wrote must not steer the terminal it is shown on."""

from __future__ import annotations

import unicodedata

_KEPT = "\n\t"


def printable(text: str) -> str:
    """Return ``text`` with everything a terminal would obey made visible.

    Control characters become their pictures (ESC is shown as U+241B); bidirectional overrides,
    other invisible format characters and lone surrogates become U+FFFD. Line breaks, tabs and the
    joiners that emoji and several scripts need stay.
    """
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    if character in _KEPT or character.isprintable():
        return character
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    category = unicodedata.category(character)
    # Zs: blanks other than U+0020 are not "printable" to Python, and harmless. Cn: newer than the
    # Unicode tables of this Python. U+200C, U+200D: the joiners.
    if category in ("Zs", "Cn", "Co") or code in (0x200C, 0x200D):
        return character
    return "\ufffd"


def quoted(text: str) -> str:
    """One token on one line, in quotes, so that its blanks show."""
    return "'" + printable(text).replace("\n", "\u23ce").replace("\t", "\u21e5") + "'"


def percent(share: float) -> str:
    """``0.123`` as ``12.3 %``; a dash for NaN."""
    return "\u2013" if share != share else f"{100 * share:.1f} %"


def bar(share: float, width: int) -> str:
    """Return a bar of ``width`` cells, filled by ``share`` (0..1); empty for NaN."""
    filled = 0 if share != share else round(max(0.0, min(1.0, share)) * width)
    return "\u2588" * filled + "\u2591" * (width - filled)


def column(share: float) -> str:
    """One character whose height is ``share`` (0..1)."""
    heights = " \u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
    share = 0.0 if share != share else max(0.0, min(1.0, share))
    # Whatever is there at all stays visible.
    return heights[max(1, round(share * 8))] if share >= 0.005 else heights[0]
