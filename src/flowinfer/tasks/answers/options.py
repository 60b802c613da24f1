"""Options recognized by their texts rather than their letters: the texts are read as letters."""

from __future__ import annotations

import re
from collections.abc import Mapping

from flowinfer.tasks.answers.text import Text, joined, normalize

_TRUTHS = (
    frozenset(("对", "正确", "是", "√", "true", "yes", "correct")),
    frozenset(("错", "错误", "不对", "不正确", "否", "不是", "×", "false", "no", "incorrect")),
)


_PREDICATE = re.compile(
    r"(?i)\b(?:which|what) (?:of the[a-z]* )?[a-z]+ ((?:is|are|was|were) (?!not)[^?,_]{6,60}"
    r"|(?!of\b|is\b|are\b|was\b|does\b|best\b)[a-z]{4,} [a-z]{3,})"
)
"""What a question asks of an option: "which amendment abolished slavery"."""
_BLANK = re.compile(r"(?<=\d)\s+(?=[\u4e00-\u9fff])")
"""A blank before a Chinese unit: 7 种 is 7种."""
_BEFORE = 5
"""Characters before a question's blank by which a text is known to complete it."""


def by_truth(string: str, choices: Mapping[str, str]) -> str | None:
    """Return the one option that says right or wrong as a text does, in other words."""
    said = string.strip().strip("。.!*").strip().lower()
    truths: frozenset[str] = next((truths for truths in _TRUTHS if said in truths), frozenset())
    matching = [letter for letter, option in choices.items() if option.strip().lower() in truths]
    return matching[0] if len(matching) == 1 else None


def completing(string: str, choices: Mapping[str, str], question: str) -> str | None:
    """Return the one option that a text puts where the question has its blank: beside the same words."""
    predicate = _PREDICATE.search(question)
    behind = rf"\b.{{0,3}}{re.escape(predicate[1])}\b" if predicate else r"(?!)"
    told = {letter for letter, option in _texts(choices) if re.search(_form(option) + behind, string, re.I)}
    if len(told) == 1:
        return told.pop()
    stem = re.sub(r"[\s(]*(?:_{2,}.*|[?？:：。.)(\s]+)$", "", normalize(question).string, flags=re.S)[-_BEFORE:]
    if len(stem) < _BEFORE:
        return None
    before = re.escape(stem) + r"(?:[是为:]|\s)*[\"“《]?"
    found = {letter for letter, option in _texts(choices) if re.search(before + _form(option), string, re.I)}
    return found.pop() if len(found) == 1 else None


def lettered(text: Text, choices: Mapping[str, str], question: str) -> Text:
    """Write "(C)" where a text has C's text, the longest first; not where it repeats words of the question."""
    options = {option.lower(): letter for letter, option in _texts(choices)}
    forms = [_form(option) for option in sorted(options, key=len, reverse=True)]
    parts, last = [], 0
    for match in re.finditer("|".join(forms), text.string, re.I) if forms else ():
        start, end = match.span()
        if start >= 2 and text.string[start - 2 : end] in question:
            continue
        said = _BLANK.sub("", match[0])
        bare = re.sub(r"(?i)^(?:an?|the)\s+", "", said) if said.lower() not in options else said
        name = f"({options[bare.lower()]})"
        parts += [text.part(last, start), Text(name, [text.places[start], text.places[start], text.places[end - 1]])]
        last = end
    return joined([*parts, text.part(last, len(text.string))])


def _texts(choices: Mapping[str, str]) -> list[tuple[str, str]]:
    texts = [(letter, _BLANK.sub("", normalize(option).string.strip(" .。"))) for letter, option in choices.items()]
    return [(letter, text) for letter, text in texts if text]


def _form(option: str) -> str:
    left = r"(?<![A-Za-z0-9.])(?:(?:an?|the)\s+)?" if option[0].isascii() and option[0].isalnum() else ""
    right = r"(?![A-Za-z0-9]|\.\d)" if option[-1].isascii() and option[-1].isalnum() else ""
    spaced = re.sub(r"(?<=\d)(?=[\u4e00-\u9fff])", r"\\s?", re.escape(option))
    return left + spaced + right
