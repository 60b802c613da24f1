"""An option recognized by its text rather than its letter."""

from __future__ import annotations

import re
from collections.abc import Mapping

from flowinfer.tasks.answers.polarity import CLAUSE, NEGATIVE, asks_wrong
from flowinfer.tasks.answers.text import Text, normalize

_TRUTHS = (
    frozenset(("对", "正确", "是", "√", "true", "yes", "correct")),
    frozenset(("错", "错误", "不对", "不正确", "否", "不是", "×", "false", "no", "incorrect")),
)


_CONCLUDING = re.compile(r"(?:^|[.。!?,，;\n])\s*(?:所以|因此|综上|故|可见|(?:so|therefore|thus|hence)\b)", re.I)
_ONLY = re.compile(r"(?:只有|是|只能是|因此|所以|\bonly|\bso|therefore,?|thus,?)\s*$", re.I)


def named_option(text: Text, choices: Mapping[str, str], question: str = "") -> str | None:
    """Return the one option whose text occurs, not counting clauses that deny it or repeat the question."""
    string = text.string
    by_truth = _truth(string, choices)
    if by_truth is not None:
        return by_truth
    kept = _kept(string, choices, question)
    if len(kept) > 1:
        kept = {
            letter: new for letter, s in kept.items() if (new := [x for x in s if not _is_echo(string, x, question)])
        }
    if len(kept) > 1:
        return _singled(string, kept)
    return next(iter(kept), None)


def _kept(string: str, choices: Mapping[str, str], question: str) -> dict[str, list[tuple[int, int]]]:
    """Return where each option's text stands, outside other options' texts and clauses that deny it."""
    found = {
        letter: spans
        for letter, option in choices.items()
        if (spans := _spans(string, normalize(option).string.strip()))
    }
    kept = {}
    for letter, spans in found.items():
        others = [span for other, more in found.items() if other != letter for span in more]
        free = [s for s in spans if not any(o[0] <= s[0] and s[1] <= o[1] and o != s for o in others)]
        free = [s for s in free if not re.search(r"[不没未非]$", string[: s[0]])]
        free = [s for s in free if not NEGATIVE.search(_around(string, s)) or _is_asked_wrong(string, s, question)]
        if free:
            kept[letter] = free
    return kept


def _is_asked_wrong(string: str, span: tuple[int, int], question: str) -> bool:
    """Return whether "what is not ... is" stands before an option of a question that asks for just that."""
    before = re.search(r"[^,，。;\n]*(?:的?是|\bis)\s*$", string[: span[0]])
    return before is not None and bool(NEGATIVE.search(before[0])) and asks_wrong(question)


def _is_echo(string: str, span: tuple[int, int], question: str) -> bool:
    """Return whether an option's text only repeats words of the question, as 利率上升 does."""
    before = string[max(0, span[0] - 2) : span[0]]
    return len(before) == 2 and string[span[0] - 2 : span[1]] in question


def last_conclusion(string: str) -> int | None:
    """Return where what the last sentence or clause concludes begins: after its 所以."""
    return max((match.end() for match in _CONCLUDING.finditer(string)), default=None)


def _singled(string: str, kept: Mapping[str, list[tuple[int, int]]]) -> str | None:
    """Return the one of several options that the last sentence concludes with, that '=' gives, or that is "only" so."""
    concluding = last_conclusion(string)
    last = len(string) if concluding is None else concluding
    after = string.rfind("=") + 1
    tests = (
        lambda start: start >= last,
        lambda start: bool(after) and _is_next(string, after, start),
        lambda start: bool(_ONLY.search(string[:start])),
    )
    for test in tests:
        results = [letter for letter, spans in kept.items() if any(test(start) for start, _ in spans)]
        if len(results) == 1:
            return results[0]
    return None


def _truth(string: str, choices: Mapping[str, str]) -> str | None:
    """Return the option that says right or wrong in other words than the text."""
    said = string.strip().strip("。.!*").strip().lower()
    for truths in _TRUTHS:
        if said in truths:
            matching = [letter for letter, option in choices.items() if option.strip().lower() in truths]
            return matching[0] if len(matching) == 1 else None
    return None


def _is_next(string: str, after: int, at: int) -> bool:
    return at >= after and not string[after:at].strip(" $¥")


def _spans(string: str, option: str) -> list[tuple[int, int]]:
    if not option:
        return []
    left = r"(?<![A-Za-z0-9.])" if option[0].isascii() and option[0].isalnum() else ""
    right = r"(?![A-Za-z0-9]|\.\d)" if option[-1].isascii() and option[-1].isalnum() else ""
    return [match.span() for match in re.finditer(left + re.escape(option) + right, string, re.I)]


def _around(string: str, span: tuple[int, int]) -> str:
    """Return the rest of the clause that an option's text stands in."""
    begin = max([0, *(m.end() for m in CLAUSE.finditer(string) if m.end() <= span[0])])
    end = min([len(string), *(m.start() for m in CLAUSE.finditer(string) if m.start() >= span[1])])
    return string[begin : span[0]] + " " + string[span[1] : end]
