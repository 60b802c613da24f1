"""Which number a text gives as its answer: boxed > anchored > concluded or after the last '=' > last."""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction

from flowinfer.tasks.answers.finding import (
    REFUSAL,
    Reader,
    find,
    holds_bound,
    is_bound,
    is_broken_off,
    sentences,
    without_checks,
)
from flowinfer.tasks.answers.numbers import Number, asks_percent, clean, show, spelled, values
from flowinfer.tasks.answers.polarity import REPORTED, SUPPOSED
from flowinfer.tasks.answers.readings import (
    Reading,
    after_last_equals,
    asked_value,
    first_value,
    in_two_units,
    in_units,
    lists_several,
    main_clause,
)
from flowinfer.tasks.answers.runs import asked_clause
from flowinfer.tasks.answers.text import Found, Text

_CUE = re.compile(
    r"(?i)\b(?:(?<!okay )(?<!okay, )so|thus|therefore|hence|consequently|altogether|in total|in all|total|overall"
    r"|finally|left|remain(?:s|ing)?|(?:i|we|which) (?:get|gets|gives?)|(?:amounts?|comes?|adds? up|works out) to)\b"
    r"|\b(?:will|would|'ll) be\b|^\W*(?:that|this) means\b"
    r"|答|共|因此|所以|综上|最终|最后|总|剩|于是|故|:[\s*]*[-$€£¥]?[\d.,]+[\s*.%]*$"
)
_PASSED_OVER = re.compile(
    r"(?i)(?:(?:\bnot|n't|不是|并非|而非)\s*\$?|\b(?:step|case|part|question|problem|example|figure|option|method"
    r"|no\.)\s*#?|\b(?:equation|formula|eq\.|theorem|line|page|table)\s*\(?|第)$"
)
_NEAR = 60
"""Characters before a number in which it is looked for: all would take the square of a long list's length."""
_VERB = re.compile(
    r"(?i)(?:(?<!to )(?<!after )(?<!before )(?<!by )\b(?:is|are|was|were|be|ha[sd]|have|gets?|got|ma[kd]es?|earn(?:s"
    r"|ed)?|sav(?:es?|ed)|spen[dt]s?|costs?|takes?|took|needs?|pays?|paid|owes?|receives?|weighs?|equals?|totals?"
    r"|total of|total:|left with|(?:comes?|came|amounts?|adds? up|works out) to|holds?|contains?|keeps?|kept|sold"
    r"|sells|bought|buys|collect(?:s|ed)?|(?:pay|earn|sav|hav|mak|spend|cost|leav|gett|giv)ing|reads?"
    r"|brings? (?:\w+ ){0,3}?(?:in|to)|dr[io]ves?|travel(?:s|ed)?|walk(?:s|ed)?)\b[*\s:]*(?:(?!(?:in|at|on|by|from"
    r"|for|after|per|with|than|to|every|if)\b)[a-zA-Z']+\s+){0,5}?|(?:[是为有付赚应共]|需要?|得到?|剩下?|花费?了?"
    r"|卖出?了?|等于|用了?)[^\d,。;\n]{0,6}?)[*\s]*(?=-?[$€£¥￥]?\s?\d)"
)
_TURN = re.compile(r"(?i)\bbut\b|但是?|[^\s,，]*实际上")
_STATEMENT = re.compile(r"\b(?:is|are|equals)\s+(?:only |exactly |about )?[-$€£]?[\d.,]+%?(?:\s*[a-zA-Z]+){0,2}\W*$")
_IMAGINED = re.compile(r"\bwould\b", re.I), re.compile(r"\b(?:if|without|had|unless)\b", re.I)
_HOLDS = re.compile(r"共|是|\b(?:is|are|has|have)\b")
_SAYS = re.compile(r"(?i)(?:[是为共]有?|[余剩得]下?|\b(?:is|are|was|were|makes|leaves|gives|has|have|'s))\s*$")
_WEAK_BEFORE = re.compile(
    r"(?:\b(?:in|for|from|of|per|at|by|to|than|after|with|every|over|on)\s+(?:the |a )?\$?|第|每)$"
)
_TOTAL = re.compile(r"(?i)(?:\s*[a-z]+){0,2}?\s*\b(?:in all|in total|altogether)[\s.*]*$")
"""That a number is told last, as what all others come to: $12.50 per person, $50 in all."""
_BOLD = re.compile(r"\*\*([^*\n]{0,12}\d[^*\n]{0,30})\*\*")
_BOLD_LINE = re.compile(r"\s*\*\*[^*\n:]+:[^*\n]+\*\*\s*")
_BLANKED = re.compile(
    r"\((?:not|instead|rather|=)[^()]*\)|(?<=[\w%] )\(\d[^()=]*\)(?= [a-z][^().=]*\d)|^[\s*]*\d{1,2}[.)]\s+(?=\D)"
    r"|\d[\d.,]*\s+(?:more|fewer|less) than [^,.]*\d[^,.]*, which (?:is|was)(?=\s+\$?\d)"
    r"|(?:\bhalf|\d+%|\d/\d+) of [^,.]{0,20}\d[\d.,]*(?: [a-z]+)?, or (?=\$?\d)"
    r"|\d[\d.,]*\s?(?:[a-z]+)?,? (?:which )?(?:rounds|rounded) (?:up |down )?to(?=\s+\$?\d)"
)
_NAMED_VALUES = re.compile(r"(?i)[\s$]*([a-z])\s*=[^=,a-z]+(?:,|;|\band\b)[\s$]*(?!\1)[a-z]\s*=[^=,a-z]+")
_TERM = re.compile(r"(?:^|[=:]|\b(?:is|are|be|get)\b)[\s$*]*-?[\d.]+\s?[nxyz][\s$*.]*$")
"""That a stretch ends with a term rather than a value: x = 12y."""
_ALONE = re.compile(r"[\s$€£¥￥*#>-]*[\d,.]+[\s*.]*")
_LAST_CLAUSE = re.compile(
    r"(?i),?\s*\b(?:i\.e\.,?)(?=[\s$]*\d)|[,;]\s*(?:and\s+)?(?:so|thus|therefore|hence)\b|,?\s*\bwhich (?:leaves"
    r"|gives|makes|totals|equals|brings)\b|,\s*(?:for|making|totall?ing|giving"
    r"|leaving)\s+(?:an?\s+(?:\w+\s+){1,2}of\s+)?(?=\\?[$\d])|,?\s*(?:所以|因此|一共|总共|(?:即|也就是)(?=\s*[\d$¥]))"
    r"|,(?!\s*(?:每|其中|因为|由于|比))(?=[^,。=]{0,12}?(?:为|是|得到?|剩下?|还有|余)\s*[¥$]?-?\d)|,\s*(?:最终|最后"
    r"|于是|故|结果|实际|也就是说|换句话说|换言之|that is(?: to say)?,|in other words,?)"
)
_SINCE = re.compile(r"(?i),\s*(?:because|since)\b(?![^.]*(?:,\s*[a-z]|\bso\b))|,(?:因为|由于)(?![^。]*(?:,|所以))")
_LEAVES = re.compile(r"(?i),\s*leaving\b[^,.;]*")
_LEFT = re.compile(r"(?i)\b(?:left|leaves?|remain\w*|still|keeps?|rest|change|have|has|end up)\b")
_DOZEN = re.compile(r"(?i)\bdozen")
_WORKING = re.compile(r"[^\n=]*\d[^\n=]*=[^\n]*\n\s*(?:[^\n=]*\d)?[^\n=]*=")
"""Lines that work a value out, as they may stand under "The solution is:"."""
_WEAK_RULES = ("last_number", "statement")


