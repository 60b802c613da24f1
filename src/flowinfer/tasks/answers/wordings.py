"""Answers that are words or marks rather than mathematics: truth values, times, letters, base-n digits, words."""

from __future__ import annotations

import re

from flowinfer.tasks.answers.expressions import parse_expression, plain
from flowinfer.tasks.answers.kinds import TIME, Gold, folded, time_text
from flowinfer.tasks.answers.numbers import han_value, show
from flowinfer.tasks.answers.runs import COPULA, closing_runs, main_part, stripped


def read_words(part: str, gold: Gold) -> str | None:
    """Read the kinds whose answers are words."""
    match gold.kind:
        case "truth":
            truth = read_truth(part, gold.question)
            return None if truth is None else str(truth)
        case "time":
            return _time(part)
        case "letter":
            return _letter(stripped(part), gold)
        case "digits":
            return _digits(stripped(part))
        case "words":
            return _words(plain(part), gold)
    return None


def _digits(string: str) -> str | None:
    """Return the last number in base-n digits; the base itself is none."""
    string = re.sub(r"\b0[xXbBoO]([\da-fA-F]+)", lambda match: match[1].upper(), string)
    string = re.sub(r"\(([-\da-fA-F]+)\)(?=_)", r"\1", re.sub(r"\(?\bbase[\s-]*\d+\)?", " ", string))
    found = re.findall(r"(?<![\w.])(-?(?:(?=\w*\d)[0-9a-fA-F]+|[A-F]{2,}))(?:_\(?\d+\)?)?(?![\w.]\w|\w)", string)
    return found[-1].lower() if found else None


_GIVES_TIME = re.compile(r"\b(?:is|at|gives|becomes|get|reach(?:es)?)\b|=|是|为|到|得")


def _time(part: str) -> str | None:
    """Return the time after the last verb or '=', else the first, as hour:minute on 24 hours or with its half."""
    numeral = r"[一二两三四五六七八九十]{1,3}(?=[点时分])"
    string = re.sub(numeral, lambda match: show(han_value(match[0])), main_part(plain(part)))
    times = list(TIME.finditer(string))
    ends = reversed([match.end() for match in _GIVES_TIME.finditer(string)])
    chosen = next((t for end in ends for t in times if 0 <= t.start() - end <= 3), times[0] if times else None)
    return time_text(chosen) if chosen else None


_CHOSEN = r"nearest|closest|biggest|largest|smallest|greatest|second|third|fourth|answer|correct|right"
_IS_CHOSEN = re.compile(rf"(?:^|[\s(])([a-zA-Z])\)?\s+(?:is|would be)\s+(?:the\s+)?(?:{_CHOSEN})")
_LETTER = re.compile(
    r"^[\s(*]*(?:option\s*|choice\s*)?\(?([A-Za-z])\)?(?=\s*(?:$|[).:,;=]|\(|-?\d|\*))(?!\s*,\s*\(?[a-zA-Z]\)?\s*$)"
)
_LETTERS = re.compile(r"\(?[A-Za-z]\)?\s*(?:,|or|and|或|和)\s*\(?[A-Za-z]\)?(?![a-zA-Z])")
_OPTION = re.compile(r"\(([a-z])\)\s*([^()]+?)\s*(?=\([a-z]\)|$)")


def _letter(string: str, gold: Gold) -> str | None:
    if chosen := _IS_CHOSEN.search(string):
        return chosen[1]
    if re.match(r"\s*[a-zA-Z]\s*=", string) and not re.search(_CHOSEN, gold.question):
        return string[:20]
    for at in reversed([0, *(match.end() for match in COPULA.finditer(string))]):
        rest = string[at:].lstrip()
        if _LETTERS.match(rest):
            return rest[:20]
        if match := _LETTER.match(rest):
            return match[1]
    values = {letter: _value(plain(told)) for letter, told in _OPTION.findall(gold.question)}
    for run in closing_runs(string):
        if (shown := _value(run)) is not None:
            named = [letter for letter, value in values.items() if value == shown]
            return named[0] if len(named) == 1 else None
    return None


def option_value(run: str, question: str) -> str | None:
    """Return the value of an option such as "(c)" that a question lists with its values."""
    return dict(_OPTION.findall(question)).get(run.strip("()")) if re.fullmatch(r"\(?[a-z]\)?", run) else None


def _value(text: str) -> object:
    parsed = parse_expression(text)
    return parsed.value if parsed is not None else None


def _words(string: str, gold: Gold) -> str | None:
    wanted, said = folded(gold.plain), folded(string)
    around, found = re.subn(rf"(?<!\w){re.escape(wanted)}(?!\w)", " ", said)
    is_denied = said != wanted and re.search(r"\b(?:not|neither|nor)\b|不是|n't", around)
    return gold.plain if (found and not is_denied) or said == wanted else string.strip()[:200] or None


_EXPLICIT = re.compile(
    r"(?i)(?P<not>\b(?:not|n't|isn't|is not)\s+)?\b(?:(?P<yes>true|yes)|(?P<no>false|no(?=\s*(?:[,.;:!)}]|$|\n)))"
    r"|(?:is|are)\s+(?P<correct>(?:in)?correct))\b"
)
_HAN_TRUTH = re.compile(r"^[\s*(\"“]*(?:(?P<no>否|不|错|假|非)|(?P<yes>是|对|正确|成立|真|能|可以))")
_HAN_STATED = re.compile(
    r"(?P<not>不)?(?:是(?=[^,。]*(?:质数|素数|合数|因数|约数|倍数|因子))|能被?|等于|成立|正确|整除)"
    r"|(?P<wrong>错误|不对|不成立)"
)
_PREDICATE = (
    r"prime|composite|factors?|multiple|divisors?|divisible|equal|even|odd|bigger|greater|larger|smaller|less"
    r"|at least|at most|different"
)
_STATED = re.compile(
    rf"(?i)(?:\b(?:is|are|does|do)|'s)(?P<not>n't|\s+not)?\s+(?:indeed\s+|also\s+|therefore\s+"
    rf"|in fact\s+)?(?P<no>not\s+)?(?:an?\s+)?(?P<word>{_PREDICATE}|divides?)\b"
    rf"|^\W*(?P<bare>not)\s+(?:an?\s+)?(?:{_PREDICATE})\b|\b(?:divides|multiple of)\b"
)


def read_truth(string: str, question: str) -> bool | None:
    """Return what a stretch settles on, or None.

    Args:
        string: the stretch.
        question: the question; a statement counts only if it has its predicate, or where there is no question.
    """
    for match in reversed(list(_EXPLICIT.finditer(string))):
        said = bool(match["yes"]) or (match["correct"] or "").lower() == "correct"
        return said != bool(match["not"])
    for match in reversed(list(_STATED.finditer(string))):
        if (truth := _stated(match, question)) is not None:
            return truth
    if han := _HAN_TRUTH.match(re.split(r":\s*|答案[是为]", string.strip())[-1]):
        return bool(han["yes"])
    last = next(reversed(list(_HAN_STATED.finditer(string))), None)
    return None if last is None else not (last["not"] or last["wrong"])


def _stated(match: re.Match[str], question: str) -> bool | None:
    word = (match["word"] or "divides").lower().removesuffix("s")
    said = not (match["not"] or match["no"] or match["bare"])
    asked = question.lower()
    if not asked:
        return None if word == "composite" else said
    if (word == "composite" and "prime" in asked) or (word == "prime" and "composite" in asked):
        return not said
    if word in ("divide", "divisible", "divisor", "factor", "multiple"):
        return said if re.search(r"divid|divis|factor|multiple", asked) else None
    return said if word in asked else None
