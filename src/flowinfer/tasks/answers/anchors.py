r"""The places where a text says that an answer follows: `\boxed{...}` before anchors, later before earlier.

A box that is denied (`\neq \boxed{5}`) is none, nor is an anchor that is denied, hedged, only supposed or a question.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from flowinfer.tasks.answers.polarity import SUPPOSED, is_asked
from flowinfer.tasks.answers.text import Text

_BRACES = r"(?:[^{}\\]|\\.)*+"
for _ in range(8):  # so deep
    _BRACES = rf"(?:[^{{}}\\]|\\.|\{{{_BRACES}\}})*+"
_BOX = re.compile(
    rf"\\(?:boxed|fbox|framebox)\s*\{{(?P<braced>{_BRACES})\}}|\\boxed\s+(?P<word>(?!\{{)[^\s$,.;]+)", re.S
)
_BOX_BEGINS = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{|\\boxed\s+\S")
_NO_BOX = re.compile(r"(?:\bnot|\bthan|≠|\\neq?|不是|而非)[\s$(]*$")
_NAME = re.compile(r"[a-zA-Z]\s*=(?=[\s${(\\]*$)")
_MAX_BOX = 4000
_LISTS = re.compile(r"[\s${}()\\]*(?:and|or|[,、和或及与])+[\s${}()\\]*|[ }$\\]*")


def boxed(text: Text) -> list[Text]:
    r"""List the contents of the closed, non-empty \boxed{}, in order."""
    return [_content(text, box) for box in _boxes(text.string)]


def _content(text: Text, box: re.Match[str]) -> Text:
    return text.part(*box.span(box.lastgroup or 0))


def _boxes(string: str) -> list[re.Match[str]]:
    found = [box for box in _BOX.finditer(string) if box[box.lastindex or 0].strip() and len(box[0]) < _MAX_BOX]
    return [box for box in found if not _NO_BOX.search(string[max(0, box.start() - 16) : box.start()])]


def last_boxes(text: Text) -> Text | None:
    r"""Return the last box, with those right before it that it is listed with.

    Example: "x = \boxed{2} and y = \boxed{3}" gives "x = 2 , y = 3".
    """
    boxes = _boxes(text.string)
    contents = [_content(text, box) for box in boxes]
    listed: list[tuple[str, str]] = []
    for at in reversed(range(len(boxes))):
        between = text.string[boxes[at - 1].end() if at else 0 : boxes[at].start()]
        between = re.sub(r"\\(?:text|quad)", "", between)
        name = _NAME.search(between)
        listed.insert(0, (name[0] if name else "", contents[at].string))
        is_other = at and contents[at - 1].string != contents[at].string
        if not is_other or not _LISTS.fullmatch(between[: name.start()] if name else between):
            break
    if len(listed) < 2:
        return contents[-1] if contents else None
    is_named = any(name for name, _ in listed[1:])
    joined = " , ".join(f"{name if is_named else ''} {value}".strip() for name, value in listed)
    return Text(joined, [contents[at].places[0]] * (len(joined) - 1) + [contents[-1].places[-1]])


def last_box(text: str) -> str | None:
    """Return the content of the last closed box of a plain text, None where there is none."""
    return next((box.string for box in reversed(boxed(Text(text, range(len(text)))))), None)


def is_boxed(string: str) -> bool:
    """Return whether a text has a box, closed or not."""
    return bool(_BOX_BEGINS.search(string))


def ends_in_box(text: Text) -> bool:
    r"""Return whether the text breaks off inside a \boxed{."""
    *_, last = None, *_BOX_BEGINS.finditer(text.string)
    return last is not None and not _BOX.match(text.string, last.start())


_ENGLISH = (
    r"(?:(?:final|correct|right|best|numerical|actual|my)\s*)?(?:answer|result|solution|ans|final(?=\"))s?\b"
    r"(?:\s+(?:to|for|of)\s+[^.:\n=]{1,60}?)?(?:\s+(?:here|therefore|thus|then))?(?:\s*\([^()\n]{1,40}\))?"
    r"[*_\"']*\s*(?:is|are|(?:would|should|must|will|has to|to) be|equals|=|:)"
    r"|(?:correct|right|best)\s+(?:option|choice|statement|one)[*_]*\s*(?:is|(?:would|should|must) be|:)"
    r"|(?:correct(?:ed)?|right|actual)\s+(?:total|number|amount|value|sum|figure|count|price|cost|time)[*_]*"
    r"\s*(?:is|was|:)|(?:i(?:'d| would|'ll| will)?|so)\s+(?:go with|choose|pick|select|say)|choose\s+option"
    r"|i(?:'m| am)? lean(?:ing)?(?: towards?)?"
)
_CHINESE = (
    r"(?:最终|正确|最后|标准|参考)?的?(?:答案|结果)(?:选项)?(?:其实|实际上|确实|[只可]能|[一必]定|显然|当然|自然"
    r"|最终)?(?:应[该当]?|就|选择|选)?(?:是|为|选|等于|[\"”]?:|=>?|->|】|\])|(?:倾向于?"
    r"|结论[:是为])(?=\s*[(\[【*\"“]*(?:选项?)?\s*[A-H](?![A-Za-z]))|(?:正确|最终|最佳)的?选项(?:应该?|就)?(?:是|为"
    r"|:)|我?的?选择(?:是|为|:)|(?<!解)答(?:案)?\s*[:】]|(?:正确|最终)(?:选项"
    r"|答案)(?=\s*[(\[【*\"“]*[A-H]{1,8}(?![A-Za-z]))|(?<![可不以未供所挑备任者错误别会若果设如甲乙丙丁])(?:故|应该?"
    r"|因此|所以|综上|本题|我|只能|则)?,?\s*选择?(?:的是|:|了)?(?=\s*[(\[【*\"“]*\s*(?:选项)?\s*(?:[A-H]{1,8}"
    r"|[a-h])(?![A-Za-z]))|(?:故|应|因此|所以|综上),?选(?=\d)"
)
_CORRECTION = (
    r"(?:更正|纠正|修正|改正|订正)(?:为|如下|一下)?\s*[:,]?\s*(?:应[该当]?(?:为|是))?|(?<!不)应[该当]?(?:为|是)(?!否"
    r"|不|由)|而是|改[成为选]|correction\s*:|(?:it|this|that)\s+should\s+(?:be|have been)|(?:actually"
    r"|rather),?\s+(?:it(?:'s| is)|the answer is)|it(?:'s| is) (?:actually|really)(?=\s+[(*$]*(?:-?\d|[A-H]\b))"
    r"|(?<=[,;] )(?:sorry|oops|make that|i mean)[,:]*\s+(?=[(*$]*(?:-?\d|[A-H]\b))|(?<=[.!?\n] )(?:(?:actually|no"
    r"|wait|sorry|oops|rather|make that|i mean)[,:.…]*\s+){1,3}(?:it(?:'s| is)\s+)?(?=[(*$]*(?:-?\d|[A-H]\b))"
)
_WHICH = (
    r"(?:正确|成立|符合题意|最准确)的(?:一项|选项|一个|说法|叙述|表述)?(?:应[该当]?|就)?(?:是|为|:)"
    r"|的(?:那?一?[项个句组]|选项|说法|叙述|表述|答案|词语?|句子)?(?:应[该当]?|就|只有)?(?:是|为|:)"
    r"(?=[\s:]*[*(\[【\"“]*(?:(?:选项|第)?[A-H](?![A-Za-z])|(?<=[\"“])))"
    r"|\b(?:incorrect|false|wrong|untrue)\s+(?:option|choice|statement|one|answer)[*_]*\s*(?:is|would be|:)"
    r"|\b(?:is|are) (?:not (?:true|correct)|false|incorrect|wrong) is\b|\bexception[*_]*\s*(?:is|:)"
)
_HEADER = r"(?:^|\n)[#*\s]*(?:(?:(?:the )?final |the )?answer|(?:最终)?答案)[*\s]*(?=\n)"
_KEY = r'"(?:\w*answer|choice|option|result|label)"\s*:'
_BLANKS = r"[ \t*_:`]*(?:\r?\n[\s*_:`]*)?(?:(?:\\\[|\$\$)\s*)?"
"""To the next line, where the anchor ends its own."""
_ANCHOR = re.compile(
    rf"(?:(?P<which>(?i:{_WHICH}))|(?i:{_KEY})|(?P<hash>####|<answer>|<\|begin_of_box\|>)|(?i:{_HEADER})|"
    rf"(?:^|\n)\s*[*_]*A\s*:(?!(?:.*\n+){{1,3}}[*_]*B\s*(?::|\Z)|.*[;,.。\s][*_]*B\s*:)"
    rf"|(?i:\b(?:{_ENGLISH}))|{_CHINESE}|(?P<correction>(?i:{_CORRECTION}))){_BLANKS}"
)
_DENIED = re.compile(
    r"(?i)^[\s*_:\"']*(?:definitely |certainly |clearly )?"
    r"(?:not\b|n't|never\b|neither\b|isn't|不是|并非|不为|非|不|wrong|incorrect)(?!\s*only)"
)
_DENIED_BEFORE = re.compile(
    r"(?i)(?:\bno[tn]?(?: the)?|n't(?: be)?(?: the)?|不是|并非|没有|不存在|误以为"
    r"|不(?:能|要|可以?|应该?|会)|(?:无法|不能)(?:判断|确定)|不知道|错误的?|wrong|incorrect)\s*$"
)
_OVER_WORK = re.compile(r"(?i)solution\W*:\W*$")
_TITLE = re.compile(
    r"(?i)\s*(?:step|part|case|conclusion|solution|explanation|calculat|analysis|summary|problem|verif|check|note"
    r"|步骤|第|解|分析|总结|结论|验)"
)
_END = re.compile(
    r"\n|(?<=\S)(?<!\bMr)(?<!\bMs)(?<!\bMrs)(?<!\bDr)(?<!i\.e)\.\s|(?<!\\)(?:[。?;]|!(?!\s*[$\d\\()*/+=-]))|<\||</"
)
_HEDGE = re.compile(
    r"(?i)^\s*(?:either|between|(?:less|more|greater|fewer) than|maybe|perhaps|unclear|unknown"
    r"|可能|也许|不确定|无法|大?约?在[^,。]{1,12}之间)"
)
_REACH = 400
_MAX_ANCHORS = 100


@dataclass(frozen=True)
class Anchor:
    """A place that says that an answer follows, and what follows it."""

    tail: Text
    """Up to the end of its sentence."""
    passed: str | None = None
    """Why it does not count, in words; None where it does."""


def anchored(text: Text, question: str = "") -> Iterator[Text]:
    """Yield what follows each anchor that counts, in order."""
    return (anchor.tail for anchor in anchors(text, question) if anchor.passed is None)


def anchors(text: Text, question: str = "") -> Iterator[Anchor]:
    """Read every anchor, in order; negated, hedged, hypothetical and questioned ones do not count.

    Of "the wrong one is" only what the question asks for counts.
    """
    string = text.string
    for match in list(_ANCHOR.finditer(string))[-_MAX_ANCHORS:]:
        begin = match.end()
        tail = string[begin : begin + _REACH]
        if not tail.strip():
            continue
        end = _END.search(tail)
        passed = _passed(string, match, begin, end, question)
        quoted = re.match(r"[\"“]([^\"”\n]+)[\"”]", tail) if passed is None else None
        first, last = quoted.span(1) if quoted else (0, end.start() if end and end.start() else len(tail))
        yield Anchor(text.part(begin + first, begin + last), passed)


def _passed(string: str, match: re.Match[str], begin: int, end: re.Match[str] | None, question: str) -> str | None:
    """Return why an anchor does not count, or None."""
    tail = string[begin : begin + _REACH]
    before = string[max(0, match.start() - 60) : match.start()]
    if _DENIED.match(tail):
        return "denied"
    if _HEDGE.match(tail):
        return "left open"
    if match["hash"] and _TITLE.match(tail):
        return "a heading"
    is_over_work = end is not None and re.search(r"\d|=", string[begin + end.end() :]) and re.search(r"=|\n", tail)
    if _OVER_WORK.search(match[0]) and is_over_work:
        return "a heading"
    if match["which"]:
        near = before[-2 if match[0][0] in "正成符最" else -30 :]
        described = re.split(r"[\n,。!?;]|所以|因此|故", near)[-1] + match[0]
        return None if is_asked(described, question) or "题意" in described else "not what is asked for"
    if _DENIED_BEFORE.search(before[-12:]):
        return "denied"
    clause = re.split(r"[\n。!?;]|\.\s|,\s*(?:but|so|then|and)\b|但|其实|正确", before)[-1]
    is_imagined = "would" in match[0] and re.search(r"\bif\b", clause, re.I)
    if is_imagined or (match["correction"] is None and SUPPOSED.search(clause)):
        return "only supposed"
    return "a question" if end and end[0] == "?" and end.start() else None
