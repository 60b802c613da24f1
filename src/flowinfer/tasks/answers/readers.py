"""Reading an answer of the reference's kind from a stretch of text."""

from __future__ import annotations

import re

from flowinfer.tasks.answers.expressions import parse_expression
from flowinfer.tasks.answers.intervals import read_intervals
from flowinfer.tasks.answers.kinds import Gold
from flowinfer.tasks.answers.latex import split_top
from flowinfer.tasks.answers.numbers import show
from flowinfer.tasks.answers.numerals import spelled
from flowinfer.tasks.answers.runs import asked_clause, closing_runs, leading_run, main_part, measured_run, stripped
from flowinfer.tasks.answers.wordings import read_words

_UNIT = re.compile(
    r"[\s.]*|[\s~]*(?!and\b|or\b|to\b)(?:per |square |cubic )?(?:[a-zA-Z]{2,}|[a-zA-Z](?=/))(?:[\s/]+(?!and\b"
    r"|or\b)[a-zA-Z]+)*(?:\^\(?\d\)?)?[\s.]*"
    r"|[\u4e00-\u9fff]{1,4}"
)
_UNIT_LETTERS = "mL|ml|cm|mm|km|kg|mg|ft|in|lb|oz|hr"
_NAMED = r"[a-zA-Z](?:_?\w)?'*\s*(?:\(\s*[-\w]+\s*\))?\s*=\s*"


def read_boxed(part: str, gold: Gold) -> str:
    """Read a box, which holds the answer and nothing else; what is of another kind is returned as it stands."""
    found = read_words(part, gold)
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


_NAME = r"(?:\\?[a-zA-Z]+|[a-zA-Z]_?\w?)'*(?:\s*\([^()=]*\))?"
_PART = re.compile(rf"(?:and\s+)?({_NAME})\s*(?:=|≡|\\equiv)\s*([^=]+)")
_ASKS = r"\b(?:for|find|of|determine|is|compute|evaluate|calculate|what's)\b|[求为]"


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
    question = re.sub(r"[\\$\s{}]", " ", gold.question)
    asked = [
        name
        for name in parts
        if re.search(rf"(?i:{_ASKS})(?:\s+\w+){{0,4}}?\s*{_loose(name)}\s*(?:$|[.?,;。？的值])", question)
    ]
    return parts[asked[0]] if len(asked) == 1 else string


def _loose(name: str) -> str:
    """Return a pattern of a name as a question may write it."""
    return r"\s*".join(re.escape(character) for character in name.replace("\\", ""))


def read_stretch(part: str, gold: Gold, *, is_anchored: bool) -> str | None:
    """Read what follows an anchor, or a sentence; None where it gives no answer of its own.

    Mathematics of another kind at once after an anchor is the answer too, and a wrong one.
    """
    whole = asked_clause(stripped(part), gold.question) if gold.kind in ("number", "expression") else stripped(part)
    string = main_part(whole)
    found = read_words(part, gold)
    if found is not None or gold.kind in ("truth", "time", "words"):
        return found
    leading = leading_run(string) if is_anchored else ""
    runs = [leading] if leading else closing_runs(string)
    concluding = main_part(re.split(r",\s*(?:and )?(?:so|thus|therefore|hence)\b,?|所以|因此", whole)[-1])
    if not is_anchored and concluding != string:
        if (numeral := _closing_numeral(concluding, gold)) is not None:
            return numeral
        runs = closing_runs(concluding) + runs
    for run in runs:
        read = _as_kind(run, gold)
        if read is not None:
            return read
    if leading:
        return _option(leading, gold.question) or leading
    return _closing_numeral(string, gold)


def _option(run: str, question: str) -> str | None:
    """Return the value of an option such as "(c)" that a question lists with its values."""
    letter = re.fullmatch(r"\(?([a-z])\)?", run)
    listed = dict(re.findall(r"\(([a-z])\)\s*([^()]+?)\s*(?=\([a-z]\)|$)", question)) if letter else {}
    return listed.get(letter[1]) if letter else None


def _closing_numeral(string: str, gold: Gold) -> str | None:
    """Return a number in words, where no digits follow it that a text gives as its value."""
    if gold.kind not in ("number", "expression"):
        return None
    string = string[string.rfind("=") + 1 :]
    numeral = None if re.search(r"\d", string) else spelled(string)
    return show(numeral[0]) if numeral else None


def _as_kind(run: str, gold: Gold) -> str | None:
    """Return a stretch of mathematics as an answer of the kind, or None."""
    match gold.kind:
        case "number":
            return _number(run)
        case "list":
            return _list(run, gold)
        case "intervals":
            return run if read_intervals(run) is not None else None
        case "bracketed":
            return run if re.search(r"[<>]", run) and read_intervals(run) else _bracketed(run)
        case "equation":
            return _equation(run, gold)
        case "expression":
            return _expression(run)
    return None


