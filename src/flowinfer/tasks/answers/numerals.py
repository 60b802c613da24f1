"""Numbers written in words, Chinese or English."""

from __future__ import annotations

import re
from fractions import Fraction

HAN = re.compile(r"负?[零〇一二两三四五六七八九十百千万亿]+(?:点[零〇一二三四五六七八九]+)?")
_HAN_DIGITS = {**{digit: value for value, digit in enumerate("零一二三四五六七八九")}, "〇": 0, "两": 2}
_HAN_UNITS = {"十": 10, "百": 100, "千": 1000}
_HAN_SCALES = {"万": 10**4, "亿": 10**8}
_SMALL = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_VALUES = {word: i for i, word in enumerate(_SMALL)} | {word: 10 * i for i, word in enumerate(_TENS, start=2)}
SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_WORD = "|".join(sorted((*_VALUES, *SCALES), key=len, reverse=True))
ENGLISH = re.compile(
    rf"\b(?:(?:negative|minus)\s+)?(?:a\s+(?={'|'.join(SCALES)}))?(?:{_WORD})(?:(?:[-\s]|\s+and\s+)(?:{_WORD}))*"
    rf"(?:\s+point(?:\s+(?:{'|'.join(_SMALL[:10])}))+)?\b(?!(?<=\bone)\s+(?:of|by|can|another|more|who|that|and|must)\b)",
    re.I,
)
"""Not "one of them", which counts nothing."""
_PARTS = {
    "halves": 2,
    "half": 2,
    "third": 3,
    "quarter": 4,
    "fourth": 4,
    "fifth": 5,
    "sixth": 6,
    "eighth": 8,
    "tenth": 10,
}
_PART = rf"[-\s](?P<bottom>{'|'.join(_PARTS)})s?\b"
_FRACTIONS = (
    re.compile(r"(?P<bottom>[一二两三四五六七八九十百]+)分之(?P<top>[一二两三四五六七八九十百]+)"),
    re.compile(rf"\b(?P<whole>{_WORD}) and (?P<top>a|one|two|three){_PART}", re.I),
    re.compile(rf"\b(?P<top>an?|{'|'.join(_SMALL[1:10])}){_PART}(?!\s+(?:of|as|dozen))", re.I),
)


_TELLS = re.compile(r"(?:共有?|剩下?|还有|等于)\s*$")


def han_value(text: str) -> Fraction:
    """Return the value of a Chinese numeral such as 三十五 or 一万二千."""
    whole, _, decimals = text.removeprefix("负").partition("点")
    total = section = digit = 0
    if not any(c in whole for c in "十百千万亿"):
        digit = int("".join(str(_HAN_DIGITS[c]) for c in whole) or 0)
        whole = ""
    for character in whole:
        if character in _HAN_DIGITS:
            digit = _HAN_DIGITS[character]
        elif character in _HAN_UNITS:
            section += (digit or (1 if not section else 0)) * _HAN_UNITS[character]
            digit = 0
        else:
            total = (total + section + digit) * _HAN_SCALES[character]
            section = digit = 0
    value = Fraction(f"{total + section + digit}.{''.join(str(_HAN_DIGITS[c]) for c in decimals) or 0}")
    return -value if text.startswith("负") else value


def english_value(text: str) -> Fraction:
    """Return the value of an English numeral such as "three hundred and five" or "minus two"."""
    total = section = 0
    whole, _, decimals = text.lower().partition(" point ")
    for word in re.findall(r"[a-z]+", whole):
        if word == "hundred":
            section = (section or 1) * 100
        elif word in SCALES:
            total += (section or 1) * SCALES[word]
            section = 0
        else:
            section += _VALUES.get(word, 0)
    value = Fraction(f"{total + section}.{''.join(str(_VALUES[word]) for word in decimals.split()) or 0}")
    return -value if re.match(r"negative|minus", whole) else value


def spelled(text: str) -> tuple[Fraction, int, int] | None:
    """Find the first number in words and its place, fractions before others.

    Single Chinese digits count only at the start, since 一个 is mostly an article.
    """
    for pattern in _FRACTIONS:
        if match := pattern.search(text):
            is_han = pattern is _FRACTIONS[0]
            top = han_value(match["top"]) if is_han else _VALUES.get(match["top"].lower(), 1)
            bottom = han_value(match["bottom"]) if is_han else _PARTS[match["bottom"].lower()]
            whole = english_value(match.groupdict().get("whole") or "")
            return (whole + Fraction(top) / bottom, *match.span()) if bottom else None
    for match in ENGLISH.finditer(text):
        return english_value(match[0]), match.start(), match.end()
    for match in HAN.finditer(text):
        is_short = not text[: match.start()].strip() and len(text[match.end() :].strip()) < 4 and "一共" not in text
        is_told = _TELLS.search(text[: match.start()])
        if (len(match[0]) > 1 or match[0] == "十" or is_short or is_told) and match[0].strip("万亿千百"):
            return han_value(match[0]), match.start(), match.end()
    return None
