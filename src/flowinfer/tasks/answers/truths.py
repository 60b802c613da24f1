"""Truth values: yes and no in words, and statements such as "91 is not prime"."""

from __future__ import annotations

import re

_EXPLICIT = re.compile(
    r"(?P<not>\b(?:not|n't|isn't|is not)\s+)?\b(?:(?P<yes>true|yes)|(?P<no>false|no(?=\s*(?:[,.;:!)]|$|\n)))"
    r"|(?:is|are)\s+(?P<correct>(?:in)?correct))\b",
    re.I,
)
_HAN = re.compile(r"^[\s*(\"“]*(?:(?P<no>否|不|错|假|非)|(?P<yes>是|对|正确|成立|真|能|可以))")
_HAN_STATED = re.compile(
    r"(?P<not>不)?(?P<word>是(?=[^,。]*(?:质数|素数|合数|因数|约数|倍数|因子))|能被?|等于|成立|正确|整除)"
    r"|(?P<wrong>错误|不对|不成立)"
)
_PREDICATE = (
    r"prime|composite|factors?|multiple|divisors?|divisible|equal|even|odd|bigger|greater|larger|smaller|less"
    r"|at least|at most|different"
)
_STATED = re.compile(
    rf"(?:\b(?:is|are|does|do)|'s)(?P<not>n't|\s+not)?\s+(?:indeed\s+|also\s+|therefore\s+"
    rf"|in fact\s+)?(?P<no>not\s+)?(?:an?\s+)?(?P<word>{_PREDICATE}|divides?)\b"
    rf"|^\W*(?P<bare>not)\s+(?:an?\s+)?(?:{_PREDICATE})\b"
    r"|\b(?P<divides>divides)\b|\b(?P<multiple>multiple of)\b",
    re.I,
)


def read_truth(string: str, question: str) -> bool | None:
    """Return what a stretch settles on, or None.

    Args:
        string: the stretch.
        question: the question; a statement counts only if it has its predicate, or where there is no question.
    """
    explicit = list(_EXPLICIT.finditer(string))
    if explicit:
        match = explicit[-1]
        said = bool(match["yes"]) or (match["correct"] or "").lower() == "correct"
        return said != bool(match["not"])
    stated = [truth for match in _STATED.finditer(string) if (truth := _stated(match, question)) is not None]
    if stated:
        return stated[-1]
    if han := _HAN.match(re.split(r"[:：]\s*|答案[是为]", string.strip())[-1]):
        return bool(han["yes"])
    for match in reversed(list(_HAN_STATED.finditer(string))):
        return not (match["not"] or match["wrong"])
    return None


def _stated(match: re.Match[str], question: str) -> bool | None:
    word = (match["word"] or "divides").lower().removesuffix("s")
    said = not (match["not"] or match["no"] or match["bare"])
    asked = question.lower()
    if not asked:
        return None if word == "composite" else said
    if (word == "composite" and "prime" in asked) or (word == "prime" and "composite" in asked):
        return not said
    if word in ("divide", "divisible", "divisor", "factor", "multiple"):
        return said if re.search(r"divid|divis|factor|multiple", asked) else None
    return said if word in asked else None
