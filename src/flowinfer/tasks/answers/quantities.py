"""Which number a text gives as its answer: boxed > anchored > concluded or after the last '=' > last."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from flowinfer.tasks.answers.anchors import anchored, ends_in_box, hedged, is_broken_off, last_boxed
from flowinfer.tasks.answers.corrections import corrected, is_taken_back
from flowinfer.tasks.answers.numbers import clean, show, values
from flowinfer.tasks.answers.numerals import ENGLISH, spelled
from flowinfer.tasks.answers.sentences import before_check, is_refusal, sentences
from flowinfer.tasks.answers.text import Found, Text


@dataclass(frozen=True)
class _Reading:
    """What a stretch says: a value, or several that stand side by side."""

    value: str | None
    is_ambiguous: bool = False


_ASIDE = re.compile(
    r"\((?=\D*\d)[^()]*\)|,?\s*(?:\bnot\b|\brather than\b|\binstead of\b|而不是|而非|不是)"
    r"|,?\s*(?:\b(?:because|since|which(?! (?:averages|gives|leaves|makes|comes|totals|amounts|adds|works)\b)"
    r"|given that|where|compared|considering|assuming|as (?:it|he|she|they|there))\b|其中|因为|由于)"
    r"|\bout of\b|,\s*(?=\d[\d.,]*\s+(?:more|fewer|less)\b)|[→⇒]\s*(?=check)",
    re.I,
)
_SUMMED = re.compile(
    r"\b(?:for a total of|a total of|totall?ing|in total|altogether|which (?:makes|gives)|(?:and|,)\s*so"
    r"|therefore|thus)\b|一共|总共|共(?=\d)|所以",
    re.I,
)
_GAP = r"\s*[a-zA-Z$€£¥￥%\u4e00-\u9fff]{0,14}(?:\s[a-zA-Z]{1,12})?\s*"
_NEXT = re.compile(rf"^{_GAP}(?:[-+*/÷×^]|\bx\b)\s*[($\s]*\d")
_EQUAL = re.compile(rf"^{_GAP}[)\s]*[=≈]")
_RANGE = re.compile(
    r"^\s?[a-zA-Z$%\u4e00-\u9fff]{0,8}\s*(?:~|–|—|\bto\b|到|至|\bor\b|或者?|还是)\s*(?:maybe|perhaps|possibly"
    r"|也许|可能是?)?\s*[$¥]?\s*-?\d",
    re.I,
)
_RATIO = re.compile(r"^\s?:\s?\d")
_CENTS = re.compile(
    r"^\s*(?P<unit>dollars?|元|块)\s*(?:and\s*)?(?P<small>\d{1,2})\s*(?P<kind>cents?|角|毛|分)(?:\s*(?P<fen>\d)\s*分)?",
    re.I,
)
_PAIRED = re.compile(
    r"^\s*(?:feet|foot|ft|hours?|hrs?|h|minutes?|mins?|pounds?|lbs?|weeks?|years?|days?|小时|个小时|分钟|米"
    r"|千克|年|天)\s*(?:and|,|零)?\s*\d+(?:\.\d+)?\s*"
    r"(?:inch(?:es)?|in\b|minutes?|mins?|seconds?|secs?|ounces?|oz|days?|months?|hours?|分钟?|秒|厘米|克|个月|天|小时)",
    re.I,
)
_DOZEN = re.compile(r"^\s*dozens?\b", re.I)


def find_number(text: Text) -> Found:
    """Find the number that a text gives as its answer; what follows a correction is heard first."""
    for part in corrected(text, hears_denials=True):
        found = _find(part)
        if found.value is not None or (found.status != "no_answer" and part is not text):
            break
    if found.value is not None and is_taken_back(text) and part is text:
        return Found(None, "no_answer", "taken_back", found.span)
    return found


def _find(text: Text) -> Found:
    box = last_boxed(text)
    boxed = _answer_in(box.string).value if box is not None else None
    if box is not None and boxed is not None:
        later = _anchored(text.part(text.places.index(box.places[-1]), len(text.string)))
        return later if later is not None and later.value else Found(boxed, "ok", "boxed", box.span())
    if ends_in_box(text):
        return Found(None, "truncated", "boxed", None)
    open_answer = next(hedged(text), None)
    if (found := _anchored(text)) is not None:
        return found
    if open_answer is not None and len(values(clean(open_answer.string))) > 1:
        return Found(None, "ambiguous", "anchor", open_answer.span())
    return _unanchored(text)


def _anchored(text: Text) -> Found | None:
    last: Found | None = None
    for tail in anchored(text):
        reading = _answer_in(tail.string)
        if reading.is_ambiguous:
            last = Found(None, "ambiguous", "anchor", tail.span())
        elif reading.value is not None:
            last = Found(reading.value, "ok", "anchor", tail.span())
    return last


def _answer_in(part: str) -> _Reading:
    """Read the answer in a short stretch: a sum's value, else its first number."""
    string = _main_clause(clean(part))
    arrow = re.search(r"(?:→|⇒|->|=>)([^→⇒>]*\d[^→⇒>]*)$", string)
    string = arrow[1] if arrow else string
    found = values(string)
    if not found:
        numeral = spelled(string)
        return _Reading(show(numeral[0]) if numeral else None)
    for summed in reversed(list(_SUMMED.finditer(string))):
        before, after = string[: summed.start()], string[summed.end() :]
        if values(after) and len(values(before)) > 1 and "=" not in before:
            return _answer_in(after)
    return _first(string, found)