def find_number(text: Text, question: str = "") -> Found:
    """Find the number that a text gives; of several side by side, the question tells which is meant."""
    found = find(text, _Numbers(question=question))
    part, _, ratio = (found.value or "").partition(" of ")
    is_small_percent = ratio == "1/100" and abs(Fraction(part)) < 1 and not asks_percent(question)
    if is_small_percent or (ratio == "12" and question and not _DOZEN.search(question)):
        return replace(found, value=show(Fraction(part) * Fraction(ratio)))
    return found


class _Numbers(Reader):
    def boxed(self, box: Text) -> Found | None:
        if re.search(r"\d\s*[,;]\s+(?:[a-z]\s*=\s*)?-?\$?\d", clean(box.string)):
            return Found(None, "ambiguous", "boxed", box.span())
        if holds_bound(clean(box.string), self.question) or _TERM.search(box.string):
            return Found(None, "no_answer", "boxed", box.span())
        found = _stated(box, "", is_led=True)
        return replace(found, rule="boxed", span=box.span()) if found else None

    def announced(self, text: Text, tails: list[Text]) -> Found | None:
        for tail in reversed(tails):
            begin = text.places.index(tail.places[0])
            if _WORKING.match(text.string, begin) and re.search(r"\n\W*$", text.string[:begin]):
                return self.closing(text.part(begin, len(text.string)))
            if holds_bound(clean(tail.string), self.question):
                continue
            found = _stated(tail, self.question, is_led=True)
            if found is not None:
                if found.value and " of " not in found.value and lists_several(tail.string, self.question):
                    return Found(None, "ambiguous", "anchor", tail.span())
                value = asked_value(tail.string, self.question, found.value) if found.value else None
                return replace(found, value=value, rule="anchor", span=tail.span())
        return None

    def closing(self, text: Text) -> Found:
        """Read the last sentence that concludes or works out a value, else the last that mentions a number."""
        body = without_checks(text)
        if body is text and is_broken_off(text):
            return Found(None, "truncated", "none", None)
        last: Found | None = None
        is_refused = False
        final = body.string.rstrip().rsplit("\n\n", 1)[-1].strip(" .。*") if body is not text else None
        for part in sentences(body):
            if REFUSAL.search(part.string):
                last, is_refused = None, True
                continue
            asked = re.split(r"[.。]\s*(?=\S)", self.question)[-1]
            is_concluding = "=" in part.string or _LAST_CLAUSE.search(part.string)
            clause = part.string if is_concluding else asked_clause(part.string, asked)
            begin = part.string.index(clause)
            found = _stated(part.part(begin, begin + len(clause)), self.question)
            if found is not None and found.rule in _WEAK_RULES and _CUE.search(part.string):
                found = replace(found, rule="conclusion")
            if found is None or (is_refused and found.rule in _WEAK_RULES):
                continue
            if found.value is not None:
                found = replace(found, value=asked_value(part.string, self.question, found.value))
            if found.rule == "last_number" and part.string.strip(" \n.。*") == final:
                found = replace(found, rule="conclusion")
            if found.rule != "last_number" or last is None or last.value is None or last.rule in _WEAK_RULES:
                last = found
        return last or Found(None, "no_answer", "none", None)


