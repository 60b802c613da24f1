"""Mathematics answers: found, and read by the kind of the reference."""

from __future__ import annotations

import re
from dataclasses import dataclass

from flowinfer.tasks.answers.expressions import equal, parse_expression, plain, split_top, vector
from flowinfer.tasks.answers.finding import (
    REFUSAL,
    Reader,
    find,
    has_only_bounds,
    holds_bound,
    is_broken_off,
    sentences,
    without_checks,
)
from flowinfer.tasks.answers.kinds import Gold, intervals
from flowinfer.tasks.answers.numbers import show, spelled
from flowinfer.tasks.answers.runs import (
    all_runs,
    asked_clause,
    closing_runs,
    leading_run,
    main_part,
    measured_run,
    stripped,
)
from flowinfer.tasks.answers.text import Found, Text
from flowinfer.tasks.answers.wordings import option_value, read_words

_UNIT = re.compile(
    r"[\s.]*|[\s~]*(?!and\b|or\b|to\b)(?:per |square |cubic )?(?:[a-zA-Z]{2,}|[a-zA-Z](?=/))(?:[\s/]+(?!and\b"
    r"|or\b)[a-zA-Z]+)*(?:\^\(?\d\)?)?[\s.]*|[\u4e00-\u9fff]{1,4}"
)
_UNIT_BEHIND = re.compile(
    r"(?<=[\d)])(?:\s+[a-zA-Z]{1,2}(?:/[a-zA-Z]{1,2})?(?:\^\(?-?\d\)?)?|\s?(?:mL|ml|cm|mm|km|kg|mg|ft|in|lb|oz|hr))$"
)
_LATEX_UNIT = re.compile(r"(?<=[\w})])[\s\\,~]*\\(?:text|mathrm|mbox)\s*\{[^{}\d]*\}\s*\^\s*\{?\d\}?\s*$")
"""A unit with its power: 36\\pi \\text{ m}^3."""
_BASE = re.compile(r"_\(?\d+\)?$")
_NAMED = re.compile(r"[a-zA-Z](?:_?\w)?'*\s*(?:\(\s*[-\w]+\s*\))?\s*=\s*")
_NAME = r"(?:\\?[a-zA-Z]+|[a-zA-Z]_?\w?)'*(?:\s*\([^()=]*\))?"
_PART = re.compile(rf"(?:and\s+)?({_NAME})\s*(?:=|≡|\\equiv)\s*([^=]+)")
_MATRIX = re.compile(r"\[\s*\[[^\[\]]*\](?:\s*,\s*\[[^\[\]]*\])*\s*\]")
_BRACKET = re.compile(r"[(\[{](?:[^()\[\]{}]|[(\[{](?:[^()\[\]{}]|[(\[{][^()\[\]{}]*[)\]}])*[)\]}])*[)\]}]")
_THEREFORE = re.compile(r",\s*(?:and )?(?:so|thus|therefore|hence)\b,?|所以|因此|[,，]?故|于是")


def read_boxed(part: str, gold: Gold) -> str:
    """Read a box, which holds the answer and nothing else; what is of another kind is returned as it stands."""
    if gold.kind in ("number", "expression"):
        part = _LATEX_UNIT.sub("", part)
    found = read_words(part, gold) or _matrix(part, gold)
    if found is not None:
        return found
    string = re.sub(r"^\(?[A-H]\)\s*(?=\S)", "", stripped(part)) if len(gold.plain) > 1 else stripped(part)
    string = re.sub(r"\s+mod\s*\(?\d+\)?\}?$", "", string) if " mod " not in gold.plain else string
    if gold.kind in ("number", "expression"):
        string = re.sub(r"^[a-zA-Z]\s*(?:≡|\\equiv)\s*", "", string)
    if gold.kind == "expression":
        string = re.sub(r",\s*[a-zA-Z]\s*(?:!=|[<>∈]).*", "", string)
    if (told := by_name(string, gold)) is not None:
        return _as_kind(told, gold) or told
    run, end = measured_run(string, 0)
    if run and _UNIT.fullmatch(string[end:]):
        return _as_kind(run, gold) or string
    is_prose = re.search(r"\b(?:is|are)\s|[a-z]{3,} [a-z]{2,} ", string)
    inside = read_stretch(part, gold, is_anchored=False) if is_prose else None
    return inside or _as_kind(string, gold) or string


def _matrix(part: str, gold: Gold) -> str | None:
    """Return the last matrix, or the tuple that a vector is."""
    found = _MATRIX.findall(plain(part)) if gold.kind in ("matrix", "bracketed") else []
    return (vector(found[-1]) if gold.kind == "bracketed" else found[-1]) if found else None


