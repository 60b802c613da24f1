"""Sentences of an output, without those that only comment on the answer or check it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from flowinfer.tasks.answers.text import Text, joined

_COMMENT = re.compile(
    r"^[\s*_#(\[>-]*(?:check|verif|(?:let me|to) (?:check|verify|double)|note\b|explanation|reason|that is\b|i\.e\."
    r"|(?:this|that|it|which)(?:'s| is| was| can| means| matches| makes sense| equals| also)\b[^=]*"
    r"\b(?:more|less|fewer|than|half|twice|times)\b"
    r"|because\b[^,]*\Z|if you|i hope|验算|检验|检查|注|解释|说明|解析|提示|理由"
    r"|(?:do not|don't) (?:confuse|forget|mix)|be careful|remember\b|by the way"
    r"|for (?:example|instance|comparison|reference)\b|(?:in|by) (?:contrast|comparison)\b|had \w+ "
    r"|(?:若|如果|即使|if\b)[^\n]*(?:错|不对|不是|\bbut\b|wrong|incorrect|mistake)|(?<=\()(?:若|如果|if\b)"
    r"|顺便|[如若]需|若要|别忘|不要|例如|比如|举例|相比之下|作为对比|对比)"
    r"|(?!so\b|thus\b|therefore\b|hence\b|所以|因此)[^\n]*?(?:\b(?:this|that|it|which)(?: also)? "
    r"(?:confirms|agrees|matches|is consistent)\b|[与和][^,，]{1,12}(?:相符|吻合|一致))",
    re.I,
)
_CHECK = re.compile(
    r"[(（]?\s*(?:\bcheck|verif(?:y|ication)|验算|检验|检查|\bnote|explanation|解析|注意?)\s*\**\s*[:：]"
    r"|(?:substitut|plugg)ing [^.\n]{0,20}back|代入检验|let me (?:just )?(?:check|verify|double)",
    re.I,
)
_END = re.compile(
    r"\n+|(?<=[^\s\d])(?<!\bMr)(?<!\bMs)(?<!\bMrs)(?<!\bDr)(?<!\bSt)(?<!e\.g)(?<!i\.e)\.\s+"
    r"|(?<=[^\n]{2}\d)\.\s+(?!\d)|(?<=[^\n]{4}\d)\.\s+|(?<!\\)[。!?;]|\Z"
)
_MAX_SENTENCE = 1_500
_VERIFIES = re.compile(r"check|verif|substit|plug|验|检", re.I)
_ANSWERS = re.compile(
    r"\n\s*[*_]*(?!\s*(?:note|check|verif|so far|if\b|this\b|that\b|it\b|both|注|这|验|检))[^\n=:]*\d[^\n=]*\Z", re.I
)
_REFUSAL = re.compile(
    r"(?:can't|(?:can|could) ?not|(?:unable|impossible|not possible|no way|hard) to) (?:be )?"
    r"(?:solved?|determined?|answer|find|tell|know|say|calculated?|computed?|give)"
    r"|\bno (?:solution|answer)\b|(?:\bnot|n't|\bno|\black(?:s|ing)?)\b[^.\n]{0,30}(?:enough|sufficient) "
    r"(?:information|data|detail)|insufficient|\bnot (?:given|provided|stated)\b|don't know|not sure"
    r"|无法(?:确定|计算|回答|求|得知|判断|解答|得出)|不能确定|不知道"
    r"|(?:信息|条件|数据)(?:不足|不够|不完整)|缺[少乏].{0,6}(?:条件|信息|数据)",
    re.I,
)


def is_refusal(sentence: str) -> bool:
    """Return whether a sentence says that there is no answer, or none that its writer knows."""
    return bool(_REFUSAL.search(sentence))


def without_checks(text: Text) -> Text:
    """Leave out what checks or explains an answer, but for a last paragraph that tells it.

    The whole is returned where no number stands before.
    """
    cut = _CHECK.search(text.string)
    if not cut or not re.search(r"\d", text.string[: cut.start()]):
        return text
    kept = [text.part(0, cut.start())]
    last = text.string.rstrip().rfind("\n\n")
    if last > cut.end() and _VERIFIES.search(cut[0]) and _ANSWERS.match(text.string, last):
        kept.append(text.part(last, len(text.string)))
    return joined(kept)


def sentences(text: Text) -> Iterator[Text]:
    """Yield the sentences that are no comments on others."""
    begin = 0
    for match in _END.finditer(text.string):
        part = text.part(max(begin, match.start() - _MAX_SENTENCE), match.start())
        begin = match.end()
        if part.string.strip() and not _COMMENT.match(part.string):
            yield part
