"""Where in a text an answer is looked for: behind a correction, in boxes, behind anchors, in its sentences.

Sentences that only comment on the answer or check it are left out; refusals, bounds and texts that break off are known.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from flowinfer.tasks.answers.anchors import anchored, ends_in_box, last_boxes
from flowinfer.tasks.answers.numbers import spelled
from flowinfer.tasks.answers.text import Found, Text, joined


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
    r"(?i)(?:that(?:'s| is| was|)|this (?:is|was)|\bit(?:'s| is)) (?:not (?:quite )?(?:right|correct)"
    r"|(?:quite )?(?:wrong|incorrect))\b|that (?:can't be|isn't) (?:quite )?(?:right|correct)\b|(?<=[\d}$)]) (?:is"
    r"|was) (?:wrong|incorrect|not (?:right|correct)|too (?:low|high|small|big|large))\b"
)
_RETRACTED = re.compile(rf"(?i)(?:{_RETRACTION.pattern})\W*$")
"""That a text ends by taking back what it said."""
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
        ends |= {match.end() for match in _DENIED.finditer(text.string)}
    for end in sorted(ends, reverse=True)[:_MAX_RETRACTIONS]:
        yield text.part(end, len(text.string))
    yield text


def _is_taken_back(text: Text) -> bool:
    """Return whether a text ends by calling its answer wrong, with nothing in its place."""
    last = next(reversed(list(_DENIED.finditer(text.string))), None)
    rest = text.string[last.end() :] if last else None
    return rest is not None and len(rest) < 40 and not re.search(r"[\d?]", rest)


def _is_revised(rest: str) -> bool:
    """Return whether what follows a boxed answer takes it back and settles on another."""
    return bool(_REVISES.search(rest[:60]) and _SETTLES.search(rest) and not _CONFIRMS.search(rest))


_COMMENT = re.compile(
    r"(?i)^[\s*_#(\[>-]*(?:check|verif|(?:let me|to) (?:check|verify|double)|note\b|confidence\b|explanation|reason"
    r"|that is\b|i\.e\.|(?:this|that|it)(?:'s| is) because\b|(?:this|that|it|which)(?:'s| is| was| can| means"
    r"| matches| makes sense| equals| also)\b[^=]*\b(?:more|less|fewer|than|half|twice|times(?! \$?\d))\b"
    r"|(?:let\s+(?!me\b|us\b)|suppose\b|assume\b|(?:we )?try\b)"
    r"(?![^\n]*\b(?:so|then|thus|hence|therefore|get|have|gives?)\b)"
    r"|because\b[^,]*\Z|if you(?:'d| have| need| want| would| like)|i hope|验算|检验|检查|注|解释|说明|解析|提示|理由"
    r"|(?:do not|don't) (?:confuse|forget|mix)|be careful|remember\b|by the way|for (?:example|instance|comparison"
    r"|reference)\b|(?:in|by) (?:contrast|comparison)\b|had \w+ |(?:若|如果|即使|if\b)[^\n]*(?:错|不对|不是|\bbut\b"
    r"|wrong|incorrect|mistake)|(?<=\()(?:若|如果|if\b)|顺便|[如若]需|若要|别忘|不要|例如|比如|举例|相比之下|作为对比"
    r"|对比)|(?!so\b|thus\b|therefore\b|hence\b|所以|因此)[^\n]*?(?:\b(?:this|that|it|which)(?: also)? (?:confirms"
    r"|agrees|matches|is consistent)\b|[与和][^,，]{1,12}(?:相符|吻合|一致))"
)
_CHECK = re.compile(
    r"(?i)[(（]?\s*(?:\bcheck(?:ing)?|verif(?:y(?:ing)?|ication)|验算|检验|检查|\bnote|explanation|解析|注意?)\s*\**\s*[:：]"
    r"|代入检验|let me (?:just )?(?:check|verify|double)"
)
_BREAKDOWN = re.compile(
    r"(?i)\A(?=.*\d)([^\n:]{0,200}[.!*]\s{0,3})\n\W{0,9}(?:here(?:'s| is) (?:the|a|my|how|why)\b[^\n:]*|breakdown"
    r"|calculations?)\W*:(?![\s\S]*\b(?:so|therefore|thus|hence|final|answer|total)\b)"
)
"""An answer in one sentence, and behind it how it comes about, without another conclusion."""
_END = re.compile(
    r"\n+|(?<=[^\s\d])(?<!\bMr)(?<!\bMs)(?<!\bMrs)(?<!\bDr)(?<!\bSt)(?<!e\.g)(?<!i\.e)\.\s+"
    r"|(?<=[^\n]{2}\d)\.\s+(?!\d)|(?<=[^\n]{4}\d)\.\s+|(?<!\\)(?:[。?;]|!(?!\s*[$\d\\()*/+=-]))|\Z"
)
_ASKS = re.compile(
    r"[\W\d_]*(?:how|what|which|when|who|is|are|does)\b|[\W\d_]*\Z|.*(?:多少|[几哪]|什么|吗$)", re.I | re.S
)
_MAX_SENTENCE = 1_500
_VERIFIES = re.compile(r"(?i)check|verif|substit|plug|验|检")
_ANSWERS = re.compile(
    r"(?i)\n\s*[*_]*(?!\s*(?:note|check|verif|so far|if\b|this\b|that\b|it\b|both|注|这|验|检))[^\n=:]*\d[^\n=]*\Z"
)
REFUSAL = re.compile(
    r"(?i)(?:can't|(?:can|could) ?not|(?:unable|impossible|not possible|no way|hard) to) (?:be )?(?:solved?"
    r"|determined?|answer|find|tell|know|say|calculated?|computed?|give)|\bno (?:solution|answer)\b|(?:\bnot|n't|\bno"
    r"|\black(?:s|ing)?)\b[^.\n]{0,30}(?:enough|sufficient) (?:information|data|detail)|insufficient|\bnot (?:known"
    r"|given|provided|stated)\b|don't know|not sure|无法(?:确定|计算|回答|求|得知|判断|解答|得出)|不能确定|不知道"
    r"|(?:信息|条件|数据)(?:不足|不够|不完整)|缺[少乏].{0,6}(?:条件|信息|数据)"
)
"""That there is no answer, or none that the writer knows."""
_CODE_LAST = re.compile(
    r"```(?i:python|py|sympy|cpp|java)[^\n]*\n(?:(?!```)[\D\n])*(?:```\s*)?$"
    r"|(?:^|\n) *(?:print ?\((?!.*#.*\d)|return |def \w+\().*\s*$"
)
_BROKEN_OFF = re.compile(
    r"(?:[-=+/×÷≈(,，、]|[a-z)]\**:|\\times|\\d?frac|\\cdot|[(\s](?:is|are|the|of|for|per|an?|and|or|to|we|by|with|from"
    r"|ha[sv]e?|equals|that|then|so|thus|hence|therefore|at|than|because|(?:of|for) (?:the|these|those|all) \d+)"
    r"|(?:所以|因此|[为是得和与]|等于|(?<![对确误])的|得到)\s*[:：]?|\s[\"“]|[“「])$"
)
_INTENDS = re.compile(
    r"(?i)\W*(?:(?:so|now|next|then|first|okay),?\s+)?(?:let me|let's|let us|(?:i|we)(?:'ll|\s+(?:now\s+)?(?:(?:need"
    r"|have|want) to|must|should)))\s+(?:figure out|find|determine|calculate|compute|work out|break)\b"
    r"|\W*(?:现在|接下来|然后|下面|首先)?,?(?:我们?)?(?:还?需要?|来)[先再]?(?:计算|算|求|找|确定)"
)
"""A sentence that says what is to be done; as a text's last one it tells no answer."""
_PAIRS = ((r"\(", r"\)"), (r"\[", r"\]"), (r"\begin{", r"\end{"), ("<<", ">>"), ("\\left", "\\right"))
_SENTENCE_ENDS = re.compile(r"[.。!?！？;；:：)\]}】」”\"'|$>]$")
_SAYS = re.compile(r"[A-Za-z]{2,}|[\u4e00-\u9fff]{2}")
_NEAR_END = 30
"""Characters before the end of a sentence without its full stop in which its number stands."""


