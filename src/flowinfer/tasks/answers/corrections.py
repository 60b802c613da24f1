"""Where a text takes back what it said before: what stands after that is heard first."""

from __future__ import annotations

import re
from collections.abc import Iterator

from flowinfer.tasks.answers.text import Text

_RETRACTION = re.compile(
    r"\b(?:oops|edit:|scratch that|correction|on second thought|my (?:mistake|bad)|i apologi[sz]e"
    r"|i(?:'ve| have)? (?:made|see|spotted|found|notice)[^.\n]{0,30}(?:mistake|error)"
    r"|i (?:forgot|mis\w+ed|misread|overlooked|left out|should have)(?! to mention)"
    r"|let me (?:redo|recalculate|correct|fix|start over|try again)"
    r"|(?:wait|hmm|hold on|actually|no)[,.! ]+(?:no|wait)\b"
    r"|wait[,. ]+(?:but )?(?:i|we) (?:need|have|should|must)(?: to)? (?!check|verify|confirm|make sure|double))"
    r"|(?:^|(?<=[。.!?\n…]))\s*(?:等等|等一下)|(?:^|(?<=[。!?,;\n…吗]))\s*[哦啊噢呃嗯]?不(?:对[,。!]|,)"
    r"|更正|纠正|订正|[说算写看搞弄选想]错了?[,。]|重新(?:计算|算|考虑|分析|审题)|(?<!别)忘(?:了|记)(?!带)|漏(?:了|算|掉)",
    re.I,
)
_DENIED = re.compile(
    r"(?:that(?:'s| is| was| can't be| isn't|)|this (?:is|was)|\bit(?:'s| is)) (?:not |n't )?(?:quite )?"
    r"(?:right|correct|wrong|incorrect)\b|(?<=[\d}$)]) (?:is|was) (?:wrong|incorrect|not (?:right|correct))\b",
    re.I,
)
_FAULT = re.compile(r"not |n't|wrong|incorrect|can't", re.I)
_REVISES = re.compile(
    r"\b(?:wait|hold on|hmm|actually|however|oops|but|instead|should)\b|但|不过|等等|其实|不对|应(?:该|当|为)|而是",
    re.I,
)
_SETTLES = re.compile(
    r"\b(?:so|therefore|thus|hence|answer|final|should be|result)\b|最终|所以|因此|应该?[为是]|答案", re.I
)
_CONFIRMS = re.compile(
    r"[✓✔√]|\b(?:checks?(?: out)?|holds|confirm\w*|verified|matches|indeed|is correct|correct!|satisf\w+)\b"
    r"|成立|无误|正确[。!]",
    re.I,
)
_MAX_RETRACTIONS = 20


def corrected(text: Text, *, hears_denials: bool) -> Iterator[Text]:
    """Yield what stands after each retraction, the last first, and in the end the whole text.

    Args:
        hears_denials: whether "that is wrong" takes an answer back; said of an option, it does not.
    """
    ends = [match.end() for match in _RETRACTION.finditer(text.string)]
    if hears_denials:
        ends += [match.end() for match in _DENIED.finditer(text.string) if _FAULT.search(match[0])]
    for end in sorted(set(ends), reverse=True)[:_MAX_RETRACTIONS]:
        yield text.part(end, len(text.string))
    yield text


def is_taken_back(text: Text) -> bool:
    """Return whether a text ends by calling its answer wrong, with nothing in its place."""
    last = None
    for match in _DENIED.finditer(text.string):
        last = match if _FAULT.search(match[0]) else None
    rest = text.string[last.end() :] if last else ""
    return last is not None and len(rest) < 40 and not re.search(r"[\d?]", rest)


def revised(text: Text, end: int) -> Text | None:
    """Return what follows a boxed answer, where that takes it back and settles on another."""
    rest = text.string[end:]
    is_revised = _REVISES.search(rest[:60]) and _SETTLES.search(rest) and not _CONFIRMS.search(rest)
    return text.part(end, len(text.string)) if is_revised else None
