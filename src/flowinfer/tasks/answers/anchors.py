"""Anchors: the places where a text says that an answer follows. Boxed before anchored, later before earlier."""

from __future__ import annotations

import re
from collections.abc import Iterator

from flowinfer.tasks.answers.text import Text

_ENGLISH = (
    r"(?:final|correct|right|best|numerical)?\s*(?:answer|result|solution)s?\b(?:\s+(?:to|for|of)\s+[^.:\n]{1,60}?)?"
    r"(?:\s+(?:here|therefore|thus|then))?[*_]*\s*(?:is|are|would be|should be|must be|will be|equals|=|:|to be)"
    r"|(?:correct|right|best)\s+(?:option|choice|statement|one)[*_]*\s*(?:is|would be|should be|must be|:)"
    r"|(?:i\s+(?:choose|pick|select)|so\s+choose|choose\s+option)"
)
_CHINESE = (
    r"(?:最终|正确|最后|标准|参考)?的?(?:答案|结果|选项)(?:应该|应当|应|就|选择|选)?(?:是|为|选|等于|:|=|】|\])"
    r"|答(?:案)?\s*[:】]"
    r"|(?:正确|成立|符合题意|最准确)的(?:一项|选项|一个|说法|叙述|表述)?(?:应该|应当|应|就)?(?:是|为|:)"
    r"|(?<![可不以未供所挑备任者])(?:故|应|因此|所以|综上|本题|应该|我|只能|则)?,?\s*选择?(?:的是|:|项|了)?"
    r"(?=\s*[(\[【*\"“]*\s*(?:选项)?\s*[A-Ha-h](?![A-Za-z]))"
)
_CORRECTION = (
    r"(?:更正|纠正|修正|改正|订正)(?:为|如下|一下)?\s*[:,]?\s*(?:应(?:该|当)?(?:为|是))?"
    r"|(?<!不)应(?:该|当)?(?:为|是)(?!否|不|由)|而是|correction\s*:|(?:it|this|that)\s+should\s+(?:be|have been)"
    r"|actually,?\s+(?:it(?:'s| is)|the answer is)"
)
_ANCHOR = re.compile(
    rf"(?P<hash>####|<answer>)|(?P<mark>(?:^|\n)\s*[*_]*A\s*:)|(?P<english>(?i:\b(?:{_ENGLISH})))|(?P<chinese>{_CHINESE})"
    rf"|(?P<correction>(?i:{_CORRECTION}))"
)
_NEGATION = re.compile(
    r"^[\s*_:\"']*(?:definitely |certainly |clearly )?"
    r"(?:not\b|n't|never\b|neither\b|isn't|不是|并非|不为|非|不)(?!\s*only)",
    re.I,
)
_NEGATED_BEFORE = re.compile(r"(?:not the|isn't the|不是|并非|没有|不存在|no|n't be the)\s*(?:正确|correct)?\s*$", re.I)
_END = re.compile(r"\n|(?<=\S)\.\s|(?<!\\)[。!?;]")
_HEDGE = re.compile(r"^\s*(?:either|maybe|perhaps|unclear|unknown|可能|也许|不确定|无法)", re.I)


def last_anchor(text: Text) -> Text | None:
    """Return what follows the last anchor that is not negated, to the end of its sentence."""
    last = None
    for tail in anchored(text):
        last = tail
    return last


def anchored(text: Text) -> Iterator[Text]:
    """Yield what follows each anchor, in order, negated ones left out."""
    string = text.string
    for match in _ANCHOR.finditer(string):
        begin = match.end()
        rest = string[begin:]
        skipped = len(rest) - len(rest.lstrip(" \t*_:`"))
        if rest[skipped : skipped + 1] == "\n" or (match["hash"] is None and rest[skipped : skipped + 2] == "\r\n"):
            skipped = len(rest) - len(rest.lstrip(" \t*_:`\r\n"))
        begin += skipped
        tail = string[begin : begin + 400]
        if not tail.strip() or _NEGATION.match(tail) or _HEDGE.match(tail):
            continue
        if _NEGATED_BEFORE.search(string[max(0, match.start() - 12) : match.start()]):
            continue
        end = _END.search(tail)
        yield text.part(begin, begin + (end.start() if end and end.start() else len(tail)))


_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)|\\boxed\s+(?=\S)")


def last_boxed(text: Text) -> Text | None:
    """Return the content of the last balanced, non-empty \\boxed{}."""
    found = None
    for match in _BOX.finditer(text.string):
        begin = match.end()
        if text.string[begin : begin + 1] != "{":
            word = re.match(r"[^\s$,.;]+", text.string[begin:])
            if word:
                found = text.part(begin, begin + word.end())
            continue
        end = closing(text.string, begin)
        if end is not None and text.string[begin + 1 : end].strip():
            found = text.part(begin + 1, end)
    return found


def closing(string: str, opening: int) -> int | None:
    """Return the index of the brace that closes the one at `opening`, or None."""
    depth = 0
    for index in range(opening, min(len(string), opening + 4000)):
        character = string[index]
        if character == "{" and string[index - 1 : index] != "\\":
            depth += 1
        elif character == "}" and string[index - 1 : index] != "\\":
            depth -= 1
            if not depth:
                return index
    return None
