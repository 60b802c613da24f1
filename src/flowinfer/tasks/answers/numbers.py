"""Numbers as people write them, and which one of a text is its answer."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from fractions import Fraction

from flowinfer.tasks.answers.anchors import anchored, last_boxed
from flowinfer.tasks.answers.text import Found, Text, normalize

_PLAIN = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,3}(?: \d{3})+(?![\d,.]\d|\d)|\d+)(?:\.\d+)?|\.\d+"
NUMBER = re.compile(
    rf"(?P<sign>(?<![\w)\].])[-+](?=\s?[$€£¥￥]?\d|\s?[$€£¥￥]?\.\d))?\s?[$€£¥￥]?\s?(?<![A-Za-z_\d.])(?P<number>{_PLAIN})"
    r"(?:\s?/\s?(?P<denominator>\d+(?![\d/]*\s?/)))?(?:[eE](?P<exponent>[+-]?\d{1,3})\b|\s?(?:\*|x)\s?10\^\{?(?P<power>[+-]?\d{1,3})\}?)?"
    r"\s?(?P<scale>[万亿]|million\b|billion\b|thousand\b)?"
)
_MIXED = re.compile(r"(?<![\d.,])(\d+)\s+(\d+)\s?/\s?(\d+)(?!\d)")
_LATEX_FRACTION = re.compile(r"(\d*)\s*\\[dt]?frac\s*(?:\{\s*(-?\d+)\s*\}\s*\{\s*(-?\d+)\s*\}|(\d)(\d))")
_SCALES = {"万": 10**4, "亿": 10**8, "thousand": 10**3, "million": 10**6, "billion": 10**9}
_HAN = re.compile(r"负?[零〇一二两三四五六七八九十百千万亿]+(?:点[零〇一二三四五六七八九]+)?")
_HAN_DIGITS = {c: i for i, c in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
_HAN_UNITS = {"十": 10, "百": 100, "千": 1000}
_ALTERNATIVE = re.compile(
    r"^\s*\S{0,8}\s*(?:or|或者|或是|或|还是)\s*(?:maybe|perhaps|possibly|也许|可能是?)?\s*[$]?\s*-?\d", re.I
)


def clean(part: str) -> str:
    """Return a stretch of text with LaTeX spacing, markup and thousands braces removed."""
    part = part.replace("{,}", ",").replace("\\,", "").replace("\\!", "").replace("\\$", "$").replace("\\%", "%")
    part = re.sub(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}", r" \1 ", part)
    part = _LATEX_FRACTION.sub(_plain_fraction, part)
    part = re.sub(r"\bnegative\s+(?=[$\d])|负(?=[$\d])", "-", part, flags=re.I)
    part = re.sub(r"<<[^<>]*>>", "", part)
    return part.replace("**", " ").replace("`", "").replace("\\(", " ").replace("\\)", " ")


def _plain_fraction(match: re.Match[str]) -> str:
    whole, top, bottom, one, other = match.groups()
    return f"{whole + ' ' if whole else ''}{top or one}/{bottom or other}"


def values(part: str) -> list[tuple[Fraction, int, int]]:
    """List the numbers in a cleaned text with their places."""
    found: list[tuple[Fraction, int, int]] = []
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
    return -value if match["sign"] == "-" else value


def han_value(text: str) -> Fraction | None:
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
                total = (total + section + digit) * _SCALES[character]
                section = digit = 0
        value = Fraction(total + section + digit)
    if decimals:
        value += Fraction(int("".join(str(_HAN_DIGITS[c]) for c in decimals)), 10 ** len(decimals))
    return sign * value


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
    found = values(part)
    return show(found[-1][0]) if found else None


def equal_numbers(left: str, right: str) -> bool:
    """Return whether two numbers as `show` writes them are equal."""
    try:
        return Fraction(left) == Fraction(right)
    except (ValueError, ZeroDivisionError):
        return False


def find_number(text: Text) -> Found:
    """Find the number that a text gives as its answer: boxed > anchored > after the last '=' > last."""
    boxed = last_boxed(text)
    if boxed is not None and (value := _answer_in(boxed.string)) is not None:
        return Found(value, "ok", "boxed", boxed.span())
    last: tuple[str, Text] | None = None
    is_ambiguous: Text | None = None
    for tail in anchored(text):
        value = _answer_in(tail.string)
        if value is None:
            continue
        cleaned = clean(tail.string)
        places = values(cleaned)
        if places and _ALTERNATIVE.match(cleaned[places[0][2] :]):
            last, is_ambiguous = None, tail
            continue
        last, is_ambiguous = (value, tail), None
    if last is not None:
        return Found(last[0], "ok", "anchor", last[1].span())
    if is_ambiguous is not None:
        return Found(None, "ambiguous", "anchor", is_ambiguous.span())
    return _unanchored(text)


_CHECK = re.compile(r"[(（]?\s*(?:check|verify|verification|验算|检验|note|注)\s*[:：]", re.I)


def _unanchored(text: Text) -> Found:
    cut = _CHECK.search(text.string)
    body = text.part(0, cut.start()) if cut and values(clean(text.string[: cut.start()])) else text
    string = clean(body.string)
    span_of = body if len(string) == len(body.string) else None
    equal = _after_last_equals(string)
    found = values(string)
    if equal is not None and found:
        value, start, end = equal
        if not any(later > end for _, later, _ in found) or not _has_conclusion(string[end:]):
            return Found(show(value), "ok", "equals", _span(span_of, start, end) or body.span())
    if found:
        value, start, end = _last_free(string, found)
        return Found(show(value), "ok", "last_number", _span(span_of, start, end) or body.span())
    numerals = [match for match in _HAN.finditer(string) if len(match[0]) > 1 or match[0] == "十"]
    if numerals and (value_of := han_value(numerals[-1][0])) is not None:
        match = numerals[-1]
        return Found(show(value_of), "ok", "last_numeral", _span(span_of, match.start(), match.end()) or body.span())
    return Found(None, "no_answer", "none", None)


def _has_conclusion(rest: str) -> bool:
    """Return whether a later sentence states a number of its own rather than repeats working."""
    return bool(
        re.search(r"[.。\n,，]\s*(?:so|thus|therefore|hence|in total|altogether|一共|因此|所以|共)", rest, re.I)
    )


def _after_last_equals(string: str) -> tuple[Fraction, int, int] | None:
    at = max(string.rfind("="), string.rfind("≈"))
    if at < 0:
        return None
    for value, start, end in values(string[at + 1 : at + 80]):
        between = string[at + 1 : at + 1 + start]
        if re.search(r"[\w\u4e00-\u9fff]{3,}|\n", between):
            return None
        return value, at + 1 + start, at + 1 + end
    return None


def _last_free(string: str, found: list[tuple[Fraction, int, int]]) -> tuple[Fraction, int, int]:
    """Return the last number that does not stand in trailing parentheses, such as (not 15)."""
    for value, start, end in reversed(found):
        before = string[:start]
        opened = before.rfind("(")
        if opened < 0 or ")" in before[opened:] or len(found) == 1:
            return value, start, end
    return found[-1]


def _span(text: Text | None, start: int, end: int) -> tuple[int, int] | None:
    return text.part(start, end).span() if text is not None else None


def _answer_in(part: str) -> str | None:
    """Return the answer in a short stretch: after its last '=', else its first number."""
    string = clean(part)
    stop = re.search(
        r"\((?:not|instead|rather|而不是|不是)\b|,?\s*(?:not|rather than|instead of|而不是|而非)\s",
        string,
        re.I,
    )
    if stop and stop.start():
        string = string[: stop.start()]
    equal = _after_last_equals(string)
    if equal is not None:
        return show(equal[0])
    found = values(string)
    if found:
        return show(found[0][0])
    numeral = _HAN.search(string)
    if numeral and (value := han_value(numeral[0])) is not None:
        return show(value)
    return None
