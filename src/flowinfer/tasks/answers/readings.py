"""The number that a short stretch gives: a sum's value, else its first number, else none or several."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from flowinfer.tasks.answers.numbers import Number, asks_percent, clean, show, spelled, values


@dataclass(frozen=True)
class Reading:
    """What a stretch says: a value, or several that stand side by side."""

    value: str | None
    is_ambiguous: bool = False


_ASIDE = re.compile(
    r"(?i)\((?=\D*\d)[^()]*\)|,?\s*(?:\bnot\b|\brather than\b|\binstead of\b|而不是|而非|不是)|,?\s*(?:\b(?:because"
    r"|since|which(?! (?:at [^,.]*?)?(?:averages|equals|gives|leaves|makes|comes|totals|amounts|adds|works|brings"
    r"|means|is(?= [$\d.,]+%?(?![^.]*\b(?:than|more|less|fewer|times|half|twice)\b)))\b)|given that|where|compared"
    r"|(?<!after )considering|assuming|as (?:it|he|she|they|there))\b|其中|因为|由于)|,\s*(?:who|whom|whose)\b"
    r"|\bout of\b|,\s*(?=\d[\d.,]*\s+(?:more|fewer|less)\b(?![^.]*\b(?:is|are|was|were)\b))|[→⇒]\s*(?=check)"
    r"|\s[—–]\s(?=that\b|because\b|since\b|as\b)"
)
_GAP = r"\s*[a-zA-Z$€£¥￥%\u4e00-\u9fff]{0,14}(?:\s[a-zA-Z]{1,12})?\s*"
_NEXT = re.compile(rf"^{_GAP}(?:[-+*/÷×^]|\bx\b)\s*[($\s]*\d")
_EQUAL = re.compile(rf"^{_GAP}[)\s]*[=≈]")
_RANGE = re.compile(
    r"(?i)^\s?[a-zA-Z$%\u4e00-\u9fff]{0,8}\s*(?:~|–|—|\bto\b|到|至|\bor\b|或者?|还是"
    r"|,?\s*[也还又](?=可能))\s*(?:maybe|perhaps|possibly|也许|可能是?)?\s*[$¥]?\s*-?\d"
)
_LIST = re.compile(r"^(?:\s*(?:,|、|和|与|\band\b)\s*(?:and\s+)?[-$¥]?\d[\d.]*)+[\s.。$]*(?:\([^()\d]*\)[\s.]*)?$")
_RATIO = re.compile(r"^\s?(?::|比|点|时|月)\s?\d")
_UNITS = (
    ("dollars?", "cents?", 100),
    ("[元块]", "角", 10),
    ("(?:hours?|hrs?|h|个?小时)", "(?:minutes?|mins?|分钟?)", 60),
    ("(?:minutes?|mins?|分钟?)", "(?:seconds?|secs?|秒)", 60),
    ("(?:feet|foot|ft)", "(?:inch(?:es)?|in\\b)", 12),
    ("(?:pounds?|lbs?)", "(?:ounces?|oz)", 16),
    ("(?:weeks?|周)", "(?:days?|天)", 7),
    ("(?:years?|年)", "(?:months?|个月)", 12),
    ("(?:days?|天)", "(?:hours?|个?小时)", 24),
    ("米", "厘米", 100),
    ("千克", "克", 1000),
)
"""Units that a quantity is told in together, and how many of the smaller make the larger."""
_PAIRED = tuple(
    (re.compile(rf"\s*{large}\s*(?:and|,|零)?\s*(\d+(?:\.\d+)?)\s*{small}", re.I), ratio)
    for large, small, ratio in _UNITS
)
_THEN = re.compile(
    r"(?i)(?<!to )\b(?:leav(?:es?|ing)|mak(?:es?|ing)|giv(?:es?|ing)|equals|totall?(?:s|ing))\s+(?=\W{0,2}\d)"
)
_PERCENT = re.compile(r"\s*\\?%")
_DOZEN = re.compile(r"(?i)^\s*dozens?\b")


def main_clause(string: str) -> str:
    """Return a stretch up to what only explains or contrasts, if a number stands before."""
    for aside in _ASIDE.finditer(string):
        before = string[: aside.start()]
        if values(before) or spelled(before):
            return before
    return string


def first_value(string: str, found: list[Number]) -> Reading:
    """Read the first number, or the value of the sum that begins with it."""
    index = 0
    before = string[: found[0][1]]
    if re.search(r"\b(?:between|from)\s*\$?$|在\s*$|介于\s*$", before) and len(found) > 1:
        return Reading(None, True)
    while index + 1 < len(found) and _NEXT.match(string[found[index][2] : found[index + 1][2]]):
        index += 1
    value, _, end = found[index]
    rest = string[end:]
    if _EQUAL.match(rest) and index + 1 < len(found):
        equal = after_last_equals(string)
        return Reading(show(equal[0]) if equal else None)
    if (index or _EQUAL.match(rest)) and not re.match(r"\s*=\s*[a-zA-Z]\b(?!\s*[-+*/(])", rest):
        return Reading(None)
    if _RANGE.match(rest):
        is_same = index + 1 < len(found) and found[index + 1][0] == value
        return Reading(show(value) if is_same else None, not is_same)
    if _LIST.match(rest) or _RATIO.match(rest) or (re.search(r"\d:$", before) and string[found[0][1]].isdigit()):
        return Reading(None, True)
    if re.fullmatch(r"\s*,\s*", rest):
        return Reading(None)
    if (paired := in_two_units(value, rest)) is not None:
        return Reading(paired)
    return Reading(in_units(value, rest))


def in_units(value: Fraction, rest: str) -> str:
    """Return a number as it is shown: two dozen as "2 of 12", which is both 2 and 24."""
    if _PERCENT.match(rest):
        return f"{show(value)} of 1/100"
    return show(value) + (" of 12" if _DOZEN.match(rest) else "")


def in_two_units(value: Fraction, rest: str) -> str | None:
    """Return a quantity such as "2 hours 30 minutes" as "2.5 of 60", which is 2.5 and 150."""
    for pattern, ratio in _PAIRED:
        if match := pattern.match(rest):
            return f"{show(value + Fraction(match[1]) / ratio)} of {ratio}"
    return None


def after_last_equals(string: str) -> Number | None:
    """Return the number that follows the last '=' at once, or what it then leaves or makes, and its place."""
    at = max(string.rfind("="), string.rfind("≈"))
    if at < 0:
        return None
    for value, start, end in values(string[at + 1 : at + 80]):
        between = string[at + 1 : at + 1 + start]
        if re.search(r"[\w\u4e00-\u9fff]{3,}|\n", between):
            return None
        found = (value, at + 1 + start, at + 1 + end)
        if then := _THEN.search(string, found[2]):  # "= 72, minus 50 leaves 22"
            found = next(((one, then.end() + a, then.end() + b) for one, a, b in values(string[then.end() :])), found)
        return None if _RATIO.match(string[found[2] :]) else found
    return None


_PERCENT_BEHIND = re.compile(r"\s*(?:\\?%|per\s?cent\b)", re.I)
_ASKED_ENGLISH = re.compile(
    r"(?i)\b(?:how many|how much\b[^.?]{0,20}?\bin)\s+(?:(?:more|full|whole|total|additional|extra"
    r"|fewer)\s+)*([a-z]{2,})"
)
_ASKED_HAN = re.compile(r"([\u4e00-\u9fff]{0,12})(?:多少|几)个?([\u4e00-\u9fff]{1,4})")
_UNIT_AFTER = re.compile(r"(?i)\s*(?:[a-z]{1,20}(?:\s[a-z]{1,20}){0,2}|个?[\u4e00-\u9fff]{1,4})")
_VERBS = ("is", "are", "was", "were", "do", "does", "did", "will", "can", "have", "has", "of", "in")
_PREFIXES = "千平立厘毫分公小"
"""First characters that different Chinese units share: 千米 and 千克."""
_CONDITION = re.compile(
    r"(?i)(?:(?:^|[,;.]\s*|\b(?:so|therefore|thus|hence|out),?\s*)of(?: the| all| these| those)?|\b(?:from|per|at|by"
    r"|to|than|not|every|each|over|on|(?<=\d )of)(?: the| his| her| their| its)?|每[^\d,，]{0,4}|不是|而非)[\s*$]*$"
)
_GLOSS = re.compile(r"(?i)\((?:=|or|i\.e\.,?|that is,?)?\s*(\d[\d.,]*\s?(?:[a-z]+|个?[\u4e00-\u9fff]{1,3}))\)")
"""The same in another unit: 1.2 hours (72 minutes)."""
_LEFT = re.compile(r"(?i)\b(?:left|remain\w*)\b")
_RESULT = re.compile(r"(?:[=≈]|\bor|即)[\s($]*$")


def asked_value(stretch: str, question: str, value: str) -> str:
    """Return the number of a stretch that the question asks for, else the one that was read.

    Example: "2.5 hours, which equals 150 minutes" is 2.5 where the question is how many hours.

    Args:
        stretch: what stands where the answer stands, one sentence at most.
        question: its last "how many" or 多少 counts.
        value: the number read without the question, as `show` writes it.
    """
    if asks_percent(question):
        whole = clean(stretch)
        percent = {show(number) for number, _, end in values(whole) if _PERCENT_BEHIND.match(whole, end)}
        if len(percent) == 1 and f"{min(percent)} of 1/100" != value:
            return percent.pop()
    string = main_clause(_GLOSS.sub(r", \1", clean(stretch)))
    told = []
    for number, start, end in values(string):
        unit = _UNIT_AFTER.match(string, end)
        if (unit or "=" in string) and ("=" not in string or _RESULT.search(string[:start])):
            told.append((show(number), string[:start], unit[0].strip() if unit else ""))
    if len(told) < 2 or value not in [shown for shown, _, _ in told]:
        return value
    left = [shown for shown, before, unit in told if _LEFT.search(unit) and not _CONDITION.search(before)]
    if len(left) == 1 and _LEFT.search(re.split(r"[.,;]\s", question.strip())[-1]):
        return left[0]
    fitting = [(shown, before) for shown, before, unit in told if _is_asked(unit, question)]
    subject = next(iter(reversed(_ASKED_HAN.findall(question))), ("",))[0][-4:]
    named = [shown for shown, before in fitting if len(subject) > 1 and before.rstrip(" *$¥").endswith(subject)]
    if len(named) == 1:
        return named[0]
    free = [shown for shown, before in fitting if not _CONDITION.search(before)]
    return free[0] if len(free) == 1 and all(shown != value for shown, _ in fitting) else value


_PAIR = re.compile(
    r"(?i)[\s$*]*\d[\d.,]*((?: [a-z-]+){1,5}?),? (?:and|each(?: one)? (?:with|having|of))"
    r" \$?\d[\d.,]*((?: (?!are\b|is\b)[a-z-]+){1,5})[\s.*]*(?:\n|$)"
)
"""Two quantities side by side: 3 pens and 4 books."""


def lists_several(stretch: str, question: str) -> bool:
    """Return whether a stretch gives two quantities, and not just one of what the question asks for."""
    pair = _PAIR.match(stretch)
    asks_both = re.search(r"(?i)how many [\w-]+(?:,| and| or) [\w-]+ (?:are|do|does|did|will|were|can)\b", question)
    fitting = [unit for unit in pair.groups() if _is_asked(unit, question)] if pair else []
    return pair is not None and (asks_both is not None or len(fitting) != 1)


def _is_asked(unit: str, question: str) -> bool:
    """Return whether a unit is what the question counts: one of the words after a number, or its first characters."""
    if unit.isascii():
        english = [match[1].lower() for match in _ASKED_ENGLISH.finditer(question)]
        words = [word.removesuffix("s") for word in unit.lower().split(" per ")[0].split()]
        return bool(english) and english[-1] not in _VERBS and english[-1].removesuffix("s") in words
    han = _ASKED_HAN.findall(question)
    asked, unit = han[-1][1] if han else "", unit.removeprefix("个")
    return asked[:1] == unit[:1] and (unit[:1] not in _PREFIXES or asked[:2] == unit[:2])