def _main_clause(string: str) -> str:
    """Return a stretch up to what only explains or contrasts, if a number stands before."""
    for aside in _ASIDE.finditer(string):
        before = string[: aside.start()]
        if values(before) or spelled(before):
            return before
    return string


def _first(string: str, found: list[tuple[Fraction, int, int]]) -> _Reading:
    """Read the first number, or the value of the sum that begins with it."""
    index = 0
    before = string[: found[0][1]]
    if re.search(r"\b(?:between|from)\s*\$?$|在\s*$|介于\s*$", before) and len(found) > 1:
        return _Reading(None, True)
    while index + 1 < len(found) and _NEXT.match(string[found[index][2] : found[index + 1][2]]):
        index += 1
    value, _, end = found[index]
    rest = string[end:]
    if _EQUAL.match(rest) and index + 1 < len(found):
        equal = after_last_equals(string)
        return _Reading(show(equal[0]) if equal else None)
    if (index or _EQUAL.match(rest)) and not re.match(r"\s*=\s*[a-zA-Z]\b(?!\s*[-+*/(])", rest):
        return _Reading(None)
    if _RANGE.match(rest):
        return _Reading(None, True)
    if (
        _RATIO.match(rest)
        or (re.search(r"\d:$", before) and string[found[0][1]].isdigit())
        or re.fullmatch(r"\s*,\s*", rest)
    ):
        return _Reading(None)
    if _PAIRED.match(rest):
        return _Reading(None, True)
    if cents := _CENTS.match(rest):
        value += Fraction(int(cents["small"]), 10 if cents["kind"] in "角毛" else 100) + Fraction(
            int(cents["fen"] or 0), 100
        )
    return _Reading(show(value) + (" dozen" if _DOZEN.match(rest) else ""))


_CUE = re.compile(
    r"\b(?:so|thus|therefore|hence|consequently|altogether|in total|in all|total|overall|finally|left"
    r"|remain(?:s|ing)?|(?:i|we|which) (?:get|gets|gives?)|(?:amounts?|comes?|adds? up|works out) to)\b"
    r"|答|共|因此|所以|综上|最终|最后|总|剩|于是|故",
    re.I,
)
_PASSED_OVER = re.compile(
    r"(?:(?:\bnot|n't|不是|并非|而非)\s*\$?|\b(?:step|case|part|question|problem|example|figure|option|method"
    r"|no\.)\s*#?|第|^[\s*]*(?=\d+[.)]\s))$",
    re.I,
)
_VERB = re.compile(
    r"(?:(?<!to )\b(?:is|are|was|were|be|has|have|had|gets?|got|makes?|made|earn(?:s|ed)?|sav(?:es?|ed)"
    r"|spen[dt]s?|costs?|takes?|took|needs?|pays?|paid"
    r"|owes?|receives?|weighs?|equals?|totals?|total of|total:|left with|ends? up with|(?:comes?|came|amounts?"
    r"|adds? up|averages out|works out) to|holds?|contains?|keeps?|kept|sold|sells|bought|buys|collect(?:s|ed)?"
    r"|read|reads|drives?|drove|travel(?:s|ed)?|walk(?:s|ed)?)\b[*\s:]*(?:(?!in\b|at\b|on\b|by\b|from\b|for\b"
    r"|after\b|per\b|with\b|than\b|to\b|every\b|if\b)"
    r"[a-zA-Z']+\s+){0,5}?|(?:是|为|有|需要?|得到?|剩下?|花费?了?|卖出?了?|付|赚|等于|应|用了?"
    r"|共)[^\d,。;\n]{0,6}?)[*\s]*(?=-?[$€£¥￥]?\s?\d)",
    re.I,
)
_SPELLED_SUBJECT = re.compile(
    rf"\s*(?!one\b)(?:{ENGLISH.pattern})\s+\w+\s+(?:is|are|was|were|will|remain)\b[^=]*$", re.I
)
_STATEMENT = re.compile(r"\b(?:is|are|equals)\s+(?:only |exactly |about )?[-$€£]?[\d.,]+%?\s*[a-zA-Z]*\W*$")
_REPORTED = re.compile(r"(?<!\bI )(?<!\bwe )\b(?:thinks|claims|believes|guesses|guessed)\b", re.I)
_WEAK_BEFORE = re.compile(
    r"(?:\b(?:in|for|from|of|per|at|by|to|than|after|with|every|over)\s+(?:the|a|an|all|each)?\s*[$]?|第|每)$", re.I
)


