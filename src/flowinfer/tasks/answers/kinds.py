"""What kind of answer a mathematics reference is, and whether an answer equals it by that kind."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from flowinfer.tasks.answers.anchors import last_box
from flowinfer.tasks.answers.expressions import (
    FUNCTIONS,
    equal,
    parse_expression,
    plain,
    proportional,
    split_top,
    vector,
)
from flowinfer.tasks.answers.numbers import asks_percent, gold_number
from flowinfer.tasks.answers.text import normalize

_BUILT = re.compile(r"\{\s*[a-zA-Z]\s*(?:∈[^|:]*)?(?:\\mid|[|:])\s*(.+)\}")
_UNEQUAL = re.compile(r"[a-zA-Z]\s*(?:!=|≠)\s*([^,=<>≠!]+)")
_INEQUALITY = re.compile(r"(?:([^<>=]+?)\s*(<=?|>=?)\s*)?[a-zA-Z]\s*(<=?|>=?)\s*([^<>=]+)")


def intervals(text: str) -> str | None:
    """Write a plain set of numbers as a union of intervals, "(-oo,2)∪[3,oo)"; None where it is none."""
    text = re.sub(r"^[a-zA-Z]\s*(?:∈|=(?=\s*[(\[]))\s*", "", text.strip()).strip()
    if built := _BUILT.fullmatch(text):
        text = built[1]
    if unequal := _UNEQUAL.fullmatch(text):
        text = f"(-oo,{unequal[1]})∪({unequal[1]},oo)"
    parts = re.split(r"∪|\bU\b", text)
    if (len(parts) == 1 and "<" in text) or ">" in text:
        parts = re.split(r"\s*(?:,|\bor\b|或)\s*", text)
    found = [_interval(part.strip()) for part in parts]
    return "∪".join(map(str, found)) if all(found) else None


def _interval(text: str) -> str | None:
    if re.fullmatch(r"[(\[].*[)\]]", text):
        ends, opens, closes = split_top(text[1:-1]), text[0], text[-1]
    elif (match := _INEQUALITY.fullmatch(text)) and (match[2] or match[3])[0] == match[3][0]:
        is_down = match[3][0] == ">"
        ends = [match[1] or ("oo" if is_down else "-oo"), match[4]]
        closed = ["=" in (match[2] or ""), "=" in match[3]]
        if is_down:
            ends, closed = ends[::-1], closed[::-1]
        opens, closes = "[" if closed[0] else "(", "]" if closed[1] else ")"
    else:
        return None
    is_read = len(ends) == 2 and all(map(parse_expression, ends))
    return f"{opens}{ends[0]},{ends[1]}{closes}" if is_read else None


Words = Literal["truth", "time", "letter", "digits", "words"]
Kind = Words | Literal["number", "list", "bracketed", "intervals", "matrix", "equation", "expression"]
TRUTHS = {"true": True, "false": False, "yes": True, "no": False}
TIME = re.compile(
    r"(?i)(?<![\d:])(?:(?P<day>凌晨|早上|早晨|上午|中午|下午|傍晚|晚上)\s*)?(?P<hour>\d{1,2})(?::(?P<minute>\d{2})(?::\d{2})?(?![\d:])"
    r"|[点时](?:(?P<minutes>\d{1,2})分?|(?P<half>半)|整|钟)?)(?:\s*(?P<m>[ap])\.?m\b\.?"
    r"|\s*(?:in the|at) (?P<said>morning|afternoon|evening|night))?"
)
_LATE = ("afternoon", "evening", "night", "中午", "下午", "傍晚", "晚上")


@dataclass(frozen=True)
class Gold:
    """A reference, read once."""

    plain: str
    """As the data set has it, without its solution and without LaTeX layout."""
    kind: Kind
    question: str


def read_gold(reference: str, question: str) -> Gold:
    """Read a reference: what its last box holds, or what follows its last ####."""
    text = normalize(reference)
    string = plain(last_box(text.string) or text.string.rsplit("####", 1)[-1])
    named = re.fullmatch(r"(?:[a-zA-Z]|\([a-z](?:,\s*[a-z])+\))\s*=\s*([^=]*,[^=]*)", string)
    string = named[1] if named else string
    parts = dict(re.findall(r"(?:^|,)\s*([a-zA-Z])\s*=\s*([^=,]+)(?=,|$)", string))
    if len(parts) > 1 and len(parts) == string.count("="):  # x=3, y=4
        string = f"({', '.join(parts[name] for name in sorted(parts))})"
    return Gold(string, kind_of(string), question)


