"""Numbers as people write them."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from fractions import Fraction

from flowinfer.tasks.answers.numerals import SCALES
from flowinfer.tasks.answers.text import normalize

Number = tuple[Fraction, int, int]
"""A number, and where it begins and ends in its text."""
_PLAIN = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,3}(?: \d{3})+(?![\d,.]\d|\d)|\d+)(?:\.\d+)?|\.\d+"
NUMBER = re.compile(
    rf"(?P<sign>(?<![A-Za-z0-9_)\].])[-+](?=\s?[$€£¥￥]?\d"
    rf"|\s?[$€£¥￥]?\.\d))?\s?[$€£¥￥]?\s?(?<![A-Za-z_\d.])(?P<number>{_PLAIN})"
    r"(?:\s?/\s?(?P<denominator>\d+(?![\d/]*\s?/)))?(?:[eE](?P<exponent>[+-]?\d{1,3})\b|\s?(?:\*"
    r"|x)\s?10\^\{?(?P<power>[+-]?\d{1,3})\}?)?"
    r"\s?(?P<scale>[万亿]|million\b|billion\b|thousand\b|hundred\b"
    r"|(?<=\d)[kK]\b)?(?:(?P<rest>\d+)(?P<rest_scale>[千百万]))?"
)
_MIXED = re.compile(r"(?<![\d.,])(\d+)\s+(\d+)\s?/\s?(\d+)(?!\d)")
_LATEX_FRACTION = re.compile(r"(\d*)\s*\\[dt]?frac\s*(?:\{\s*(-?\d+)\s*\}\s*\{\s*(-?\d+)\s*\}|(\d)(\d))")
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
    part = re.sub(r"(?<=\d)\s*又\s*(?=\d+\s?/\s?\d)", " ", part)
    part = re.sub(r"(?<=\d) and (?:a|one)[- ]half\b", " 1/2", part)
    part = re.sub(r"<<[^<>]*>>", "", re.sub(r"(?<!half )\ba dozen\b", "12", part)).replace("\\pm", "±")
    return part.replace("**", " ").replace("`", "").replace("\\(", " ").replace("\\)", " ")


def _plain_fraction(match: re.Match[str]) -> str:
    whole, top, bottom, one, other = match.groups()
    return f"{whole + ' ' if whole else ''}{top or one}/{bottom or other}"


def values(part: str) -> list[Number]:
    """List the numbers in a cleaned text with their places."""
    found: list[Number] = []
    taken = 0
    mixed = {match.start(): match for match in _MIXED.finditer(part)}
    for match in NUMBER.finditer(part):
        start = match.start("number")
        if start < taken:
            continue
        if start in mixed:
            whole, top, bottom = (int(group[:40]) for group in mixed[start].groups())
            if bottom:
                sign = -1 if match["sign"] == "-" else 1
                found.append((sign * (whole + Fraction(top, bottom)), match.start(), mixed[start].end()))
                taken = mixed[start].end()
                continue
        value = _value(match)
        if value is not None:
            found.append((value, match.start(), match.end()))
            taken = match.end()
    return found


def _value(match: re.Match[str]) -> Fraction | None:
    digits = match["number"].replace(",", "").replace(" ", "")
    if len(digits) > 60:
        return None
    try:
        value = Fraction(Decimal(digits))
    except (InvalidOperation, ValueError):
        return None
    if match["denominator"]:
        if not int(match["denominator"][:60]):
            return None
        value /= int(match["denominator"][:60])
    exponent = int(match["exponent"] or match["power"] or 0)
    if abs(exponent) > 60:
        return None
    value *= Fraction(10) ** exponent
    value *= _SCALES.get(match["scale"] or "", 1)
    if match["rest"] and match["scale"]:
        value += int(match["rest"][:40]) * _SCALES[match["rest_scale"]]
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
    r"\b(?:what|how (?:many|much)|find|calculate|determine|express)\b[^.?]{0,60}?(?<!\d )\bpercent(?:age)?\b"
    r"|百分之(?:几|多少)|百分[比率数]",
    re.I,
)


def asks_percent(question: str) -> bool:
    """Return whether a question asks for a number of percent."""
    return bool(_ASKS_PERCENT.search(question))


def near(left: Fraction, right: Fraction) -> bool:
    """Return whether two numbers are equal, or the same float: long decimals count to nine digits."""
    is_float = min(left.denominator, right.denominator) > 10**_FLOAT_DIGITS
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