def by_name(string: str, gold: Gold) -> str | None:
    """Return what a stretch such as "a = 4, r = 0" says of what is asked for: its value, or a tuple's values in order.

    A stretch that gives several values and none of them by the name that the question asks for is returned as it is.
    """
    matches = [_PART.fullmatch(item) for item in split_top(re.sub(r"\s+and\s+(?=\S+\s*=)", ", ", string))]
    parts = {match[1].replace(" ", ""): match[2].strip() for match in matches if match}
    if len(parts) < 2 or len(parts) != len(matches):
        return None
    if gold.kind == "bracketed":
        asked = re.findall(r"\(\s*([a-zA-Z](?:\s*,\s*[a-zA-Z])+)\s*\)", gold.question)
        names = re.split(r"\s*,\s*", asked[-1]) if asked else sorted(parts)
        return f"({', '.join(parts[name] for name in names)})" if set(names) == set(parts) else None
    if gold.kind not in ("number", "expression"):
        return None
    clause = asked_clause(string, gold.question)
    return clause.split("=")[-1].strip() if clause != string else string


def read_stretch(part: str, gold: Gold, *, is_anchored: bool) -> str | None:
    """Read what follows an anchor, or a sentence; None where it gives no answer of its own.

    Mathematics of another kind at once after an anchor is the answer too, and a wrong one.
    """
    found = read_words(part, gold) or _matrix(part, gold)
    if found is not None or gold.kind in ("truth", "time", "words"):
        return found
    whole = asked_clause(stripped(part), gold.question) if gold.kind in ("number", "expression") else stripped(part)
    whole = re.sub(r"^\s*\(?[A-H]\)\s*(?=[-\d])", "", whole) if is_anchored else whole
    string = main_part(whole)
    leading = leading_run(string) if is_anchored else ""
    runs = [leading] if leading else closing_runs(string)
    concluding = main_part(_THEREFORE.split(whole)[-1])
    if not is_anchored and concluding != string:
        if (numeral := _closing_numeral(concluding, gold)) is not None:
            return numeral
        runs = closing_runs(concluding) + runs
    if gold.kind == "bracketed":
        runs += reversed(all_runs(string))
    for run in runs:
        if (read := _as_kind(run, gold)) is not None:
            return read
    return (option_value(leading, gold.question) or leading) if leading else _closing_numeral(string, gold)


def _closing_numeral(string: str, gold: Gold) -> str | None:
    """Return a number in words, where no digits follow it that a text gives as its value."""
    string = string[string.rfind("=") + 1 :]
    is_sought = gold.kind in ("number", "expression") and not re.search(r"\d", string)
    numeral = spelled(string) if is_sought else None
    return show(numeral[0]) if numeral else None


def _as_kind(run: str, gold: Gold) -> str | None:
    """Return a stretch of mathematics as an answer of the kind, or None."""
    is_interval = re.search(r"[<>]", run) and bool(intervals(run))
    match gold.kind:
        case "number":
            return run if is_interval else _value(run, gold)
        case "expression":
            return _value(run, gold)
        case "list":
            return _list(run)
        case "intervals":
            return run if intervals(run) else None
        case "bracketed":
            return run if is_interval else _bracketed(run)
        case "equation":
            return _equation(run, gold)
    return None


def _value(run: str, gold: Gold) -> str | None:
    """Return a number or an expression: what follows the last '=', and of a number and its rounding the number."""
    if _several(run) or "!=" in run:
        return run
    parts = [part.strip() for part in split_top(run)[-1].split("=") if part.strip()] or [run]
    if len(parts) > 1 and re.fullmatch(r"[a-zA-Z]", parts[-1]):
        parts.pop()
    exact, *rounded = (part.strip() for part in parts[-1].split("≈"))
    string = exact or rounded[-1]
    if gold.kind == "expression":
        string = re.sub(r"^(\d+(?:\.\d+)?)\s*%$", r"\1/100", string)
        string = re.sub(r"^(\d+):(\d+)$", r"\1/\2", string)
        return string if parse_expression(string) is not None else None
    string = re.sub(r"^(\d+(?:\.\d+)?):(\d+(?:\.\d+)?)$", r"\1/\2", _UNIT_BEHIND.sub("", string))
    bare = _BASE.sub("", string).removesuffix("%").strip()
    parsed = parse_expression(bare)
    if parsed is None or parsed.symbols or re.search(r"[\d)]\s*[-+]\s*[\d(](?![^(]*\))", bare):
        return None
    return f"{bare}%" if string.endswith("%") else string