def _stated(sentence: Text, question: str, *, is_led: bool = False) -> Found | None:
    """Read a sentence that concludes, works out a value, or only mentions a number.

    What stands in a box or behind an anchor is led to it, so that its first number counts.
    """
    string = _BLANKED.sub(lambda match: " " * len(match[0]), clean(sentence.string))
    if is_led:
        string = main_clause(string).ljust(len(string))
    why = _SINCE.search(string)
    if why is not None and "=" not in string[: why.start()] and values(string[: why.start()]):
        string = string[: why.start()].ljust(len(string))
    if question and not _LEFT.search(question):
        string = _LEAVES.sub(lambda match: " " * len(match[0]), string)
    begin = _last_clause(string)
    if (turn := _TURN.search(string)) is not None and SUPPOSED.search(string[: turn.start()]):
        string = " " * turn.end() + string[turn.end() :]
        begin = max(begin, turn.end())
    if REPORTED.search(string) or _is_imagined(string[begin:], question):
        return None
    if "±" in string or _NAMED_VALUES.fullmatch(string):
        return Found(None, "ambiguous", "conclusion", sentence.span())
    has_cue = bool(_CUE.search(string) or _BOLD_LINE.fullmatch(sentence.string))
    free = [item for item in values(string) if not _PASSED_OVER.search(string[: item[1]][-_NEAR:])]
    free = [item for item in free if not re.match(r"-[a-z]{3}", string[item[2] :])] or free  # a 240-liter tank
    found = [item for item in free if not is_bound(string, item[1], item[2], question)]
    if _TERM.search(string) or (free and not found):
        return None
    if not found:
        last = string[begin:] if spelled(string[begin:]) else string
        if (numeral := spelled(last)) is None:
            return None
        rule = "conclusion" if has_cue or _HOLDS.search(string) else "last_number"
        return Found(in_units(numeral[0], last[numeral[2] :]), "ok", rule, sentence.span())
    if (bold := _emphasized(sentence)) is not None:
        return bold
    last = string[found[-1][2] :]
    if (numeral := spelled(last)) is not None and _SAYS.search(last[: numeral[1]]):
        return Found(in_units(numeral[0], last[numeral[2] :]), "ok", "conclusion", sentence.span())

    def span(item: Number) -> tuple[int, int] | None:
        is_same = len(string) == len(sentence.string)
        return (sentence.part(item[1], item[2]) if is_same else sentence).span() or sentence.span()

    equal = after_last_equals(string)
    if equal is not None and not (begin >= equal[2] and any(item[1] >= begin for item in found)):
        paired = in_two_units(equal[0], string[equal[2] :])
        return Found(paired or show(equal[0]), "ok", "equals", span(equal))
    is_summed = sum(item[1] < begin for item in found) > 1
    is_first = is_led and not is_summed
    reading, place = (first_value(string, found), found[0]) if is_first else _concluded(string, found, begin)
    if reading.is_ambiguous:
        return Found(None, "ambiguous", "conclusion", sentence.span())
    if reading.value is None:
        return None
    is_concluded = has_cue or equal is not None or _ALONE.fullmatch(string)
    rule = "conclusion" if is_concluded else "statement" if _STATEMENT.search(string) else "last_number"
    return Found(reading.value, "ok", rule, span(place))


