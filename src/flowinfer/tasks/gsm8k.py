"""GSM8K: grade-school word problems; answers end in `#### n`. Source: openai/grade-school-math, MIT."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowinfer.errors import DataError
from flowinfer.results import Question
from flowinfer.tasks.answers.numbers import gold_number
from flowinfer.tasks.base import Task, fetch_rows, need, read_jsonl


def read(path: Path) -> list[Question]:
    """Read the original jsonl form (question, answer)."""
    if path.is_dir():
        inner = path / "test.jsonl"
        if not inner.is_file():
            raise DataError(f"{path}: no test.jsonl in this folder", help="name the jsonl file itself")
        path = inner
    return [_question(row, index, place) for index, (place, row) in enumerate(read_jsonl(path))]


def fetch() -> list[Question]:
    """Download the test split."""
    rows = fetch_rows("openai/gsm8k", "main", "test", "gsm8k")
    return [_question(row, index, f"openai/gsm8k test:{index}") for index, row in enumerate(rows)]


def _question(row: Mapping[str, Any], index: int, place: str) -> Question:
    answer = need(row, "answer", place)
    if gold_number(answer) is None:
        raise DataError(f"{place}: the answer holds no number", help="gold answers end in '#### n'")
    return Question(
        id=str(row.get("id", f"gsm8k-{index}")), question=need(row, "question", place), reference=answer, kind="gsm8k"
    )


TASK = Task(
    name="gsm8k",
    title="GSM8K",
    forms="a jsonl file with question and answer (ending '#### n'), or a folder with test.jsonl",
    hub_id="openai/gsm8k",
    licence="MIT",
    read=read,
    fetch=fetch,
)
