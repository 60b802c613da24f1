"""Sentences of an output, without those that only comment on the answer or check it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from flowinfer.tasks.answers.text import Text

_COMMENT = re.compile(
    r"^[\s*_#(\[>-]*(?:check|verif|let me (?:check|verify|double)|to (?:check|verify)|note\b|explanation|hint"
    r"|reason|that is\b|i\.e\."
    r"|(?:this|that|it|which)(?:'s| is| was| can| means| matches| makes sense| equals| also)\b[^=]*\b(?:more|less|fewer"
    r"|than|verified|half|twice|times)\b"
    r"|because\b[^,]*\Z|if you|feel free|i hope|验算|检验|检查|注|解释|说明|解析|提示|理由)",
    re.I,
)
_CHECK = re.compile(
    r"[(（]?\s*(?:\bcheck|verif(?:y|ication)|验算|检验|检查|\bnote|explanation|解析|注意?)\s*\**\s*[:：]"
    r"|(?:substitut|plugg)ing [^.\n]{0,20}back|代入检验|let me (?:just )?(?:check|verify|double)",
    re.I,
)
_END = re.compile(
    r"\n+|(?<=[^\s\d])(?<!\bMr)(?<!\bMs)(?<!\bMrs)(?<!\bDr)(?<!\bSt)(?<!e\.g)(?<!i\.e)\.\s+"
    r"|(?<=[^\n]{2}\d)\.\s+(?!\d)|(?<=[^\n]{4}\d)\.\s+"
    r"|(?<!\\)[。!?;]|\Z"
)


_MAX_SENTENCE = 1_500
_REFUSAL = re.compile(
    r"(?:cannot|can't|can not|could not|unable to|impossible to|not possible to|no way to"
    r"|hard to) (?:be )?(?:solve|determine|answer|find|tell|know|say|calculate|compute|give)"
    r"|\bno (?:solution|answer|way)\b|not enough (?:information|data)|insufficient|\bnot (?:given|provided"
    r"|stated)\b|don't know|not sure"
    r"|无法(?:确定|计算|回答|求|得知|判断|解答|得出)"
    r"|不能确定|信息不足|条件不足|不知道",
    re.I,
)


def is_refusal(sentence: str) -> bool:
    """Return whether a sentence says that there is no answer, or none that its writer knows."""
    return bool(_REFUSAL.search(sentence))


def before_check(text: Text) -> Text:
    """Return a text up to where it checks or explains its answer, the whole if a number never stands before."""
    cut = _CHECK.search(text.string)
    return text.part(0, cut.start()) if cut and re.search(r"\d", text.string[: cut.start()]) else text


def sentences(text: Text) -> Iterator[Text]:
    """Yield the sentences that are no comments on others."""
    begin = 0
    for match in _END.finditer(text.string):
        part = text.part(max(begin, match.start() - _MAX_SENTENCE), match.start())
        begin = match.end()
        if part.string.strip() and not _COMMENT.match(part.string):
            yield part
