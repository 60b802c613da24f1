"""Any data set as JSON lines: `{question, answer, id?, choices?, kind?, subject?}`, one item per line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from unicodedata import normalize

from flowinfer.results import Question
from flowinfer.tasks.answers import TASKS
from flowinfer.tasks.answers.kinds import TRUTHS
from flowinfer.tasks.sources import Item, Row, json_lines

_OWN = ("question", "answer", "choices", "kind")
"""Fields that no prompt shows as columns: the first is {question}, the second no model may see."""

_NUMBER = re.compile(r"[-+]?[$¥€£]?\d[\d,]*(?:\.\d+)?%?")
_FORMULA = re.compile(r"[\w\s.,()+\-*/^{}\\=<>|!%$°\[\]]+")


def read(path: Path, *, kind: str | None = None, columns: Iterable[str] = ()) -> Sequence[Item]:
    """Read a JSON-lines file; `kind` is for items that name none (inferred from each item if not given).

    Args:
        columns: further fields of the items to keep, where they are there.

    Raises:
        DataError: an item is malformed.
    """
    wanted = [name for name in columns if name not in _OWN]
    return [
        question_of(item, kind=kind, number=index, columns=_columns(item, wanted))
        for index, item in enumerate(json_lines(path))
    ]


def question_of(item: Row, *, kind: str | None, number: int, columns: Mapping[str, str] | None = None) -> Item:
    """Turn one object into a question; items without an id are numbered from 0."""
    choices = _choices(item)
    reference = item.text("answer")
    named = item.optional("kind")
    if named is not None and named not in TASKS:
        raise item.complain(f"unknown kind '{named}'", f"use one of: {', '.join(TASKS)}; or leave it out")
    text = item.text("question")
    if not text.strip():
        raise item.complain("the question is empty", "write the question's text, or remove the line")
    if choices and named in ("gsm8k", "mathematics"):
        raise item.complain(f"kind '{named}' with choices", 'leave "kind" out where an option is asked for')
    if re.fullmatch(r"nan|[-+]?inf(?:inity)?|none|null", reference.strip(), re.I) and not (named or choices):
        raise item.complain(f"the answer is '{reference}'", 'a missing value? if it is meant, name "kind": "exact"')
    question = Question(
        id=item.optional("id") or str(number),
        question=text,
        reference=_short(reference),
        kind=named or (None if choices else kind) or infer_kind(text, reference, choices),
        choices=choices,
        subject=item.optional("subject"),
        columns=columns or {},
    )
    worked = reference.strip() if "####" in reference else ""
    return Item(question, item.place, bool(choices), not (choices or named or kind), worked)


def infer_kind(question: str, reference: str, choices: Mapping[str, str]) -> str:
    """Say which judge suits an item that names none.

    Example: "#### 18" and "18" are gsm8k, "C" with choices is ceval, "2*x + 1" and "yes" are mathematics, which knows
    that true is yes, "Paris" is exact.
    """
    answer = reference.strip()
    if choices:
        return "ceval"
    if re.fullmatch(r"[A-J]", answer) and re.search(r"(?:^|\n)\s*\(?A\s*[.):、．]", question):
        return "ceval"
    if "####" in reference or _NUMBER.fullmatch(answer):
        return "gsm8k"
    if answer.lower() in TRUTHS:
        return "mathematics"
    has_operator = re.search(r"\\[a-zA-Z]|\d\s*[-+*/^,]\s*[\w(-]|[*^=/]", answer) is not None
    return "mathematics" if has_operator and _FORMULA.fullmatch(answer) else "exact"


def _columns(item: Row, wanted: Iterable[str]) -> Mapping[str, str]:
    return {name: item.text(name) for name in wanted if item.fields.get(name) is not None}


def _short(reference: str) -> str:
    """Reduce GSM8K's worked answers to what follows the last `####`."""
    return reference.rpartition("####")[2].strip() if "####" in reference else reference.strip()


def _choices(item: Row) -> Mapping[str, str]:
    value = item.fields.get("choices")
    if value is None:
        return {}
    if isinstance(value, (list, dict)) and len(value) > len(ascii_uppercase):
        raise item.complain(f"{len(value)} choices, and 26 letters to name them", "give at most 26")
    if isinstance(value, list):
        value = dict(zip(ascii_uppercase, value, strict=False))
    if not isinstance(value, dict) or not all(isinstance(text, (str, int, float)) for text in value.values()):
        raise item.complain("'choices' is not an object of texts", 'write "choices": {"A": "...", "B": "..."}')
    named = {normalize("NFKC", name).strip(" ()[]【】.:、").upper(): str(text) for name, text in value.items()}
    if len(named) < len(value) or not all(name in ascii_uppercase and len(name) == 1 for name in named):
        raise item.complain(
            "'choices' are not named by letters", 'write "choices": {"A": "...", "B": "..."}, or a list'
        )
    return named
