"""Where in a text an answer of any kind is looked for: what stands after a correction, boxes, anchors, the closing."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from flowinfer.tasks.answers.anchors import anchored
from flowinfer.tasks.answers.boxes import ends_in_box, last_boxes
from flowinfer.tasks.answers.text import Found, Text


@dataclass(frozen=True, kw_only=True)
class Reader(ABC):
    """Reads answers of one kind from stretches of a text; None where a stretch holds none."""

    question: str
    hears_denials: bool = True
    """Whether "that is wrong" takes an answer back; said of an option or a statement, it does not."""
    hears_after_box: bool = True
    """Whether an answer that is announced behind a box replaces it, without a word that takes the box back."""

    @abstractmethod
    def boxed(self, box: Text) -> Found | None:
        """Read a box, or several that are listed."""

    @abstractmethod
    def announced(self, text: Text, tails: list[Text]) -> Found | None:
        """Read the last answer that is announced in a text; `tails` stand behind its anchors."""

    @abstractmethod
    def closing(self, text: Text) -> Found:
        """Read a text in which nothing is marked as the answer."""


def find(text: Text, reader: Reader) -> Found:
    """Find what a text settles on; what follows a correction is heard first."""
    for part in _corrected(text, hears_denials=reader.hears_denials):
        found = _find(part, reader)
        if found.value is not None or (found.status != "no_answer" and part is not text):
            break
    is_whole = found.value is not None and part is text
    if is_whole and (_RETRACTED.search(text.string) or (reader.hears_denials and _is_taken_back(text))):
        return Found(None, "no_answer", "taken_back", found.span)
    return found


def _find(text: Text, reader: Reader) -> Found:
    if ends_in_box(text):
        return Found(None, "truncated", "boxed", None)
    box = last_boxes(text)
    held = reader.boxed(box) if box is not None else None
    if box is None or held is None:
        return _announced(text, reader) or reader.closing(text)
    rest = text.part(text.places.index(box.places[-1]) + 1, len(text.string))
    later = _announced(rest, reader) if held.value is not None and reader.hears_after_box else None
    if later is None and _is_revised(rest.string):
        later = _find(rest, reader)
    return later if later is not None and later.value is not None else held


def _announced(text: Text, reader: Reader) -> Found | None:
    return reader.announced(text, list(anchored(text, reader.question)))


_RETRACTION = re.compile(
    r"\b(?:oops|edit:|scratch that|correction|on second thought|my (?:mistake|bad)|i apologi[sz]e|i(?:'ve"
    r"| have)? (?:made|see|spotted|found|notice)[^.\n]{0,30}(?:mistake|error)|i (?:forgot|mis\w+ed|misread|overlooked"
    r"|left out|should have)(?! to mention)|let me (?:redo|recalculate|correct|fix|start over|try again)|(?:wait|hmm"
    r"|hold on|actually|no)[,.! ]+(?:no|wait)\b|wait[,. ]+(?:but )?(?:i|we) (?:need|have|should"
    r"|must)(?: to)? (?!check|verify|confirm|make sure|double))|(?:^|(?<=[。.!?\n…]))\s*(?:等等|等一下)|(?:^"
    r"|(?<=[。!?,;\n…吗]))\s*[哦啊噢呃嗯]?不(?:对[,。!]|,)"
    r"|更正|纠正|订正|[说算写看搞弄选想]错了?[,。]|重新(?:计算|算|考虑|分析|审题)|(?<!别)忘(?:了|记)(?!带)|漏(?:了|算|掉)",
    re.I,
)
_DENIED = re.compile(
    r"(?i)(?:that(?:'s| is| was| can't be| isn't|)|this (?:is|was)|\bit(?:'s| is)) (?:not |n't )?(?:quite )?"
    r"(?:right|correct|wrong|incorrect)\b|(?<=[\d}$)]) (?:is|was) "
    r"(?:wrong|incorrect|not (?:right|correct)|too (?:low|high|small|big|large))\b"
)
_RETRACTED = re.compile(rf"(?i)(?:{_RETRACTION.pattern})\W*$")
"""That a text ends by taking back what it said."""
_FAULT = re.compile(r"(?i)not |n't|wrong|incorrect|can't|too ")
_REVISES = re.compile(
    r"(?i)\b(?:wait|hold on|hmm|actually|however|oops|but|instead|should)\b|但|不过|等等|其实|不对|应(?:该|当|为)|而是"
)
_SETTLES = re.compile(
    r"(?i)\b(?:so|therefore|thus|hence|answer|final|should be|result)\b|最终|所以|因此|应该?[为是]|答案"
)
_CONFIRMS = re.compile(
    r"(?i)[✓✔√]|\b(?:checks?(?: out)?|holds|confirm\w*|verified|matches|indeed|is correct|correct!|satisf\w+)\b"
    r"|成立|无误|正确[。!]"
)
_MAX_RETRACTIONS = 20


def _corrected(text: Text, *, hears_denials: bool) -> Iterator[Text]:
    """Yield what stands after each retraction, the last first, and in the end the whole text."""
    ends = {match.end() for match in _RETRACTION.finditer(text.string)}
    if hears_denials:
        ends |= {match.end() for match in _DENIED.finditer(text.string) if _FAULT.search(match[0])}
    for end in sorted(ends, reverse=True)[:_MAX_RETRACTIONS]:
        yield text.part(end, len(text.string))
    yield text


def _is_taken_back(text: Text) -> bool:
    """Return whether a text ends by calling its answer wrong, with nothing in its place."""
    last = next(reversed(list(_DENIED.finditer(text.string))), None)
    rest = text.string[last.end() :] if last and _FAULT.search(last[0]) else None
    return rest is not None and len(rest) < 40 and not re.search(r"[\d?]", rest)


def _is_revised(rest: str) -> bool:
    """Return whether what follows a boxed answer takes it back and settles on another."""
    return bool(_REVISES.search(rest[:60]) and _SETTLES.search(rest) and not _CONFIRMS.search(rest))
