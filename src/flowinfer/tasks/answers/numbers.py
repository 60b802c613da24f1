"""Numbers as people write them, in digits and in Chinese or English words."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from fractions import Fraction

from flowinfer.tasks.answers.text import normalize

HAN = re.compile(r"负?[零〇一二两三四五六七八九十百千万亿]+(?:点[零〇一二三四五六七八九]+)?")
_SMALL = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_VALUES = {word: i for i, word in enumerate(_SMALL)} | {word: 10 * i for i, word in enumerate(_TENS, start=2)}
SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_WORD = "|".join(sorted((*_VALUES, *SCALES), key=len, reverse=True))
ENGLISH = re.compile(
    rf"(?i)\b(?:(?:negative|minus)\s+)?(?:a\s+(?={'|'.join(SCALES)}))?(?:{_WORD})(?:(?:[-\s]|\s+and\s+)(?:{_WORD}))*"
    rf"(?:\s+point(?:\s+(?:{'|'.join(_SMALL[:10])}))+)?\b(?!(?<=\bone)\s+(?:of|by|can|another|more|who|that|and"
    rf"|must)\b)"
)
"""Not "one of them", which counts nothing."""
_PARTS = {"halves": 2, "half": 2, "quarter": 4, "third": 3, "fourth": 4}
_PARTS |= {"fifth": 5, "sixth": 6, "eighth": 8, "tenth": 10}
_PART = rf"[-\s](?P<bottom>{'|'.join(_PARTS)})s?\b"
_FRACTIONS = (
    re.compile(r"(?P<bottom>[一二两三四五六七八九十百]+)分之(?P<top>[一二两三四五六七八九十百]+)"),
    re.compile(rf"\b(?P<whole>{_WORD}) and (?P<top>a|one|two|three){_PART}", re.I),
    re.compile(rf"\b(?P<top>an?|one){_PART}(?!\s+(?:of|as|dozen))", re.I),
    re.compile(rf"\b(?P<top>{'|'.join(_SMALL[2:10])}){_PART}(?!\s+(?:as|dozen))", re.I),
)


_AND_A_HALF = re.compile(r"([一二两三四五六七八九十]+)个半")
_TELLS = re.compile(r"(?:共有?|剩下?|还有|等于)\s*$|(?:需要?|用了?|得|为|是)\s*(?=[两二三四五六七八九]\Z)")


def han_value(text: str) -> Fraction:
    """Return the value of a Chinese numeral such as 三十五 or 一万二千."""
    whole, _, decimals = text.removeprefix("负").replace("两", "二").partition("点")
    total = section = digit = 0
    if not re.search("[十百千万亿]", whole):
        digit, whole = int(_han_digits(whole)), ""
    for value in (int(unicodedata.numeric(character)) for character in whole):
        if value < 10:
            digit = value
        elif value < 10_000:
            section += (digit or (1 if not section else 0)) * value
            digit = 0
        else:
            total = (total + section + digit) * value
            section = digit = 0
    number = Fraction(f"{total + section + digit}.{_han_digits(decimals)}")
    return -number if text.startswith("负") else number


def _han_digits(text: str) -> str:
    return "".join(str(int(unicodedata.numeric(character))) for character in text) or "0"


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
            sign = -1 if re.search(r"(?i)\b(?:negative|minus)\s+$", text[: match.start()]) else 1
            return (sign * (whole + Fraction(top) / bottom), *match.span()) if bottom else None
    for match in ENGLISH.finditer(text):
        return english_value(match[0]), match.start(), match.end()
    if (half := _AND_A_HALF.search(text)) is not None:
        return han_value(half[1]) + Fraction(1, 2), *half.span()
    for match in HAN.finditer(text):
        is_short = not text[: match.start()].strip() and len(text[match.end() :].strip()) < 4 and "一共" not in text
        is_told = _TELLS.search(text[: match.start() + 1]) or _TELLS.search(text[: match.start()])
        if (len(match[0]) > 1 or match[0] == "十" or is_short or is_told) and match[0].strip("万亿千百"):
            return han_value(match[0]), match.start(), match.end()
    return None


Number = tuple[Fraction, int, int]
"""A number, and where it begins and ends in its text."""
_PLAIN = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,3}(?: \d{3})+(?![\d,.]\d|\d)|\d+)(?:\.\d+)?|\.\d+"
NUMBER = re.compile(
    rf"(?P<sign>(?<![A-Za-z0-9_)\].])[-+](?=\s?[$€£¥￥]?\d"
    rf"|\s?[$€£¥￥]?\.\d))?\s?[$€£¥￥]?\s?(?<![A-Za-z_\d.])(?P<number>{_PLAIN})"
    r"(?:(?:\s+(?P<top>\d+))?\s?/\s?(?P<denominator>\d+(?![\d/]*\s?/)))?(?:[eE](?P<exponent>[+-]?\d+)\b"
    r"|\s?(?:\*|x)\s?10\^\{?(?P<power>[+-]?\d+)\}?)?\s?(?P<scale>[万亿]|million\b|billion\b|thousand\b|hundred\b"
    r"|(?<=\d)[kK]\b)?(?:(?P<rest>\d+)(?P<rest_scale>[千百万]))?"
)
_LATEX_FRACTION = re.compile(r"(\d*)\s*\\[dt]?frac\s*(?:\{\s*(-?\d+)\s*\}\s*\{\s*(-?\d+)\s*\}|(\d)(\d))")
_WORDED = re.compile(
    r"(\d[\d.,]*) (?:multiplied by|times|divided by|plus|minus) \$?(\d[\d.,]*?)"
    r"(?: [a-z-]+){0,3},? (?:which )?(?:equals|gives|is(?: the same as)?) (?=\$?\d)"
)
"""A calculation in words, whose value alone matters."""
_MAX_DIGITS = 60
"""Of a number, and most powers of ten."""
_FLOAT_DIGITS = 8
"""Decimals from which on a number is taken as a float's."""
_SCALES = {**SCALES, **dict.fromkeys("kK千", 1000), "百": 100, "万": 10**4, "亿": 10**8}


