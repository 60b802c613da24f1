"""An option recognized by its text rather than its letter."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping

from flowinfer.tasks.answers.polarity import CLAUSE, NEGATIVE, asks_wrong, is_denied_as_asked
from flowinfer.tasks.answers.text import Text, normalize

Spans = dict[str, list[tuple[int, int]]]
"""By letter where an option's text stands: start, end."""
_TRUTHS = (
    frozenset(("对", "正确", "是", "√", "true", "yes", "correct")),
    frozenset(("错", "错误", "不对", "不正确", "否", "不是", "×", "false", "no", "incorrect")),
)
_CONCLUDING = re.compile(r"(?:^|[.。!?,;\n])\s*(?:所以|因此|综上|故|可见|(?:so|therefore|thus|hence)\b)", re.I)
_MAX_SPANS = 40
"""Places of one option's text that are looked at, from the end."""
_ONLY = re.compile(r"(?:只有|是|只能是|因此|所以|\bonly|\bso|therefore,?|thus,?)\s*$", re.I)


def named_option(text: Text, choices: Mapping[str, str], question: str = "") -> str | None:
    """Return the one option whose text occurs, not counting clauses that deny it or repeat the question."""
    string = text.string
    said = string.strip().strip("。.!*").strip().lower()
    for truths in _TRUTHS:
        if said in truths:  # right or wrong, in other words than the option's
            matching = [letter for letter, option in choices.items() if option.strip().lower() in truths]
            return matching[0] if len(matching) == 1 else None
    kept = _kept(string, choices, question)
    if len(kept) > 1:  # 利率上升 may only repeat words of the question
        told = {
            letter: [(start, end) for start, end in spans if start < 2 or string[start - 2 : end] not in question]
            for letter, spans in kept.items()
        }
        kept = {letter: spans for letter, spans in told.items() if spans}
    return _singled(string, kept) if len(kept) > 1 else next(iter(kept), None)


def _kept(string: str, choices: Mapping[str, str], question: str) -> Spans:
    """Return where each option's text stands, outside other options' texts and clauses that deny it."""
    found = {letter: _spans(string, normalize(option).string.strip(" .。")) for letter, option in choices.items()}
    marks = [match.span() for match in CLAUSE.finditer(string)]
    begins, ends = [0, *(end for _, end in marks)], [*(start for start, _ in marks), len(string)]
    kept: Spans = {}
    for letter, spans in found.items():
        others = [span for other, more in found.items() if other != letter for span in more]
        for span in spans:
            is_inside = any(other[0] <= span[0] and span[1] <= other[1] and other != span for other in others)
            clause = begins[bisect_right(begins, span[0]) - 1], ends[bisect_left(ends, span[1])]
            rest = string[clause[0] : span[0]] + " " + string[span[1] : clause[1]]
            is_denied = re.search(r"[不没未非]$", string[max(0, span[0] - 1) : span[0]]) or NEGATIVE.search(rest)
            if not is_inside and (not is_denied or _is_asked_wrong(string, span, clause[1], question)):
                kept.setdefault(letter, []).append(span)
    return kept


def _is_asked_wrong(string: str, span: tuple[int, int], end: int, question: str) -> bool:
    """Return whether an option is denied as the question asks: "what is not ... is" before it, or "is not" behind."""
    if not asks_wrong(question):
        return False
    before = re.search(r"[^,。;\n]*(?:的?是|\bis)\s*$", string[max(0, span[0] - 80) : span[0]])
    return bool(before and NEGATIVE.search(before[0])) or is_denied_as_asked(string[span[1] : end], question)


def last_conclusion(string: str) -> int | None:
    """Return where what the last sentence or clause concludes begins: after its 所以."""
    return max((match.end() for match in _CONCLUDING.finditer(string)), default=None)


def _singled(string: str, kept: Spans) -> str | None:
    """Return the one of several options that the last sentence concludes with, that '=' gives, or that is "only" so."""
    concluding = last_conclusion(string)
    last = len(string) if concluding is None else concluding
    after = string.rfind("=") + 1
    tests: tuple[Callable[[int], bool], ...] = (
        lambda start: start >= last,
        lambda start: 0 < after <= start and not string[after:start].strip(" $¥"),
        lambda start: bool(_ONLY.search(string[max(0, start - 30) : start])),
    )
    for is_told in tests:
        results = [letter for letter, spans in kept.items() if any(is_told(start) for start, _ in spans)]
        if len(results) == 1:
            return results[0]
    return None


def _spans(string: str, option: str) -> list[tuple[int, int]]:
    if not option:
        return []
    left = r"(?<![A-Za-z0-9.])" if option[0].isascii() and option[0].isalnum() else ""
    right = r"(?![A-Za-z0-9]|\.\d)" if option[-1].isascii() and option[-1].isalnum() else ""
    return [match.span() for match in re.finditer(left + re.escape(option) + right, string, re.I)][-_MAX_SPANS:]