def without_checks(text: Text) -> Text:
    """Leave out what checks or explains an answer, but for a last paragraph that tells it.

    The whole is returned where no number stands before.
    """
    if (answer := _BREAKDOWN.match(text.string)) is not None:
        return text.part(0, answer.end(1))
    cut = _CHECK.search(text.string)
    if not cut or not re.search(r"\d", text.string[: cut.start()]):
        return text
    kept = [text.part(0, cut.start())]
    last = text.string.rstrip().rfind("\n\n")
    if last > cut.end() and _VERIFIES.search(cut[0]) and _ANSWERS.match(text.string, last):
        kept.append(text.part(last, len(text.string)))
    return joined(kept)


def sentences(text: Text) -> Iterator[Text]:
    """Yield the sentences that are no comments on others, and no questions."""
    begin = 0
    for match in _END.finditer(text.string):
        part = text.part(max(begin, match.start() - _MAX_SENTENCE), match.start())
        begin = match.end()
        is_asked = match[0] == "?" and _ASKS.match(part.string)
        if part.string.strip() and not is_asked and not _COMMENT.match(part.string):
            yield part


def is_broken_off(text: Text) -> bool:
    """Return whether a text stops inside a sentence, so that its last number is none that it settled on."""
    string = text.string.rstrip()
    if re.search(r"[a-z]\s\$$", string) or ends_in_box(text) or _CODE_LAST.search(text.string):
        return True
    string = string.rstrip("*_`$").rstrip()
    if _BROKEN_OFF.search(" " + string) or any(string.count(one) > string.count(other) for one, other in _PAIRS):
        return True
    before, _, last = string.rpartition("\n")
    parts = [*filter(str.strip, re.split(r"(?<=[^\d\s])\.\s+|(?<=\d)\.\s+(?=[A-Z])|[。!?！？]", last))] or [last]
    last = parts[-1]
    if not re.search(r"\d", last) and _INTENDS.match(last):
        return True
    if _SENTENCE_ENDS.search(string) or len(_SAYS.findall(last)) < 2 or spelled(last[-_NEAR_END:]):
        return False
    if re.match(r"\W*[A-H][.、:)]", string[len(before) :]) or re.search(r"=\s*[$¥]?\d", last):
        return False
    goes_before = len(parts) > 1 or bool(re.search(r"\d", before))
    tail = last if len(parts) == 1 and "." not in before else last[-_NEAR_END:]
    return goes_before and not re.search(r"\d", tail)


