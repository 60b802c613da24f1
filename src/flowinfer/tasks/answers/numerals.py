"""Numbers written in words, Chinese or English."""

from __future__ import annotations

import re
from fractions import Fraction

HAN = re.compile(r"负?[零〇一二两三四五六七八九十百千万亿]+(?:点[零〇一二三四五六七八九]+)?")
_HAN_DIGITS = {c: i for i, c in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
_HAN_UNITS = {"十": 10, "百": 100, "千": 1000}
_HAN_SCALES = {"万": 10**4, "亿": 10**8}

_ONES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_TEENS = ("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_VALUES = {word: i for i, word in enumerate(_ONES + _TEENS)} | {word: 10 * i for i, word in enumerate(_TENS, start=2)}
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_WORD = "|".join(sorted((*_VALUES, *_SCALES), key=len, reverse=True))
ENGLISH = re.compile(
    rf"\b(?:(?:negative|minus)\s+)?(?:a\s+(?={'|'.join(_SCALES)}))?(?:{_WORD})(?:(?:[-\s]|\s+and\s+)(?:{_WORD}))*"
    rf"(?:\s+point(?:\s+(?:{'|'.join(_ONES[:10])}))+)?\b",
    re.I,
)


def han_value(text: str) -> Fraction:
    """Return the value of a Chinese numeral such as 三十五 or 一万二千."""
    sign = -1 if text.startswith("负") else 1
    whole, _, decimals = text.removeprefix("负").partition("点")
    if not any(c in whole for c in "十百千万亿") and len(whole) > 1:
        digits = "".join(str(_HAN_DIGITS[c]) for c in whole)
        value = Fraction(int(digits))
    else:
        total = section = digit = 0
        for character in whole:
            if character in _HAN_DIGITS:
                digit = _HAN_DIGITS[character]
            elif character in _HAN_UNITS:
                section += (digit or (1 if not section else 0)) * _HAN_UNITS[character]
                digit = 0
            else:
                total = (total + section + digit) * _HAN_SCALES[character]
                section = digit = 0
        value = Fraction(total + section + digit)
    if decimals:
        value += Fraction(int("".join(str(_HAN_DIGITS[c]) for c in decimals)), 10 ** len(decimals))
    return sign * value


def english_value(text: str) -> Fraction:
    """Return the value of an English numeral such as "three hundred and five" or "minus two"."""
    total = section = 0
    text, _, decimals = text.lower().partition(" point ")
    for word in re.findall(r"[a-z]+", text):
        if word in _VALUES:
            section += _VALUES[word]
        elif word == "hundred":
            section = (section or 1) * 100
        elif word in _SCALES:
            total += (section or 1) * _SCALES[word]
            section = 0
    value = Fraction(total + section)
    for place, word in enumerate(decimals.split(), start=1):
        value += Fraction(_VALUES[word], 10**place)
    return -value if re.match(r"negative|minus", text, re.I) else value


_PARTS = {
    "half": 2,
    "halves": 2,
    "third": 3,
    "quarter": 4,
    "fourth": 4,
    "fifth": 5,
    "sixth": 6,
    "eighth": 8,
    "tenth": 10,
}
_ENGLISH_FRACTION = re.compile(
    rf"\b(?P<top>an?|one|two|three|four|five|six|seven|eight"
    rf"|nine)[-\s](?P<bottom>{'|'.join(_PARTS)})s?\b(?!\s+(?:of|as|dozen))",
    re.I,
)
_MIXED = re.compile(rf"\b(?P<whole>{_WORD}) and (?P<top>a|one|two|three)[-\s](?P<bottom>{'|'.join(_PARTS)})s?\b", re.I)
_HAN_FRACTION = re.compile(r"([一二两三四五六七八九十百]+)分之([一二两三四五六七八九十百]+)")


def _fraction(text: str) -> tuple[Fraction, int, int] | None:
    if match := _HAN_FRACTION.search(text):
        bottom, top = han_value(match[1]), han_value(match[2])
        return (top / bottom, match.start(), match.end()) if bottom else None
    if match := _MIXED.search(text):
        part = Fraction(_VALUES.get(match["top"].lower(), 1), _PARTS[match["bottom"].lower()])
        return english_value(match["whole"]) + part, match.start(), match.end()
    if match := _ENGLISH_FRACTION.search(text):
        top_value = _VALUES.get(match["top"].lower(), 1)
        return Fraction(top_value, _PARTS[match["bottom"].lower()]), match.start(), match.end()
    return None


def spelled(text: str) -> tuple[Fraction, int, int] | None:
    """Find the first number in words and its place; "one" counts only where nothing but a noun follows.

    Single Chinese digits count only at the start, since 一个 is mostly an article.
    """
    if (fraction := _fraction(text)) is not None:
        return fraction
    for match in ENGLISH.finditer(text):
        if match[0].lower() == "one" and re.match(
            r"\s+(?:of|by|can|another|more|who|that|and|must)\b", text[match.end() :]
        ):
            continue
        return english_value(match[0]), match.start(), match.end()
    for match in HAN.finditer(text):
        is_short = not text[: match.start()].strip() and len(text[match.end() :].strip()) < 4 and "一共" not in text
        if (len(match[0]) > 1 or match[0] == "十" or is_short) and match[0].strip("万亿千百"):
            return han_value(match[0]), match.start(), match.end()
    return None