def kind_of(text: str) -> Kind:
    """Return what kind of answer a reference is, which is plain."""
    if text.lower() in TRUTHS:
        return "truth"
    if re.search(r"[ap]\.?m", text, re.I) and TIME.fullmatch(text):
        return "time"
    if re.fullmatch(r"\(?[a-zA-Z]\)?", text):
        return "letter"
    if re.fullmatch(r"\[\s*\[.*\]\s*\]", text):
        return "matrix"
    if is_number(text):
        return "number"
    if text.count("=") == 1 and all(parse_expression(side) for side in text.split("=")):
        return "equation"
    if intervals(text) and re.search(r"[∪<>]|oo|^[(\[][^()]*\]$|^\[[^()]*\)$", text):
        return "intervals"
    if len(split_top(text)) > 1 or re.search(r"\d\s*±|^±", text):
        return "list"
    if re.fullmatch(r"[(\[{].*[)\]}]", text) and len(split_top(text[1:-1])) > 1:
        return "bracketed"
    if re.fullmatch(r"-?0[xbo][0-9a-f]+", text, re.I):
        return "digits"
    if re.fullmatch(r"-?(?=[0-9a-f]*[a-f])(?=[0-9a-f]*\d)[0-9a-f]+", text):
        parsed = parse_expression(text)
        return "digits" if re.search(r"[a-f]{2}|[a-f]\d|\d[a-f].*[a-f]", text) or parsed is None else "expression"
    if re.search(r"[A-Za-z]{2,}", re.sub(rf"(?<![A-Za-z]){FUNCTIONS}", "", text)):
        return "words"
    return "expression" if parse_expression(text) is not None else "words"


