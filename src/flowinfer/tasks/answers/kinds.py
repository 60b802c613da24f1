"""What kind of answer a mathematics reference is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from flowinfer.tasks.answers.boxes import last_box
from flowinfer.tasks.answers.expressions import parse_expression
from flowinfer.tasks.answers.intervals import read_intervals
from flowinfer.tasks.answers.latex import FUNCTIONS, plain, split_top
from flowinfer.tasks.answers.text import normalize

Kind = Literal[
    "truth",
    "time",
    "letter",
    "digits",
    "number",
    "list",
    "bracketed",
    "intervals",
    "matrix",
    "equation",
    "expression",
    "words",
]
TRUTHS = {"true": True, "false": False, "yes": True, "no": False}
TIME = re.compile(r"(?<![\d:])(\d{1,2}):(\d{2})(?::\d{2})?(?:\s*([ap])\.?m\b\.?|(?![\d:]))", re.I)


@dataclass(frozen=True)
class Gold:
    """A reference, read once."""

    string: str
    """As the data set has it, without its solution."""
    plain: str
    """Without LaTeX layout."""
    kind: Kind
    question: str


def read_gold(reference: str, question: str) -> Gold:
    """Read a reference: what its last box holds, or what follows its last ####."""
    text = normalize(reference)
    string = (last_box(text.string) or text.string.rsplit("####", 1)[-1]).strip()
    named = re.fullmatch(r"(?:[a-zA-Z]|\([a-z](?:,\s*[a-z])+\))\s*=\s*([^=]*,[^=]*)", plain(string))
    string = named[1] if named else string
    parts = dict(re.findall(r"(?:^|,)\s*([a-zA-Z])\s*=\s*([^=,]+)(?=,|$)", plain(string)))
    if len(parts) > 1 and len(parts) == string.count("="):  # x=3, y=4
        string = f"({', '.join(parts[name] for name in sorted(parts))})"
    return Gold(string, plain(string), kind_of(string), question)


def kind_of(gold: str) -> Kind:
    """Return what kind of answer a reference is."""
    text = plain(gold)
    if text.lower() in TRUTHS:
        return "truth"
    if re.search(r"[ap]\.?m", text, re.I) and TIME.fullmatch(text):
        return "time"
    if re.fullmatch(r"\(?[a-zA-Z]\)?", text):
        return "letter"
    if "matrix}" in gold or "{array}" in gold:
        return "matrix"
    if is_number(text):
        return "number"
    if text.count("=") == 1 and all(parse_expression(side) for side in text.split("=")):
        return "equation"
    if read_intervals(text) is not None and re.search(r"[∪<>]|oo|^[(\[][^()]*\]$|^\[[^()]*\)$", text):
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