def _several(run: str) -> bool:
    """Return whether a run lists several values of one thing: "2, 3" or "x = 2, x = 3", but not "0.6 or 3/5"."""
    items = [item.strip() for item in split_top(run) if item.strip()]
    names = {re.sub(r"_?\d+$", "", item.split("=")[0].strip()) for item in items if "=" in item}
    values = [parse_expression(item.split("=")[-1]) for item in items]
    first, *others = values or [None]
    if first is None or not others or len(names) > 1 or not all(others):
        return False
    return not all(equal(first, other) for other in others if other is not None)


def _list(run: str) -> str | None:
    string = _NAMED.sub("", run).strip().rstrip(".。")
    string = string[1:-1] if re.fullmatch(r"[{\[(][^()\[\]{}]*[)\]}]", string) else string
    items = [item.strip() for item in split_top(string) if item.strip()]
    if len(items) == 1 and re.fullmatch(r"-?[\d.]+(?:\s*[*]\s*[\d.]+)+|[^<>]+(?:[<>]=?[^<>]+)+", items[0]):
        items = [item.strip() for item in re.split(r"[<>]=?|[*]", items[0])]
    return ", ".join(items) if items and all(_is_item(item) for item in items) else None


def _is_item(item: str) -> bool:
    """Return whether a list's item is an expression or a tuple of them."""
    inner = split_top(item[1:-1]) if re.fullmatch(r"[(\[].*[)\]]", item) else []
    parsed = parse_expression(item.replace("±", "+", 1))
    return parsed is not None or (len(inner) > 1 and all(map(parse_expression, inner)))


def _bracketed(run: str) -> str | None:
    """Return the last balanced bracket that holds several items, or x = 1, y = 2 as one; brackets in a list whole."""
    if re.search(r"[)\]}]\s*,\s*[(\[{]", run) and split_top(run)[-1][:1] in tuple("([{"):
        return run
    found: list[str] = [bracket for bracket in _BRACKET.findall(run) if len(split_top(bracket[1:-1])) > 1]
    named = sorted(re.findall(r"\b([a-zA-Z])\s*=\s*([^=,]+?)\s*(?:,|$)", run))
    if found:
        return found[-1]
    return f"({', '.join(value for _, value in named)})" if len(named) > 1 else None


def _equation(run: str, gold: Gold) -> str | None:
    """Return an equation; a lone right side counts where the reference solves for one letter."""
    first, *rest = (side.strip() for side in run.split("="))
    left = gold.plain.split("=")[0].strip()
    if not rest and re.fullmatch(r"[a-zA-Z](?:\s*\([a-zA-Z](?:\s*,\s*[a-zA-Z])*\))?", left):
        first, rest = left, [first]
    return f"{first}={rest[-1]}" if rest and parse_expression(first) and parse_expression(rest[-1]) else None


_MAX_WHOLE = 1_500


def find_maths(text: Text, gold: Gold) -> Found:
    """Find what a text gives as an answer of a reference's kind."""
    hears_denials = gold.kind not in ("truth", "words", "letter")
    return find(text, _Mathematics(gold=gold, question=gold.question, hears_denials=hears_denials))


@dataclass(frozen=True, kw_only=True)
class _Mathematics(Reader):
    gold: Gold
    hears_after_box: bool = False

    @property
    def _takes_no_bound(self) -> bool:
        return self.gold.kind in ("number", "expression")

    def boxed(self, box: Text) -> Found:
        return Found(read_boxed(box.string, self.gold), "ok", "boxed", box.span())

    def announced(self, text: Text, tails: list[Text]) -> Found | None:
        for tail in reversed(tails):
            if self._takes_no_bound and holds_bound(tail.string, self.question):
                continue
            if (shown := read_stretch(tail.string, self.gold, is_anchored=True)) is not None:
                return Found(shown, "ok", "anchor", tail.span())
        return None

    def closing(self, text: Text) -> Found:
        if self.gold.kind not in ("truth", "letter", "words") and is_broken_off(text):
            return Found(None, "truncated", "none", None)
        told = list(sentences(without_checks(text)))
        whole = text.part(max(0, len(text.string) - _MAX_WHOLE), len(text.string))
        is_read_whole = told or self.gold.kind in ("truth", "words")  # else it is all comments and suppositions
        last = [("whole", whole)] if is_read_whole else []  # for answers over several lines
        for rule, part in [*(("sentence", part) for part in reversed(told)), *last]:
            if self._takes_no_bound and has_only_bounds(part.string, self.question):
                continue
            if self.gold.kind not in ("truth", "words") and REFUSAL.search(part.string):
                break
            if (shown := read_stretch(part.string, self.gold, is_anchored=False)) is not None:
                return Found(shown, "ok", rule, part.span())
        return Found(None, "no_answer", "none", None)
