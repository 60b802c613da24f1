"""Answers that are words or marks rather than mathematics: truth values, times, letters, base-n digits, words."""

from __future__ import annotations

import re

from flowinfer.tasks.answers.expressions import parse_expression
from flowinfer.tasks.answers.kinds import TIME, Gold
from flowinfer.tasks.answers.latex import plain
from flowinfer.tasks.answers.numbers import show
from flowinfer.tasks.answers.numerals import han_value
from flowinfer.tasks.answers.runs import COPULA, closing_runs, main_part, stripped
from flowinfer.tasks.answers.truths import read_truth


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
        case "matrix":
            found = re.findall(r"\\begin\{[a-zA-Z]*matrix\}.*?\\end\{[a-zA-Z]*matrix\}", part, re.S)
            return found[-1] if found else None
        case "words":
            return _words(plain(part), gold)
    return None


def _digits(string: str) -> str | None:
    """Return the last number in base-n digits; the base itself is none."""
    string = re.sub(r"\(?\bbase[\s-]*\d+\)?", " ", re.sub(r"\b0[xXbBoO]([\da-fA-F]+)", lambda m: m[1].upper(), string))
    string = re.sub(r"[(]([-\da-fA-F]+)[)](?=_)", r"\1", string)
    found = re.findall(r"(?<![\w.])(-?(?:(?=\w*\d)[0-9a-fA-F]+|[A-F]{2,}))(?:_\(?\d+\)?)?(?![\w.]\w|\w)", string)
    return found[-1].lower() if found else None


def _time(part: str) -> str | None:
    """Return the time after the last verb or '=', else the first, as hour:minute on 24 hours or with its half."""
    string = _on_clock(main_part(plain(part)))
    times = list(TIME.finditer(string))
    if not times:
        return None
    ends = [match.end() for match in re.finditer(r"\b(?:is|at|gives|becomes|get|reach(?:es)?)\b|=|是|为|到|得", string)]
    chosen = next((t for end in reversed(ends) for t in times if 0 <= t.start() - end <= 3), times[0])
    return time_text(chosen)


_SAID = re.compile(r"(\d{1,2}):(\d{2})\s*(?:in the|at) (morning|afternoon|evening|night)", re.I)
_HAN = re.compile(
    r"(凌晨|早上|早晨|上午|中午|下午|傍晚|晚上)?\s*(\d{1,2})(?:[点时](?:(\d{1,2})分?|(半)|整|钟)?|:(\d{2}))"
)


def _on_clock(string: str) -> str:
    """Write times told with a part of the day, or in Chinese, as "3:45 PM"."""

    def half(part: str | None) -> str:
        is_late = part in ("afternoon", "evening", "night", "中午", "下午", "傍晚", "晚上")
        return " PM" if is_late else " AM" if part else ""

    string = re.sub(r"[一二两三四五六七八九十]{1,3}(?=[点时分])", lambda m: show(han_value(m[0])), string)
    string = _SAID.sub(lambda m: f"{m[1]}:{m[2]}{half(m[3].lower())}", string)
    return _HAN.sub(lambda m: f"{m[2]}:{'30' if m[4] else (m[5] or m[3] or '00').zfill(2)}{half(m[1])}", string)


def time_text(match: re.Match[str]) -> str:
    """Return a time in one form; from 13 on, hours tell their half themselves."""
    hour, minute, half = int(match[1]), match[2], (match[3] or "").upper()
    if not half and (hour >= 13 or hour == 0):
        return f"{hour - 12 if hour > 12 else 12}:{minute} {'PM' if hour > 12 else 'AM'}"
    return f"{hour}:{minute} {half}M" if half else f"{hour}:{minute}"


_CHOSEN = r"nearest|closest|biggest|largest|smallest|greatest|second|third|fourth|answer|correct|right"
_LETTER = re.compile(
    r"^[\s(*]*(?:option\s*|choice\s*)?\(?([A-Za-z])\)?(?=\s*(?:$|[).:,;=]|\(|-?\d|\*))(?!\s*,\s*\(?[a-zA-Z]\)?\s*$)"
)


def _letter(string: str, gold: Gold) -> str | None:
    chosen = re.search(rf"(?:^|[\s(])([a-zA-Z])\)?\s+(?:is|would be)\s+(?:the\s+)?(?:{_CHOSEN})", string)
    if chosen:
        return chosen[1]
    if re.match(r"\s*[a-zA-Z]\s*=", string) and not re.search(_CHOSEN, gold.question):
        return string[:20]
    places = [0, *(match.end() for match in COPULA.finditer(string))]
    for at in reversed(places):
        rest = string[at:].lstrip()
        if re.match(r"\(?[A-Za-z]\)?\s*(?:,|or|and|或|和)\s*\(?[A-Za-z]\)?(?![a-zA-Z])", rest):
            return rest[:20]
        match = _LETTER.match(rest)
        if match:
            return match[1]
    options = re.findall(r"\(([a-z])\)\s*([^()]+?)\s*(?=\([a-z]\)|$)", gold.question)
    for run in closing_runs(string):
        shown = parse_expression(run)
        if shown is not None and shown.value is not None:
            named = [letter for letter, value in options if _value(value) == shown.value]
            return named[0] if len(named) == 1 else None
    return None


def _value(text: str) -> object:
    parsed = parse_expression(plain(text))
    return parsed.value if parsed is not None else None


def _words(string: str, gold: Gold) -> str | None:
    wanted, folded_text = folded(gold.plain), folded(string)
    if folded_text == wanted:
        return gold.plain
    around, found = re.subn(rf"(?<!\w){re.escape(wanted)}(?!\w)", " ", folded_text)
    if found and not re.search(r"\b(?:not|neither|nor)\b|不是|n't", around):
        return gold.plain
    return string.strip()[:200] or None


def folded(text: str) -> str:
    """Return words for comparison: lower case, blanks as one, without punctuation around."""
    return re.sub(r"[\s\\]+", " ", text.lower()).strip().strip(".。\"'`").strip()