def _unanchored(text: Text) -> Found:
    body = before_check(text)
    if body is text and is_broken_off(text):
        return Found(None, "truncated", "none", None)
    last: Found | None = None
    for part in sentences(body):
        if is_refusal(part.string):
            last = None
            continue
        found = _stated(part)
        if found is None:
            continue
        if found.rule != "last_number" or last is None or last.rule in ("last_number", "statement"):
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
    has_cue = bool(_CUE.search(string) or re.search(r":[\s*]*[-$€£¥]?[\d.,]+[\s*.%]*$", string))
    if _REPORTED.search(string):
        return None
    if re.search(r"\bwould (?:be|have)\b", string) and re.search(r"\b(?:if|without|had|unless)\b", string, re.I):
        return None
    if not found or _SPELLED_SUBJECT.match(string):
        numeral = spelled(string[_last_clause(string) :]) or spelled(string)
        if numeral is None:
            return None
        rule = "conclusion" if has_cue or re.search(r"共|是|\b(?:is|are|has|have)\b", string) else "last_number"
        return Found(show(numeral[0]), "ok", rule, sentence.span())
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
        reading = _answer_in(string[place[2] + restated.end() :])
    if reading.value is None:
        return None
    rule = "conclusion" if has_cue or is_alone else "statement" if _STATEMENT.search(string) else "last_number"
    return Found(reading.value, "ok", rule, _place(span_of, place) or sentence.span())


def _last_clause(string: str) -> int:
    """Return where the last clause that draws a conclusion begins: ", so she has 12"."""
    clauses = re.finditer(
        r",?\s*\b(?:i\.e\.,?)(?=[\s$]*\d)|[,;，]\s*(?:and\s+)?(?:so|thus|therefore|hence|which (?:leaves|gives"
        r"|makes|totals|equals))\b|[,，]?\s*(?:所以|因此|一共|总共|(?:即|也就是)(?=\s*[\d$¥]))",
        string,
        re.I,
    )
    return max((match.start() for match in clauses), default=0)


def _concluded(
    string: str, found: list[tuple[Fraction, int, int]], begin: int
) -> tuple[_Reading, tuple[Fraction, int, int]]:
    """Read the number that a sentence's main verb gives, else its last number that is no mere condition."""
    inside = [item for item in found if item[1] >= begin] or found
    main = _main_clause(string[min(begin, inside[0][1]) :])
    end = min(begin, inside[0][1]) + len(main)
    inside = [item for item in inside if item[1] < end] or inside
    verbs = [match.end() for match in _VERB.finditer(string, min(begin, inside[0][1]), end)]
    for at in reversed(verbs):
        chosen = next((item for item in inside if at - 2 <= item[1] + 1 and item[2] > at), None)
        if chosen is not None:
            break
    else:
        free = [
            item
            for item in inside
            if not _is_enclosed(string, item[1]) and not _WEAK_BEFORE.search(string[: item[1]] + " ")
        ]
        begins = re.fullmatch(r"[\s*$€£¥]*", string[min(begin, inside[0][1]) : inside[0][1] + 1].strip("-,， "))
        chosen = inside[0] if begins and begin == 0 else (free or inside)[-1]
    earlier = [item for item in inside if item[1] < chosen[1]]
    if earlier and re.match(r"[^,.]{0,12}(?:\bor\b|或|还是|[到至].{0,12}之间)", string[earlier[-1][2] :]):
        return _Reading(None, True), chosen
    rest = [item for item in found if item[1] >= chosen[1]]
    return _first(string, rest), chosen


def _is_enclosed(string: str, at: int) -> bool:
    opened = string.rfind("(", 0, at)
    return opened >= 0 and ")" not in string[opened:at]


def after_last_equals(string: str) -> tuple[Fraction, int, int] | None:
    """Return the number that follows the last '=' at once, and its place."""
    at = max(string.rfind("="), string.rfind("≈"))
    if at < 0:
        return None
    for value, start, end in values(string[at + 1 : at + 80]):
        between = string[at + 1 : at + 1 + start]
        if re.search(r"[\w\u4e00-\u9fff]{3,}|\n", between):
            return None
        return None if _RATIO.match(string[at + 1 + end :]) else (value, at + 1 + start, at + 1 + end)
    return None


def _place(text: Text | None, found: tuple[Fraction, int, int]) -> tuple[int, int] | None:
    return text.part(found[1], found[2]).span() if text is not None else None
