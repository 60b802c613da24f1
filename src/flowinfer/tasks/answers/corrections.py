"""Where a text takes back what it said before: what stands after that is heard first."""

from __future__ import annotations

import re
from collections.abc import Iterator

from flowinfer.tasks.answers.text import Text

_ENGLISH = (
    r"\b(?:oops|edit:|scratch that|correction|on second thought|my (?:mistake|bad|apologies)|i apologi[sz]e"
    r"|sorry, (?:i|that)"
    r"|i(?:'ve| have)? (?:made|see|realize|spotted|found|notice)[^.\n]{0,30}(?:mistake|error|slip)"
    r"|i (?:forgot|misread|miscounted|miscalculated|miswrote|overlooked|missed|left out|neglected|should have"
    r"|double[- ]counted|mixed up)(?! to mention)"
    r"|let me (?:redo|recalculate|recompute|correct|fix|start over|try again)"
    r"|(?:wait|hmm|hold on|actually|uh)[,.! ]+no\b|no,? wait\b"
    r"|wait[,. ]+(?:but )?(?:i|we) (?:still |also )?(?:need|have|should|must)(?: to)? (?!check|verify|confirm"
    r"|make sure|double))"
)
_CHINESE = (
    r"(?:^|(?<=[。.!?\n…]))\s*(?:等等|等一下|稍等|且慢)|(?:^|(?<=[。!?,;\n…吗]))\s*(?:[哦啊噢呃嗯]?不对[,。!]|[哦啊噢呃嗯]?不,)"
    r"|更正|纠正|订正|[说算写看搞弄选想]错了?[,。]|我错了|重新(?:计算|算|考虑|分析|审题|检查)|(?<!别)忘(?:了"
    r"|记)(?!带)|漏(?:了|算|掉)"
)
_DENIAL = (
    r"(?:that(?:'s| is| was| can't be| cannot be| isn't|)|this (?:is|was|can't be)|\bit(?:'s| is)) (?:not "
    r"|n't )?(?:quite )?"
    r"(?:right|correct|wrong|incorrect|a mistake)\b|(?<=[\d}$)]) (?:is|was) (?:wrong|incorrect|not (?:right|correct))\b"
)
_RETRACTION = re.compile(rf"{_ENGLISH}|{_CHINESE}", re.I)
_DENIED = re.compile(_DENIAL, re.I)
_FAULT = re.compile(r"not |n't|wrong|incorrect|mistake|can't|cannot", re.I)


def corrected(text: Text, *, hears_denials: bool) -> Iterator[Text]:
    """Yield what stands after each retraction, the last first, and in the end the whole text.

    Args:
        hears_denials: whether "that is wrong" takes an answer back; said of an option, it does not.
    """
    ends = [match.end() for match in _RETRACTION.finditer(text.string)]
    if hears_denials:
        ends += [match.end() for match in _DENIED.finditer(text.string) if _FAULT.search(match[0])]
    for end in sorted(set(ends), reverse=True)[:20]:
        yield text.part(end, len(text.string))
    yield text


def is_taken_back(text: Text) -> bool:
    """Return whether a text ends by calling its answer wrong, with nothing in its place."""
    last = None
    for match in _DENIED.finditer(text.string):
        last = match if _FAULT.search(match[0]) else None
    rest = text.string[last.end() :] if last else ""
    return last is not None and len(rest) < 40 and not re.search(r"[\d?]", rest)


_REVISES = re.compile(
    r"\b(?:wait|hold on|hmm|actually|however|oops|but|instead|should)\b"
    r"|但|不过|等等|其实|不对|别忘|应(?:该|当|为)|而是",
    re.I,
)
_SETTLES = re.compile(
    r"\b(?:so|therefore|thus|hence|answer|final|instead|should be|result)\b"
    r"|最终|所以|因此|应(?:该|当)?[为是]|而是|答案",
    re.I,
)
_CONFIRMS = re.compile(
    r"[✓✔√]|\b(?:checks?(?: out)?|holds|confirm\w*|verified|matches|indeed"
    r"|is correct|correct!|satisf\w+)\b|成立|无误|正确[。!]",
    re.I,
)


def revised(text: Text, end: int) -> Text | None:
    """Return what follows a boxed answer, where that takes it back and settles on another."""
    rest = text.string[end:]
    is_revised = _REVISES.search(rest[:60]) and _SETTLES.search(rest) and not _CONFIRMS.search(rest)
    return text.part(end, len(text.string)) if is_revised else None
