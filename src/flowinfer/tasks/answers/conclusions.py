"""The number that a text without boxes and anchors ends up with, sentence by sentence."""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction

from flowinfer.tasks.answers.anchors import is_broken_off
from flowinfer.tasks.answers.asked import asked_value
from flowinfer.tasks.answers.numbers import clean, show, values
from flowinfer.tasks.answers.numerals import spelled
from flowinfer.tasks.answers.readings import (
    Reading,
    after_last_equals,
    answer_in,
    first_value,
    in_two_units,
    in_units,
    main_clause,
)
from flowinfer.tasks.answers.sentences import is_refusal, sentences, without_checks
from flowinfer.tasks.answers.text import Found, Text

_CUE = re.compile(
    r"\b(?:so|thus|therefore|hence|consequently|altogether|in total|in all|total|overall|finally|left"
    r"|remain(?:s|ing)?|(?:i|we|which) (?:get|gets|gives?)|(?:amounts?|comes?|adds? up|works out) to)\b"
    r"|\b(?:will|would|'ll) be\b|答|共|因此|所以|综上|最终|最后|总|剩|于是|故",
    re.I,
)
_PASSED_OVER = re.compile(
    r"(?:(?:\bnot|n't|不是|并非|而非)\s*\$?|\b(?:step|case|part|question|problem|example|figure|option|method"
    r"|no\.)\s*#?|第|^[\s*]*(?=\d+[.)]\s))$",
    re.I,
)
_VERB = re.compile(
    r"(?:(?<!to )(?<!after )(?<!before )(?<!by )\b(?:is|are|was|were|be|ha[sd]|have|gets?|got|ma[kd]es?|earn(?:s|ed)?"
    r"|sav(?:es?|ed)|spen[dt]s?|costs?|takes?|took|needs?|pays?|paid|owes?|receives?|weighs?|equals?|totals?|total of"
    r"|total:|left with|(?:comes?|came|amounts?|adds? up|works out) to|holds?|contains?|keeps?|kept|sold|sells|bought"
    r"|buys|collect(?:s|ed)?|(?:pay|earn|sav|hav|mak|spend|cost|leav|gett|giv)ing|reads?|dr[io]ves?|travel(?:s|ed)?"
    r"|walk(?:s|ed)?)\b[*\s:]*(?:(?!(?:in|at|on|by|from|for|after|per|with|than|to|every|if)\b)[a-zA-Z']+\s+){0,5}?"
    r"|(?:[是为有付赚应共]|需要?|得到?|剩下?|花费?了?|卖出?了?|等于|用了?)[^\d,。;\n]{0,6}?)[*\s]*(?=-?[$€£¥￥]?\s?\d)",
    re.I,
)
_STATEMENT = re.compile(r"\b(?:is|are|equals)\s+(?:only |exactly |about )?[-$€£]?[\d.,]+%?\s*[a-zA-Z]*\W*$")
_WEAK_BEFORE = re.compile(
    r"(?:\b(?:in|for|from|of|per|at|by|to|than|after|with|every|over|on)\s+(?:the |a )?\$?|第|每)$"
)
_BOLD = re.compile(r"\*\*([^*\n]{0,12}\d[^*\n]{0,30})\*\*")

_WEAK_RULES = ("last_number", "statement")


def unanchored(text: Text, question: str = "") -> Found:
    """Read the last sentence that concludes or works out a value, else the last that mentions a number."""
    body = without_checks(text)
    if body is text and is_broken_off(text):
        return Found(None, "truncated", "none", None)
    last: Found | None = None
    is_refused = False
    closing = body.string.rstrip().rsplit("\n\n", 1)[-1].strip(" .。*")
    for part in sentences(body):
        if is_refusal(part.string):
            last, is_refused = None, True
            continue
        found = _stated(part)
        if found is not None and found.value is not None:
            found = replace(found, value=asked_value(part.string, question, found.value))
        if (
            body is not text
            and found is not None
            and found.rule == "last_number"
            and part.string.strip(" \n.。*") == closing
        ):
            found = replace(found, rule="conclusion")
        if found is None or (is_refused and found.rule in _WEAK_RULES):
            continue
        if found.rule != "last_number" or last is None or last.value is None or last.rule in _WEAK_RULES:
            last = found
    return last or Found(None, "no_answer", "none", None)