def clean(part: str) -> str:
    """Return a stretch of text with LaTeX spacing, markup and thousands braces removed."""
    part = part.replace("{,}", ",").replace("\\,", "").replace("\\!", "").replace("\\$", "$").replace("\\%", "%")
    part = part.replace("\\times", "*").replace("\\cdot", "*").replace("\\div", "/").replace("\\approx", "≈")
    part = re.sub(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}", r" \1 ", part)
    part = _LATEX_FRACTION.sub(_plain_fraction, part)
    part = re.sub(r"\b(?:negative|minus)\s+(?=[$\d])|负(?=[$\d])", "-", part, flags=re.I)
    part = re.sub(
        r"(\d[\d.,]*\s?(?:°\s?[CF]?|degrees(?: \w+)?)?)\s+below zero\b|零下(?=\s?\d)", r"-\1", part, flags=re.I
    )
    part = re.sub(r"(?<=\d)(\s*(?:[a-zA-Z]{2,}|m)\s*)\^\s*\{?[23]\}?(?!\d|\.\d)", r"\1", part)  # of a unit
    part = _WORDED.sub(r"\1 * \2 = ", part)
    part = re.sub(r"(?<=\d)\s*[→⇒]\s*(?=[$¥]?\d)", " = ", part)
    part = re.sub(r"(?<=\d)\s*又\s*(?=\d+\s?/\s?\d)", " ", part)
    part = re.sub(r"(?<=\d) and (?:a|one)[- ]half\b", " 1/2", part)
    part = re.sub(r"<<[^<>]*>>", "", re.sub(r"(?<!half )\ba dozen\b", "12", part)).replace("\\pm", "±")
    return part.replace("**", " ").replace("`", "").replace("\\(", " ").replace("\\)", " ")


def _plain_fraction(match: re.Match[str]) -> str:
    whole, top, bottom, one, other = match.groups()
    return f"{whole + ' ' if whole else ''}{top or one}/{bottom or other}"


def values(part: str) -> list[Number]:
    """List the numbers in a cleaned text with their places."""
    found = [(_value(match), *match.span()) for match in NUMBER.finditer(part)]
    return [(value, begin, end) for value, begin, end in found if value is not None]


def _value(match: re.Match[str]) -> Fraction | None:
    whole, bottom = re.sub("[, ]", "", match["number"]), match["denominator"] or "1"
    exponent = match["exponent"] or match["power"] or "0"
    is_endless = max(map(len, (whole, bottom, match["top"] or "", match["rest"] or ""))) > _MAX_DIGITS
    if is_endless or len(exponent) > 3 or abs(int(exponent)) > _MAX_DIGITS or not int(bottom):
        return None
    value = (
        Fraction(whole) + Fraction(int(match["top"]), int(bottom)) if match["top"] else Fraction(whole) / int(bottom)
    )
    value *= Fraction(10) ** int(exponent) * _SCALES.get(match["scale"] or "", 1)
    if match["rest"] and match["scale"]:
        value += int(match["rest"]) * _SCALES[match["rest_scale"]]
    return -value if match["sign"] == "-" else value


def show(value: Fraction) -> str:
    """Return a number's plain form: an integer, a short decimal, or a fraction."""
    if value.denominator == 1:
        return str(value.numerator)
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    if rest == 1 and value.denominator < 10**12:
        return format(Decimal(value.numerator) / Decimal(value.denominator), "f")
    return f"{value.numerator}/{value.denominator}"


def gold_number(reference: str) -> str | None:
    """Return a reference's number: what follows its last ####, else its only or last number."""
    text = normalize(reference).string
    part = clean(text.rsplit("####", 1)[-1])
    found = values(re.sub(r"(?<=[a-z}])\s*\^\s*\{?\d\}?", "", part))  # of a unit
    return show(found[-1][0]) if found else None


_ASKS_PERCENT = re.compile(
    r"(?i)\b(?:what|how (?:many|much)|find|calculate|determine|express)\b[^.?]{0,60}?(?<!\d )\bpercent(?:age)?\b"
    r"|百分之(?:几|多少)|百分[比率数]"
)


def asks_percent(question: str) -> bool:
    """Return whether a question asks for a number of percent."""
    return bool(_ASKS_PERCENT.search(question))


def near(left: Fraction, right: Fraction) -> bool:
    """Return whether two numbers are equal, or the same float: long decimals count to nine digits."""
    is_float = max(left.denominator, right.denominator) > 10**_FLOAT_DIGITS
    return left == right or (is_float and abs(left - right) <= abs(right) / 10**9)


def equal_numbers(left: str, right: str) -> bool:
    """Return whether two numbers as `show` writes them are equal; "2 of 12" (two dozen) is both 2 and 24."""
    try:
        if " of " in left:
            units, ratio = map(Fraction, left.split(" of "))
            return Fraction(right) in (units, ratio * units)
        return near(Fraction(left), Fraction(right))
    except (ValueError, ZeroDivisionError):
        return False