def _is_imagined(clause: str, question: str) -> bool:
    """Return whether a clause tells what would be under a condition that the question does not set."""
    return "=" not in clause and all(one.search(clause) and not one.search(question) for one in _IMAGINED)


def _emphasized(sentence: Text) -> Found | None:
    """Read the number that a sentence prints bold after its last '='."""
    bold = list(_BOLD.finditer(sentence.string, sentence.string.rfind("=") + 1))
    if len(bold) != 1 or "=" not in sentence.string:
        return None
    found = _stated(sentence.part(*bold[0].span(1)), "", is_led=True)
    return replace(found, rule="conclusion") if found and found.value else None


def _last_clause(string: str) -> int:
    """Return where the last clause that draws a conclusion begins: ", so she has 12"."""
    clauses = _LAST_CLAUSE.finditer(string)
    return max((match.start() for match in clauses if not _is_enclosed(string, match.end())), default=0)


def _concluded(string: str, found: list[Number], begin: int) -> tuple[Reading, Number]:
    """Read the number that a sentence's main verb gives, else its last number that is no mere condition."""
    inside = [item for item in found if item[1] >= begin] or found
    begin = min(begin, inside[0][1])
    end = begin + len(main_clause(string[begin:]))
    inside = [item for item in inside if item[1] < end] or inside
    if re.match(r"[\s*$]*[\d.,]+\s+(?:is|are|was|were)\s+(?:the|how)\b", string):
        return first_value(string, found), found[0]
    if (total := next((item for item in reversed(inside) if _TOTAL.match(string, item[2])), None)) is not None:
        return Reading(in_units(total[0], string[total[2] :])), total
    for verb in reversed(list(_VERB.finditer(string, begin, end))):
        at = verb.end()
        chosen = next((item for item in inside if at - 2 <= item[1] + 1 and item[2] > at), None)
        if chosen is not None:
            break
    else:
        free = [i for i in inside if not (_is_enclosed(string, i[1]) or _WEAK_BEFORE.search(string[: i[1]] + " "))]
        is_first = not begin and re.fullmatch(r"[\s*$€£¥]*", string[: inside[0][1] + 1].strip("-, "))
        chosen = inside[0] if is_first else (free or inside)[-1]
    before = next((item for item in reversed(inside) if item[1] < chosen[1]), None)
    if before:
        between = string[before[2] :]
        is_range = re.search(r"\bbetween\s*\$?$", string[: before[1]])
        if is_range or re.match(r"[^,.]{0,12}(?:\bor\b|或|还是|[到至].{0,12}之间)", between):
            return Reading(None, True), chosen
        if in_two_units(before[0], between):
            chosen = before
        elif re.fullmatch(r"\s*[~–—-]\s*", string[before[2] : chosen[1]]):
            return Reading(None, True), chosen
    return first_value(string, [item for item in found if item[1] >= chosen[1]]), chosen


def _is_enclosed(string: str, at: int) -> bool:
    opened = string.rfind("(", 0, at)
    return opened >= 0 and ")" not in string[opened:at]
