"""Any other data set: a jsonl of {question, answer, id?, choices?, kind?, subject?}."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowinfer.errors import DataError
from flowinfer.results import Question
from flowinfer.tasks.answers.maths import kind_of
from flowinfer.tasks.base import need, read_jsonl

KINDS = ("gsm8k", "ceval", "mathematics", "exact")


def read_generic(path: Path) -> list[Question]:
    """Read a jsonl file.

    Raises:
        DataError: place, what and cure.
    """
    if path.suffix != ".jsonl":
        raise DataError(f"{path}: expected a .jsonl file", help="one {question, answer} object per line")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    return [to_question(row, index, place) for index, (place, row) in enumerate(read_jsonl(path))]


def to_question(row: Mapping[str, Any], index: int, place: str, *, kind: str | None = None) -> Question:
    """Turn one object into a question; the judge is inferred where the object names none.

    Raises:
        DataError: a field is missing or of the wrong form.
    """
    answer = need(row, "answer", place)
    choices = _choices(row.get("choices"), place)
    given = row.get("kind") or kind
    if given is not None and given not in KINDS:
        raise DataError(f"{place}: unknown kind '{given}'", help=f"kinds: {', '.join(KINDS)}")
    if choices and answer.strip().upper() not in choices and (given or "ceval") == "ceval":
        raise DataError(f"{place}: the answer '{answer}' is none of the choices {', '.join(choices)}")
    return Question(
        id=str(row.get("id", index)),
        question=need(row, "question", place),
        reference=answer,
        kind=str(given or infer_kind(answer, has_choices=bool(choices))),
        choices=choices,
        subject=str(row["subject"]) if row.get("subject") else None,
    )


def infer_kind(answer: str, *, has_choices: bool) -> str:
    """Return the judge that a reference's form calls for."""
    if has_choices:
        return "ceval"
    if "####" in answer:
        return "gsm8k"
    return {"number": "gsm8k", "words": "exact", "letter": "exact"}.get(kind_of(answer.strip()), "mathematics")


def _choices(given: object, place: str) -> dict[str, str]:
    if given is None:
        return {}
    if isinstance(given, list):
        given = dict(zip("ABCDEFGH", given, strict=False))
    if not isinstance(given, dict) or not given:
        raise DataError(f"{place}: choices must be an object {{'A': ..., 'B': ...}} or a list")
    return {str(letter).upper(): str(text) for letter, text in given.items()}
