"""Which of several numbers in one sentence a question asks for, by its unit and the words before it."""

from __future__ import annotations

import re

from flowinfer.tasks.answers.numbers import clean, show, values
from flowinfer.tasks.answers.readings import main_clause

_ENGLISH = re.compile(r"\bhow many\s+(?:(?:more|full|whole|total|additional|extra|fewer)\s+)*([a-z]{2,})", re.I)
_HAN = re.compile(r"([\u4e00-\u9fff]{0,12})(?:多少|几)个?([\u4e00-\u9fff]{1,4})")
_UNIT = re.compile(r"\s*(?:[a-z]{1,20}(?:\s[a-z]{1,20}){0,2}|个?[\u4e00-\u9fff]{1,4})", re.I)
_VERBS = ("is", "are", "was", "were", "do", "does", "did", "will", "can", "have", "has", "of", "in")
_PREFIXES = "千平立厘毫分公小"
"""First characters that different Chinese units share: 千米 and 千克."""
_CONDITION = re.compile(
    r"(?:(?:^|[,;.]\s*|\b(?:so|therefore|thus|hence|out),?\s*)of(?: the| all| these| those)?"
    r"|\b(?:from|per|at|by|to|than|not|every|each|over|on|(?<=\d )of)(?: the)?|每[^\d,，]{0,4}|不是|而非)[\s*$]*$",
    re.I,
)
_RESULT = re.compile(r"[=≈][\s(]*$")


def asked_value(stretch: str, question: str, value: str) -> str:
    """Return the number of a stretch that the question asks for, else the one that was read.

    Example: "2.5 hours, which equals 150 minutes" is 2.5 where the question is how many hours.

    Args:
        stretch: what stands where the answer stands, one sentence at most.
        question: its last "how many" or 多少 counts.
        value: the number read without the question, as `show` writes it.
    """
    string = main_clause(clean(stretch))
    told = []
    for number, start, end in values(string):
        unit = _UNIT.match(string, end)
        if unit and ("=" not in string or _RESULT.search(string[:start])):
            told.append((show(number), string[:start], unit[0].strip()))
    if len(told) < 2 or value not in [shown for shown, _, _ in told]:
        return value
    fitting = [(shown, before) for shown, before, unit in told if _is_asked(unit, question)]
    subject = next(iter(reversed(_HAN.findall(question))), ("",))[0][-4:]
    named = [shown for shown, before in fitting if len(subject) > 1 and before.rstrip(" *$¥").endswith(subject)]
    if len(named) == 1:
        return named[0]
    free = [shown for shown, before in fitting if not _CONDITION.search(before)]
    return free[0] if len(free) == 1 and all(shown != value for shown, _ in fitting) else value


def _is_asked(unit: str, question: str) -> bool:
    """Return whether a unit is what the question counts: one of the words after a number, or its first characters."""
    if unit.isascii():
        english = [match[1].lower() for match in _ENGLISH.finditer(question)]
        words = [word.removesuffix("s") for word in unit.lower().split()]
        return bool(english) and english[-1] not in _VERBS and english[-1].removesuffix("s") in words
    han = _HAN.findall(question)
    asked, unit = han[-1][1] if han else "", unit.removeprefix("个")
    return asked[:1] == unit[:1] and (unit[:1] not in _PREFIXES or asked[:2] == unit[:2])
