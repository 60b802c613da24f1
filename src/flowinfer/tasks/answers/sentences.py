"""Sentences of an output, without those that only comment on the answer or check it; refusals, breaks and bounds."""

from __future__ import annotations

import re
from collections.abc import Iterator

from flowinfer.tasks.answers.boxes import ends_in_box
from flowinfer.tasks.answers.numbers import spelled
from flowinfer.tasks.answers.text import Text, joined

_COMMENT = re.compile(
    r"(?i)^[\s*_#(\[>-]*(?:check|verif|(?:let me|to) (?:check|verify|double)|note\b|confidence\b|explanation|reason"
    r"|that is\b|i\.e\.|(?:this|that|it)(?:'s| is) because\b|(?:this|that|it|which)(?:'s| is| was| can| means"
    r"| matches| makes sense| equals| also)\b[^=]*\b(?:more|less|fewer|than|half|twice|times)\b|(?:let\s+(?!me\b"
    r"|us\b)|suppose\b|assume\b|(?:we )?try\b)(?![^\n]*\b(?:so|then|thus|hence|therefore|get|have|gives?)\b)"
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
_REFUSAL = re.compile(
    r"(?i)(?:can't|(?:can|could) ?not|(?:unable|impossible|not possible|no way|hard) to) (?:be )?(?:solved?"
    r"|determined?|answer|find|tell|know|say|calculated?|computed?|give)|\bno (?:solution|answer)\b|(?:\bnot|n't|\bno"
    r"|\black(?:s|ing)?)\b[^.\n]{0,30}(?:enough|sufficient) (?:information|data|detail)|insufficient|\bnot (?:known"
    r"|given|provided|stated)\b|don't know|not sure|无法(?:确定|计算|回答|求|得知|判断|解答|得出)|不能确定|不知道"
    r"|(?:信息|条件|数据)(?:不足|不够|不完整)|缺[少乏].{0,6}(?:条件|信息|数据)"
)
_CODE_LAST = re.compile(
    r"```(?i:python|py|sympy|cpp|java)[^\n]*\n(?:(?!```)[\D\n])*(?:```\s*)?$"
    r"|(?:^|\n) *(?:print ?\((?!.*#.*\d)|return |def \w+\().*\s*$"
)
_BROKEN_OFF = re.compile(
    r"(?:[-=+/×÷≈(,，、]|[a-z)]\**:|\\times|\\d?frac|\\cdot|[(\s](?:is|are|the|of|for|per|an?|and|or|to|we|by|with|from"
    r"|ha[sv]e?|equals|that|then|so|thus|hence|therefore|at|than|because|(?:of|for) (?:the|these|those|all) \d+)"
    r"|(?:所以|因此|[为是得和与]|等于|(?<![对确误])的|得到)\s*[:：]?)$"
)
_PAIRS = ((r"\(", r"\)"), (r"\[", r"\]"), (r"\begin{", r"\end{"), ("<<", ">>"), ("\\left", "\\right"))
_SENTENCE_ENDS = re.compile(r"[.。!?！？;；:：)\]}】」”\"'|$>]$")
_SAYS = re.compile(r"[A-Za-z]{2,}|[\u4e00-\u9fff]{2}")
_NEAR_END = 30
"""Characters before the end of a sentence without its full stop in which its number stands."""


def is_refusal(sentence: str) -> bool:
    """Return whether a sentence says that there is no answer, or none that its writer knows."""
    return bool(_REFUSAL.search(sentence))


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
    parts = re.split(r"(?<=[^\d\s])\.\s+|(?<=\d)\.\s+(?=[A-Z])|[。!?！？]", last)
    last = parts[-1]
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
    is_bound = _BEFORE.search(sentence[:begin]) or _BEHIND.match(sentence, end)
    return bool(is_bound) and not _ASKED.search(question)


def has_only_bounds(sentence: str, question: str) -> bool:
    """Return whether the numbers of a sentence, if it has any, are bounds that the question does not ask for."""
    numbers = list(re.finditer(r"-?\d+(?:[,.]\d+)*", sentence))
    return bool(numbers) and all(is_bound(sentence, *number.span(), question) for number in numbers)