def _stated(sentence: Text) -> Found | None:
    """Read a sentence that concludes, works out a value, or only mentions a number."""
    string = clean(sentence.string)
    string = re.sub(
        r"\((?:not|instead|rather)[^()]*\)|^[\s*]*\d{1,2}[.)]\s+(?=\D)", lambda match: " " * len(match[0]), string
    )
    span_of = sentence if len(string) == len(sentence.string) else None
    found = [item for item in values(string) if not _PASSED_OVER.search(string[: item[1]])]
    has_cue = bool(
        _CUE.search(string)
        or re.search(r":[\s*]*[-$€£¥]?[\d.,]+[\s*.%]*$", string)
        or re.fullmatch(r"\s*\*\*[^*\n:]+:[^*\n]+\*\*\s*", sentence.string)
    )
    if "±" in string:
        return Found(None, "ambiguous", "conclusion", sentence.span())
    if re.search(r"\bwould (?:be|have)\b", string) and re.search(r"\b(?:if|without|had|unless)\b", string, re.I):
        return None
    if not found:
        last = string[_last_clause(string) :]
        numeral = spelled(last)
        last = last if numeral else string
        numeral = numeral or spelled(last)
        if numeral is None:
            return None
        rule = "conclusion" if has_cue or re.search(r"共|是|\b(?:is|are|has|have)\b", string) else "last_number"
        return Found(in_units(numeral[0], last[numeral[2] :]), "ok", rule, sentence.span())
    if (bold := _emphasized(sentence)) is not None:
        return bold
    equal = after_last_equals(string)
    begin = _last_clause(string)
    if equal is not None and not (begin >= equal[2] and any(item[1] >= begin for item in found)):
        return Found(show(equal[0]), "ok", "equals", _place(span_of, equal) or sentence.span())
    is_alone = bool(re.fullmatch(r"[\s$€£¥￥*#>-]*[\d,.]+[\s*.]*", string))
    reading, place = _concluded(string, found, begin)
    if reading.is_ambiguous:
        restated = re.search(r",?\s*(?:which is|,\s*or|i\.e\.,?|that is,?|即|也就是)\s*(?=[-$\d])", string[place[2] :])
        if restated is None:
            return Found(None, "ambiguous", "conclusion", sentence.span())
        reading = answer_in(string[place[2] + restated.end() :])
    if reading.value is None:
        return None
    rule = "conclusion" if has_cue or is_alone else "statement" if _STATEMENT.search(string) else "last_number"
    return Found(reading.value, "ok", rule, _place(span_of, place) or sentence.span())


def _emphasized(sentence: Text) -> Found | None:
    """Read the number that a sentence prints bold after its last '='."""
    bold = list(_BOLD.finditer(sentence.string, sentence.string.rfind("=") + 1))
    value = answer_in(bold[-1][1]).value if len(bold) == 1 and "=" in sentence.string else None
    return Found(value, "ok", "conclusion", sentence.part(*bold[0].span(1)).span()) if value else None


def _last_clause(string: str) -> int:
    """Return where the last clause that draws a conclusion begins: ", so she has 12"."""
    clauses = re.finditer(
        r",?\s*\b(?:i\.e\.,?)(?=[\s$]*\d)|[,;，]\s*(?:and\s+)?(?:so|thus|therefore|hence|which (?:leaves|gives"
        r"|makes|totals|equals))\b|,\s*(?:for|making|totall?ing|giving|leaving)\s+(?:a total of\s+)?(?=[$\d])"
        r"|[,，]?\s*(?:所以|因此|一共|总共|(?:即|也就是)(?=\s*[\d$¥]))"
        r"|[,，](?!\s*(?:每|其中|因为|由于|比))(?=[^,，。=\d]{0,12}(?:为|是|得到?|剩下?|还有|余)\s*[¥$]?-?\d)"
        r"|[,，]\s*(?:最终|最后|于是|故|结果|实际)"
        r"|[,，]\s*(?:也就是说|换句话说|换言之|that is(?: to say)?,|in other words,?)",
        string,
        re.I,
    )
    return max((match.start() for match in clauses if not _is_enclosed(string, match.end())), default=0)


def _concluded(
    string: str, found: list[tuple[Fraction, int, int]], begin: int
) -> tuple[Reading, tuple[Fraction, int, int]]:
    """Read the number that a sentence's main verb gives, else its last number that is no mere condition."""
    inside = [item for item in found if item[1] >= begin] or found
    main = main_clause(string[min(begin, inside[0][1]) :])
    end = min(begin, inside[0][1]) + len(main)
    inside = [item for item in inside if item[1] < end] or inside
    verbs = [match.end() for match in _VERB.finditer(string, min(begin, inside[0][1]), end)]
    for at in reversed(verbs):
        chosen = next((item for item in inside if at - 2 <= item[1] + 1 and item[2] > at), None)
        if chosen is not None:
            break
    else:
        free = [i for i in inside if not (_is_enclosed(string, i[1]) or _WEAK_BEFORE.search(string[: i[1]] + " "))]
        begins = re.fullmatch(r"[\s*$€£¥]*", string[min(begin, inside[0][1]) : inside[0][1] + 1].strip("-,， "))
        chosen = inside[0] if begins and begin == 0 else (free or inside)[-1]
    earlier = [item for item in inside if item[1] < chosen[1]]
    if earlier and re.match(r"[^,.]{0,12}(?:\bor\b|或|还是|[到至].{0,12}之间)", string[earlier[-1][2] :]):
        return Reading(None, True), chosen
    if earlier and in_two_units(earlier[-1][0], string[earlier[-1][2] :]):
        chosen = earlier[-1]
    elif earlier and re.fullmatch(r"\s*[~–—-]\s*", string[earlier[-1][2] : chosen[1]]):
        return Reading(None, True), chosen
    rest = [item for item in found if item[1] >= chosen[1]]
    return first_value(string, rest), chosen


def _is_enclosed(string: str, at: int) -> bool:
    opened = string.rfind("(", 0, at)
    return opened >= 0 and ")" not in string[opened:at]


def _place(text: Text | None, found: tuple[Fraction, int, int]) -> tuple[int, int] | None:
    return text.part(found[1], found[2]).span() if text is not None else None