def _result(run: str) -> str:
    """Return what follows the last '=', and of a number and its rounding the number."""
    parts = [part.strip() for part in run.split("=") if part.strip()] or [run]
    if len(parts) > 1 and re.fullmatch(r"[a-zA-Z]", parts[-1]):
        parts.pop()
    last = parts[-1].split("≈")
    exact = last[0].strip() or last[-1].strip()
    percent = re.fullmatch(r"([-\d./]+)\s*%", exact)
    before = parse_expression(parts[-2]) if len(parts) > 1 else None
    if percent and before is not None and before.value is not None:
        hundredth = parse_expression(f"({percent[1]})/100")
        if hundredth is not None and hundredth.value == before.value:
            return f"({percent[1]})/100"
    return exact


def _several(run: str) -> bool:
    """Return whether a run lists several values of one thing: "2, 3" or "x = 2, x = 3"."""
    items = [item.strip() for item in split_top(run) if item.strip()]
    names = {re.sub(r"_?\d+$", "", item.split("=")[0].strip()) for item in items if "=" in item}
    return len(items) > 1 and len(names) <= 1 and all(parse_expression(item.split("=")[-1]) for item in items)


def _number(run: str) -> str | None:
    if _several(run) or "!=" in run or (re.search(r"[<>]", run) and read_intervals(run)):
        return run
    string = re.sub(rf"(?<=[\d)])(?:\s+[a-zA-Z]{{1,2}}|\s?(?:{_UNIT_LETTERS}))$", "", _result(split_top(run)[-1]))
    string = re.sub(r"(?<=\d)[eE]([+-]?\d{1,2})$", r"*10^(\1)", string)
    base = re.search(r"_\(?\d+\)?$", string)
    string = string[: base.start()] if base else string
    if re.fullmatch(r"\d+(?:\.\d+)?:\d+(?:\.\d+)?", string):
        string = string.replace(":", "/")
    bare = string.removesuffix("%").strip()
    parsed = parse_expression(bare)
    if parsed is None or parsed.symbols or re.search(r"[\d)]\s*[-+]\s*[\d(](?![^(]*\))", bare):
        return None
    return f"{bare}%" if string.endswith("%") else string + (base[0] if base else "")


def _list(run: str, gold: Gold) -> str | None:
    string = re.sub(_NAMED, "", run).strip().rstrip(".。")
    string = re.sub(r"^=|(?<=,)\s*=", "", string).strip()
    string = string[1:-1] if re.fullmatch(r"[{\[(][^()\[\]{}]*[)\]}]", string) else string
    items = [item.strip() for item in split_top(string) if item.strip()]
    if len(items) == 1 and re.fullmatch(r"-?[\d.]+(?:\s*[*]\s*[\d.]+)+", items[0]):
        items = [item.strip() for item in items[0].split("*")]
    if len(items) == 1 and re.fullmatch(r"[^<>]+(?:[<>]=?[^<>]+)+", items[0]):
        items = [item.strip() for item in re.split(r"[<>]=?", items[0])]
    items = [sign for item in items for sign in signs(item)]
    return ", ".join(items) if items and all(_is_item(item) for item in items) else None


def _is_item(item: str) -> bool:
    """Return whether a list's item is an expression or a tuple of them."""
    inner = split_top(item[1:-1]) if re.fullmatch(r"[(\[].*[)\]]", item) else []
    return parse_expression(item) is not None or (len(inner) > 1 and all(map(parse_expression, inner)))


def signs(item: str) -> list[str]:
    """Return both values of an item with ±."""
    return [item.replace("±", "+"), item.replace("±", "-")] if item.count("±") == 1 else [item]


def _bracketed(run: str) -> str | None:
    """Return the last balanced bracket that holds several items, or x = 1, y = 2 as one."""
    found, opened, depth = None, 0, 0
    for index, character in enumerate(run):
        if character in "([{":
            opened = index if not depth else opened
            depth += 1
        elif character in ")]}" and depth:
            depth -= 1
            if not depth and len(split_top(run[opened + 1 : index])) > 1:
                found = run[opened : index + 1]
    if found is None:
        named = sorted(re.findall(r"\b([a-zA-Z])\s*=\s*([^=,]+?)\s*(?:,|$)", run))
        return f"({', '.join(value for _, value in named)})" if len(named) > 1 else None
    return found


def _equation(run: str, gold: Gold) -> str | None:
    """Return an equation; a lone right side counts where the reference solves for one letter."""
    sides = run.split("=")
    if len(sides) >= 2 and all(parse_expression(side) for side in (sides[0], sides[-1])):
        return f"{sides[0].strip()}={sides[-1].strip()}"
    left = gold.plain.split("=")[0].strip()
    if (
        len(sides) == 1
        and re.fullmatch(r"[a-zA-Z](?:\s*\([a-zA-Z](?:\s*,\s*[a-zA-Z])*\))?", left)
        and parse_expression(sides[0])
    ):
        return f"{left}={sides[0].strip()}"
    return None


def _expression(run: str) -> str | None:
    if _several(run) or "!=" in run:
        return run
    string = _result(split_top(run)[-1])
    percent = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", string)
    if percent:
        return f"{percent[1]}/100"
    if re.fullmatch(r"\d+:\d+", string):
        string = string.replace(":", "/")
    return string if parse_expression(string) is not None else None
