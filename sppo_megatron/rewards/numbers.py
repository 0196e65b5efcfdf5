"""Finds the number a text ends on and compares numbers, exactly if possible."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from typing import NamedTuple

RELATIVE_TOLERANCE = Fraction(1, 10**6)
# A model can write 1e999999999: beyond these bounds a text is not read as a number, which keeps the arithmetic cheap.
MAX_CHARACTERS = 200
MAX_EXPONENT = 300

_PLAIN = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\.)\.\d+"
# A number starts neither inside a word ("H2") nor inside another number ("1.2.3"), and the minus of "3-5" isn't a sign.
_START = r"(?<!\w)(?<!\d\.)"
_NUMBER = re.compile(
    rf"""(?P<sign>(?<![\w.)\]}}])[-+])?(?:\\?\$)?
    (?: (?:{_START}(?P<whole>\d+)\s*)?\\[dt]?frac
          (?: \s*\{{\s*(?P<top>[-+]?(?:{_PLAIN}))\s*\}}\s*\{{\s*(?P<bottom>[-+]?(?:{_PLAIN}))\s*\}}
            | \s*(?P<top_digit>\d)\s*(?P<bottom_digit>\d) )
      | {_START}(?P<value>(?:{_PLAIN})(?:[eE][-+]?\d+)?)(?:\s*/\s*(?P<denominator>(?:{_PLAIN})))?
    )(?!\s*\\(?:pi|sqrt)\b)(?P<percent>\s*\\?%)?""",
    re.VERBOSE | re.ASCII,  # ASCII: in "答案是42" the number is not part of a word
)
_TIMES_POWER_OF_TEN = re.compile(
    r"(?<=[0-9])\s*(?:\\times|\\cdot|×|\*|x\s)\s*10\s*(?:\^|\*\*)\s*\{?\s*([-+]?[0-9]+)\s*\}?"
)
_MARKS = str.maketrans({"−": "-", "–": "-", "\u202f": " ", "\u00a0": " ", "\u2009": " ", "／": "/", "．": "."})
_DIGIT = re.compile(r"(?![0-9])\d")
_SPACING = re.compile(r"\\[,!;: ]")


class Number(NamedTuple):
    """value: exact, and as it is written: "50%" is 50 with percent=True."""

    value: Fraction
    percent: bool


def last_number(text: str) -> Number | None:
    """The last number of the text, or its last \\boxed{...} if that holds digits. None if there is none.

    Reads 12, -3.5, .5, 1,234,567, 1{,}234, $5, 1.5e3, 2 \\times 10^{5}, 3/4, \\frac{3}{4},
    1\\frac{3}{4} (a mixed number), 50%.
    """
    boxed = last_boxed(text)
    if boxed is not None and any(character.isdigit() for character in boxed):
        return whole_number(boxed)
    if "####" in text:  # as GSM8K marks an answer
        marked = whole_number(text.rpartition("####")[2].strip().partition("\n")[0])
        if marked is not None:
            return marked
    whole = whole_number(text)
    return _last_in(text) if whole is None else whole


def whole_number(text: str) -> Number | None:
    """The number that the text is, apart from its unit, its sign of currency, marks of LaTeX and of emphasis, and a
    name before it ("x = 5"). None for more than one number, or one that is part of an expression.
    """
    if len(text) > MAX_CHARACTERS:
        return None
    text = _SPACING.sub("", _ascii_digits(text).replace("{,}", ","))
    text = re.sub(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}(?:\^\{?\d\}?)?", r" \1", text)
    text = text.strip(" \t\r\n*`$").rstrip(".;*`$ ")
    text = re.sub(r"^(?:\\\(|\\\[)\s*|\s*(?:\\\)|\\\])$", "", text)
    text = re.sub(r"^[A-Za-z]\w*\s*=\s*", "", text)
    text = re.sub(r"^\(\s*([^()]*)\)$", r"\1", text).strip()
    if power := re.fullmatch(r"([1-9]\d{0,3})\s*\^\s*\{?\s*(-?\d{1,2})\s*\}?", text):
        return Number(Fraction(int(power[1])) ** int(power[2]), percent=False)
    text = re.sub(r"^([-+]?\d+)\s+(\d+)\s*/\s*(\d+)", r"\1\\frac{\2}{\3}", text)
    text = re.sub(r"(?<=\d) (?=\d{3}(?!\d))", "", text)
    text = _TIMES_POWER_OF_TEN.sub(r"e\1", text)
    match = _NUMBER.search(text)
    if match is None or not re.fullmatch(r"\s*[€£¥]?\s*", text[: match.start()]):
        return None
    unit = text[match.end() :]
    if not re.fullmatch(
        r"\s*|(?:\s*\^?\s*\\circ|°\s*[CF]?)|\s+[€£¥]|\s+[A-Za-zµ][A-Za-zµ/. ]*(?:\^?\{?[23²³]\}?)?", unit
    ):
        return None
    return _to_number(match)


def same_number(a: Number, b: Number) -> bool:
    """Two integers: equal. Else equal, or within a relative 1e-6 (1/3 and 0.3333333).

    If only one is a percentage, it may equal the other as written or divided by 100: answers say "50" and "0.5".
    """
    if a.percent == b.percent:
        return _close(a.value, b.value)
    percentage, other = (a.value, b.value) if a.percent else (b.value, a.value)
    return _close(percentage, other) or _close(percentage / 100, other)


def _close(a: Fraction, b: Fraction) -> bool:
    if a == b:
        return True
    if a.denominator == 1 and b.denominator == 1:
        return False
    return abs(a - b) <= RELATIVE_TOLERANCE * max(abs(a), abs(b))


def _last_in(text: str) -> Number | None:
    text = _SPACING.sub("", _ascii_digits(text).replace("{,}", ","))
    text = _TIMES_POWER_OF_TEN.sub(r"e\1", text)
    for match in reversed(list(_NUMBER.finditer(text))):
        number = _to_number(match)
        if number is not None:
            return number
    return None


def _ascii_digits(text: str) -> str:
    """Full-width and other scripts' digits as ASCII, every minus as "-", narrow blanks as blanks."""
    text = text.translate(_MARKS)
    return text if text.isascii() else _DIGIT.sub(lambda match: str(unicodedata.digit(match[0])), text)


def _to_number(match: re.Match) -> Number | None:
    if len(match[0]) > MAX_CHARACTERS:
        return None
    top = match["top"] or match["top_digit"] or match["value"]
    bottom = match["bottom"] or match["bottom_digit"] or match["denominator"] or "1"
    value, divisor = _to_fraction(top), _to_fraction(bottom)
    if value is None or not divisor:
        return None
    value = value / divisor + int(match["whole"] or 0)
    return Number(-value if match["sign"] == "-" else value, percent=match["percent"] is not None)


def _to_fraction(digits: str) -> Fraction | None:
    exponent = re.search(r"[eE]([-+]?\d+)$", digits)
    if exponent is not None and abs(int(exponent[1])) > MAX_EXPONENT:
        return None
    return Fraction(digits.replace(",", ""))


def last_boxed(text: str) -> str | None:
    """What stands in the last \\boxed{...}, braces inside it included. None if there is none, or it isn't closed."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for place in range(start + len("\\boxed"), len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start + len("\\boxed{") : place]
    return None