def is_number(text: str) -> bool:
    """Return whether a text is one number, with a currency, a unit, a percent sign or a base at most."""
    bare = re.sub(
        r"^[$€£]|\s*(?:%|°|degrees?)$|(?:\s+(?!pi\b|sqrt\b)[a-zA-Z]{2,}(?:\^\d)?){1,3}$|_\(?\d+\)?$", "", text.strip()
    ).strip()
    return bool(re.fullmatch(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?", bare)) and any(c.isdigit() for c in bare)


_ORDERED = re.compile(
    r"(?i)\b(?:sort|order|ascending|descending|increasing|decreasing|arrange|put)\b|升序|降序|从[小大]到"
)
_BASE = re.compile(r"_\(?(\d+)\)?$")
_EULER = re.compile(r"(?<![a-zA-Z])e(?![a-zA-Z])(?:\^(\([^()]*\)|-?\w+))?")
_EXPONENT = re.compile(rf"\^\([^()]*\)|(?<![a-zA-Z]){FUNCTIONS}\([^()]*\)")


def is_same(shown: str, gold: Gold) -> bool:
    """Return whether an answer that was read for a reference's kind equals it."""
    target = gold.plain
    match gold.kind:
        case "truth":
            return shown in ("True", "False") and (shown == "True") == TRUTHS[target.lower()]
        case "time":
            wanted = TIME.search(target)
            return wanted is not None and shown == time_text(wanted)
        case "letter":
            return shown.strip("()").lower() == target.strip("()").lower()
        case "digits":
            return shown.lstrip("+") == re.sub(r"(?<![\da-f])0[xbo](?=[\da-f])", "", target.lower())
        case "words":
            return folded(shown) == folded(target)
        case "number":
            return _same_number(shown, gold)
        case "list":
            return same(shown, target, is_ordered=bool(_ORDERED.search(gold.question)))
        case "intervals" | "bracketed":
            if gold.kind == "intervals" or re.search(r"[<>]", shown):
                shown, target = intervals(shown) or "", intervals(target) or "none"
            elif target[0] == "{" and shown[:1] not in tuple("([{"):  # its members alone
                shown = f"{{{shown}}}"
            return same(shown, target)
        case "matrix":
            row = re.fullmatch(r"[(\[]([^\[\]]*)[)\]]", shown)
            return same(f"({row[1]})", vector(target) or "none") if row else same(shown, target)
        case "equation":
            left, right = (parse_expression(f"({text.replace('=', ')-(')})") for text in (shown, target))
            is_one = shown.count("=") == 1 and left is not None and right is not None
            return is_one and (equal(left, right) or proportional(left, right))  # type: ignore[arg-type]
    return _same_expression(shown, target) and _has_asked_form(shown, gold)


def _same_number(shown: str, gold: Gold) -> bool:
    """Compare numbers: 25% is 25 and 0.25, but 0.5% is 0.5 only where percent are asked for or meant."""
    base, shown_base = _BASE.search(gold.plain), _BASE.search(shown)
    if shown_base and (base[1] != shown_base[1] if base else "base" not in gold.question.lower()):
        return False
    wanted = parse_expression(gold_number(_BASE.sub("", gold.plain)) or gold.plain)
    bare, is_percent = _BASE.sub("", shown.removesuffix("%").strip()), shown.endswith("%")
    left = parse_expression(bare)
    if left is None or wanted is None:
        return False
    is_part = left.value is not None and 0 < abs(left.value) < 1
    means_percent = gold.plain.endswith("%") or asks_percent(gold.question)
    factors = [Fraction(1)] if not (is_percent and is_part) or means_percent else []
    factors += [Fraction(1, 100)] if is_percent and not gold.plain.endswith("%") else []
    factors += [Fraction(100)] if gold.plain.endswith("%") and not is_percent else []
    scaled = [parse_expression(f"({bare})*({factor})") for factor in factors]
    return any(one is not None and equal(one, wanted) for one in scaled)


def same(shown: str, target: str, *, is_ordered: bool = True) -> bool:
    """Compare two values part by part: members of sets and unions in any order, those of a list as is said."""
    (sign, ours), (other, theirs) = _parts(shown), _parts(target)
    if sign != other or len(ours) != len(theirs):
        return False
    if not sign:
        left, right = parse_expression(shown), parse_expression(target)
        return equal(left, right) if left and right else folded(shown) == folded(target)
    if sign in ("()", "[]", "(]", "[)") or (sign == "," and is_ordered):
        return all(map(same, ours, theirs))
    for one in ours:
        at = next((at for at, wanted in enumerate(theirs) if same(one, wanted)), None)
        if at is None:
            return False
        del theirs[at]
    return True


def _parts(text: str) -> tuple[str, list[str]]:
    """Return what holds a value together, and its parts: brackets, a union's sign or commas; nothing for a lone one."""
    text = text.strip()
    listed = [item.replace("±", sign) for item in split_top(text) for sign in ("+-" if item.count("±") == 1 else "±")]
    for sign, parts in (("∪", text.split("∪")), (",", listed), (text[:1] + text[-1:], split_top(text[1:-1]))):
        if sign == "[]" or (len(parts) > 1 and (sign in ("∪", ",") or re.fullmatch(r"[(\[{][)\]}]", sign))):
            return sign, parts
    return "", [text]


def _same_expression(shown: str, target: str) -> bool:
    if "exp" in shown + target:
        shown, target = (_EULER.sub(lambda m: f"exp({(m[1] or '1').strip('()')})", text) for text in (shown, target))
    left, right = parse_expression(shown), parse_expression(target)
    return left is not None and right is not None and equal(left, right)


def _has_asked_form(shown: str, gold: Gold) -> bool:
    """Return whether an expression is factored, expanded or collected where the question asks for that."""
    shown, target = shown.replace(" ", "").replace("**", "^"), gold.plain.replace(" ", "")
    if re.match(r"\s*(?:factor|因式分解)", gold.question, re.I):
        return _num_terms(shown) <= _num_terms(target)
    if re.match(r"\s*(?:expand|collect|simplify|展开|化简)", gold.question, re.I):
        bare = _EXPONENT.sub("", shown)
        is_open = "(" in target or not re.search(r"[a-z]\w*\)|\([^()]*[a-z][^()]*[-+]", bare)
        return is_open and _num_terms(bare) <= _num_terms(target)
    return True


def _num_terms(text: str) -> int:
    """Count the terms of a sum that stand outside brackets."""
    while (inner := re.sub(r"\([^()]*\)|\[[^\[\]]*\]", "1", text)) != text:
        text = inner
    return len(re.findall(r"(?<=[^-+*/^])[-+]", text)) + 1


def time_text(match: re.Match[str]) -> str:
    """Return a time in one form, hour:minute with its half; from 13 on, hours tell their half themselves."""
    hour, day = int(match["hour"]), (match["day"] or match["said"] or "").lower()
    minute = match["minute"] or ("30" if match["half"] else match["minutes"] or "0").zfill(2)
    half = f"{match['m'].upper()}M" if match["m"] else "PM" if day in _LATE else "AM" if day else ""
    if not half and (hour >= 13 or hour == 0):
        hour, half = hour - 12 if hour > 12 else 12, "PM" if hour > 12 else "AM"
    return f"{hour}:{minute} {half}".strip()


def folded(text: str) -> str:
    """Return words for comparison: lower case, blanks as one, none beside Chinese, without punctuation around."""
    text = re.sub(r"\s+(?=[\u4e00-\u9fff])|(?<=[\u4e00-\u9fff])\s+", "", text)
    return re.sub(r"[\s\\]+", " ", text.lower()).strip().strip(".。\"'`").strip()
