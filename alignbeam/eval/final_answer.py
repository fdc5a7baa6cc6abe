"""Which number, and which option, an answer ends in: the readers behind figures of utility."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Final

_SIGNS: Final = str.maketrans(
    dict.fromkeys("\u2212\u2010\u2011\u2013\ufe63\uff0d", "-")
    | dict.fromkeys("\u00a0\u2007\u2008\u2009\u200a\u202f\u205f", " ")
    | {"\u2019": "'", "\u2044": "/", "\u00d7": "*", "\u00f7": " / "}
    | dict.fromkeys("\u2248\u2192\u21d2", "=")
    | {"\u00bc": r"\frac14", "\u00bd": r"\frac12", "\u00be": r"\frac34"}
    | {"\u2153": r"\frac13", "\u2154": r"\frac23"}
)
_FRACTION: Final = r"\\[dt]?frac\s*(?:\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}|(\d)\s*(\d))"
_PLAIN: Final = tuple(
    (re.compile(pattern), put)
    for pattern, put in (
        (r"\*\*|__|`|\\(?:left|right|displaystyle)(?![a-zA-Z])", ""),
        (r"\{,\}", ","),
        (r"(?<=[\d,])\\[!,:; ](?=\d)", ""),
        (r"\\[!,:; ]|\\q?quad\b|~", " "),
        (r"\\([$%#&])", r"\1"),
        # A minus before a fraction or on top of it stands beside its number.
        (r"(\\[dt]?frac\s*\{)\s*-", r"-\1"),
        (r"-\s*" + _FRACTION, r"-\1\3/\2\4"),
        (_FRACTION, r" \1\3/\2\4"),
        (r"\\(?:times|cdot)\b", "*"),
        (r"\\div\b", " / "),
        (r"\\approx\b", "="),
        (r"\\(?:text\w*|math\w+|mbox|operatorname)\s*\{([^{}]*)\}", r" \1 "),
        # The power of a unit is no number of its own.
        (r"(?<=[A-Za-z}])\^\{?\d+\}?", ""),
        (r"\bnegative (?=[$\d])|(?<=\bis )(?:minus|-) (?=[$\d])|(?<=[#=] )- (?=[$\d])", "-"),
        # "5 + 7, which is 12": an equation in words.
        (
            r"(\d[^\d\n.=]*(?:[-+*/]|\b(?:plus|minus|times|of)\b)[^\n.=]*?\d[^\d\n.=]*?)"
            r",? which (?:is|equals|makes|gives)\b",
            r"\1 =",
        ),
    )
)
_BOXED: Final = re.compile(r"\\(?:f?boxed|fbox)\s*(?:\{((?:[^{}]|\{[^{}]*\})*)(?:\}|$)|([^\s{]+))")
#: Where a model that ran on asks itself the next question.
_RUN_ON: Final = re.compile(
    r"\n[ \t]*(?:#+ *)?(?:question|problem|exercise|instruction|q|user|human)\s*\d*\s*:"
    r"|\[INST\]|<\|(?:user|im_start|start_header_id)\b",
    re.IGNORECASE,
)
#: A question with a number in it is another one; "Question: how many?" repeats what was asked.
_ANOTHER: Final = re.compile(r"[^?\n]*\d")

_DIGITS: Final = (
    r"(?<!/)(?:\d{1,9} +)?\d{1,9}/0*[1-9]\d{0,8}(?![\d/])"  # 1/2, 2 1/2
    r"|\d{1,3}(?:\.\d{3})+,\d+|\d{1,3}(?:\.\d{3}){2,}(?![\d.])"  # 1.234,5
    r"|\d{1,3}(?:,\d{2,3})*,\d{3}(?!\d)(?:\.\d+)?"  # 1,234.5
    r"|\d{1,3}(?P<gap>[ '_])\d{3}(?:(?P=gap)\d{3})*(?!\d)(?:[.,]\d+)?"  # 70 000
    r"|(?<![\d,])(?:\d+,\d{1,2}|0,\d+)(?![\d,])"  # 3,5
    r"|\d+(?:\.\d+)?|(?<![\w.])\.\d+"
)
_NUMBER: Final = re.compile(
    r"(?P<sign>(?:(?<![\w)%])-)?(?:[$\u20ac\u00a3\u00a5] ?)?(?:(?<![\w)%])-)?)"
    rf"(?<!\d)(?P<digits>{_DIGITS})"
)
#: Between two numbers of one side of an equation, and between its sides.
_OPERATOR: Final = re.compile(
    r"[^\d=.,;:\n]*?(?:[+*/x^-]|\b(?:times|plus|minus|of)\b)[^\d=.,;:\n]*"
)
_EQUALS: Final = re.compile(r"[^\d=.,;:\n]*=[^\d=.;:\n]*?(?=[$\u20ac\u00a3\u00a5.-]*\d)")
_NOT: Final = re.compile(r"\bnot\s+" + _NUMBER.pattern)
_MARK: Final = re.compile(
    r"(?<!to )\bans(?:wer)?s?\b(?:\s(?:to|for|of)\s[^.:=\n\d]{1,40}?)?\s*"
    r"(?:\b(?:is|was|(?:would|will|must|should) be|equals|comes to)\b|[:=])"
    # No sentence ends between the mark and the number.
    r"(?=(?P<lead>(?:[^.!?\d]|[.!?](?!\s)){0,200}?)(?:[$\u20ac\u00a3\u00a5.-]*\d))",
    re.IGNORECASE,
)
_HASHES: Final = re.compile(r"####\s*(?:(?:the|final|answer|is)\b|[^\w\s$.-])*\s*", re.IGNORECASE)
_IS_THE_ANSWER: Final = re.compile(
    _NUMBER.pattern + r"[^\d.\n]{0,30} is (?:the|my|our) (?:\w+ )?answer\b", re.IGNORECASE
)


def final_number(text: str) -> str | None:
    r"""Return the number that ``text`` gives as its answer, else its last one; None without any.

    The last ``\boxed`` value counts first, then the first ``####``, then what is stated last as
    the answer; of an equation its result. What follows once the model asks itself another
    question is not read. ``70{,}000``, ``70 000`` and ``70,000.00`` are ``70000``; ``1/2`` is
    ``0.5``; ``1/3`` stays a fraction in lowest terms.
    """
    text = text.translate(_SIGNS)
    for pattern, put in _PLAIN:
        text = pattern.sub(put, text)
    text = _NOT.sub(" ", text)
    run_on = _RUN_ON.search(text)
    parts = [text[: run_on.start()], text] if run_on else [text]
    if run_on and _ANOTHER.match(text, run_on.end()) and _last(parts[0]) is not None:
        parts = parts[:1]
    for read in (_stated, _last):
        for part in parts:
            if (found := read(part)) is not None:
                return found
    return None


def _last(text: str) -> str | None:
    """Return the last number."""
    numbers = list(_NUMBER.finditer(text))
    return _value(numbers[-1]) if numbers else None


def _stated(text: str) -> str | None:
    """Return the number that is marked as the answer."""
    for box in reversed(list(_BOXED.finditer(text))):
        if (value := _result(box[1] or box[2] or "")) is not None:
            return value
    for mark in _HASHES.finditer(text):
        found = _NUMBER.match(text, mark.end())
        # "#### 1. First ..." heads a step.
        if found and not re.match(r"[.):] +\S", text[found.end() :]):
            return _result(text[mark.end() :])
    ends = [(m.end("lead"), text[m.end("lead") :]) for m in _MARK.finditer(text)]
    ends += [(m.start(), m[0]) for m in _IS_THE_ANSWER.finditer(text)]
    return _result(max(ends)[1]) if ends else None


def _result(text: str) -> str | None:
    """Return the first number of ``text``, or what the equation that it opens comes to."""
    found = _NUMBER.search(text)
    if found is None:
        return None
    sides = [[found]]
    for link, number in _chain(text, found.end()):
        if link == "=":
            sides.append([])
        sides[-1].append(number)
    results = [side[0] for side in sides if len(side) == 1]
    return _value(results[-1] if results else found)


def _chain(text: str, at: int) -> Iterator[tuple[str, re.Match[str]]]:
    """Yield the numbers that an equation goes on with, each with what links it to the last."""
    while True:
        link = _EQUALS.match(text, at) or _OPERATOR.match(text, at)
        number = _NUMBER.match(text, link.end()) if link else None
        if link is None or number is None:
            return
        yield ("=" if "=" in link[0] else "+"), number
        at = number.end()


def _value(number: re.Match[str]) -> str:
    """Write a number in the one way in which two are compared."""
    digits = number["digits"]
    *mixed, last = digits.split() if "/" in digits else [digits]
    if "/" in last:
        value = sum(map(Fraction, mixed), Fraction(last))
        if 10**12 % value.denominator:
            plain = str(value)
        else:
            shifted = f"{value * 10**12}".zfill(13)
            plain = _tidy(shifted[:-12], shifted[-12:])
    else:
        at = max(last.rfind("."), last.rfind(","))
        whole, part = last[: max(at, 0)], last[at + 1 :]
        # A comma before three digits groups, and so does any mark that stands twice.
        if (
            at >= 0
            and last.count(last[at]) == 1
            and (last[at] == "." or len(part) != 3 or "." in whole or whole == "0")
        ):
            plain = _tidy(whole, part)
        else:
            plain = _tidy(last, "")
    return f"-{plain}" if "-" in number["sign"] and plain != "0" else plain


def _tidy(whole: str, part: str) -> str:
    # int() reads the digits of every script.
    whole = "".join(str(int(c)) for c in whole if c.isdecimal()).lstrip("0") or "0"
    part = "".join(str(int(c)) for c in part).rstrip("0")
    return f"{whole}.{part}" if part else whole


_ARTICLE: Final = r"(?!\s+(?!(?:is|was|because|since|as|would|and|or|but|for)\b)[a-z])"
_EDGE: Final = r"(?![\w-]|[.']\w)"
#: A letter where one is announced ("option b"); an ``a`` before a word is an article.
_NAMED: Final = rf"[(\"']?(?P<letter>[B-Eb-eA]|a{_ARTICLE}){_EDGE}"
#: A letter that stands alone: a capital, or one in brackets.
_LONE: Final = rf"(?<![\w'-])([B-E]|A{_ARTICLE}|[a-e](?=\))){_EDGE}"
_ONE: Final = r"(?:option |choice )?\(?[A-E]\)?(?![\w'-])"
_SOME: Final = rf"{_ONE}(?:(?:,| or| and| nor|, and|, or) {_ONE}){{0,4}}"
_WRONG: Final = r"(?:wrong|incorrect|false|not\b|unlikely|ruled out|eliminated|out\b)"
_REJECTED: Final = re.compile(
    r"(?:(?:\b[Nn]ot|n't)(?: think| believe)?|"
    rf"\b(?:[Nn]either|nor|[Rr]ule out|[Rr]ather than|[Ii]nstead of|[Uu]nlike)) {_SOME}"
    rf"|(?<![\w'-]){_SOME} (?:(?:is|are|was|were|seems?|(?:would|can|could|must)(?: not)? be) "
    rf"(?:\w+ )?{_WRONG}|(?:isn't|aren't|can't|cannot)\b)"
    rf"|^[ \t]*{_SOME}(?=[).:\s].*\b(?:wrong|incorrect|false|no)\W*$)",
    re.MULTILINE,
)
_OPENER: Final = re.compile(
    r"^[ \t]*(?:(?:option|choice) )?\(?([A-E])(?:[):]|[.,](?!\w)|[ \t]*$)", re.M | re.I
)
_IS: Final = r"\s*(?:(?:is|was|(?:would|must|should|will|to) be|'s)\b:?|[:=-])\s*(?:but |the )?"
_LETTERS: Final = tuple(
    re.compile(pattern)
    for pattern in (
        rf"(?i:\b(?:ans(?:wer)?|choice|option|one|correct)\b\.?(?: (?!is\b)\w+){{0,3}}?{_IS}"
        rf"(?:(?:option|choice|letter) )?)\s*{_NAMED}",
        r"(?<![\w'-])\(?(?P<letter>[A-Ea-e])\)? (?:is|would be|must be|seems) (?:the |most )?"
        r"(?:\w+ )?(?:correct|right|best|answer|true)\b",
        rf"(?i:\b(?:it|that|this){_IS}(?:(?:option|choice|letter) )?|"
        r"\b(?:choose|select|pick|say|think|believe|go (?:with|for)|answer)\s+"
        rf"(?:(?:option|choice|letter) )?)\s*{_NAMED}",
    )
)
_OPTION: Final = re.compile(rf"(?i:\b(?:option|choice|letter)) {_NAMED}")


def option_letter(text: str) -> str | None:
    """Return the option, A to E, that ``text`` names as its answer; None where it names none.

    What is boxed, announced ("the answer is b"), called right or chosen counts before a letter
    that opens the text or stands in it; an option that is rejected, an article and the letters of
    a list of all options do not count.
    """
    text = text.translate(_SIGNS)
    for pattern, put in _PLAIN:
        text = pattern.sub(put, text)
    run_on = _RUN_ON.search(text)
    if run_on and (letter := option_letter(text[: run_on.start()])):
        return letter
    for box in reversed(list(_BOXED.finditer(text))):
        if found := re.fullmatch(r"\W*([A-Ea-e])(?:[).:].*)?\W*", box[1] or box[2] or ""):
            return found[1].upper()
    text = _REJECTED.sub(" ", text)
    for pattern in _LETTERS:
        if letters := [m["letter"] for m in pattern.finditer(text)]:
            return str(letters[-1]).upper()
    openers = [letter.upper() for letter in _OPENER.findall(text)]
    if (openers and len(set(openers)) == 1) or openers[:1] not in ([], ["A"]):
        return str(openers[0])
    alone = _OPTION.findall(text) or re.findall(_LONE, text)
    return str(alone[-1]).upper() if alone else None