_THAN = r"\b(?:more|greater|larger|bigger|higher|less|fewer|smaller|lower)\s+than(?:\s+or\s+equal\s+to)?"
_WORDS = (
    rf"{_THAN}|\bat (?:least|most)\b|\bexceed(?:s|ing)?\b|[大小多少高低]于(?:等于)?|超过|不[到足]|至[少多](?:[是为有])?"
)
_OPENING = rf"{_WORDS}|\b(?:over|under|above|below|up to)\b|(?<![-=])(?!<[^<>]+>)[<>≤≥]=?|\\[gl](?:eq?|t)\b"
"""How an announced bound begins; within a sentence these words have other uses: "spread over 12 months"."""
_OPENS = re.compile(rf"(?i)[\s*$]*(?:(?:well|just|slightly|no|not|any|不)\s*)?(?:{_OPENING})")
_BEFORE = re.compile(
    rf"(?i)(?:{_WORDS}|(?:(?:answer|result|solution)\W+(?:is|are|was|lies)\s+|[:#]\s*)(?:{_OPENING}))[\s*$€£¥(]*$"
)
_NEAR_BOUND = 200
"""Characters before a number in which its bound is looked for."""
_BEHIND = re.compile(
    r"(?i)\s*(?:[a-z]+\s+)?(?:\+(?!\s*[\d(a-z])|or (?:more|less|fewer|greater|higher|above|over|below)\b)|个?以[上下]"
)
_ONLY = re.compile(r"[\s*$€£¥]*\d[\d,.]*")
_ASKED = re.compile(
    r"(?i)\b(?:least|most|minimum|maximum|min|max|fewest|smallest|largest|greatest|highest|lowest|needs?|needed|must"
    r"|required?)\b|[至最][少多大小高低]|需要?|才能"
)


def holds_bound(stretch: str, question: str) -> bool:
    """Return whether what stands where an answer stands is a bound that the question does not ask for."""
    number = _ONLY.match(stretch)
    is_bound = _OPENS.match(stretch) or (number and _BEHIND.match(stretch, number.end()))
    return bool(is_bound) and not _ASKED.search(question)


def is_bound(sentence: str, begin: int, end: int, question: str) -> bool:
    """Return whether what stands around a number makes it a bound that the question does not ask for."""
    is_bound = _BEFORE.search(sentence[:begin][-_NEAR_BOUND:]) or _BEHIND.match(sentence, end)
    return bool(is_bound) and not _ASKED.search(question)


def has_only_bounds(sentence: str, question: str) -> bool:
    """Return whether the numbers of a sentence, if it has any, are bounds that the question does not ask for."""
    numbers = list(re.finditer(r"-?\d+(?:[,.]\d+)*", sentence))
    return bool(numbers) and all(is_bound(sentence, *number.span(), question) for number in numbers)
