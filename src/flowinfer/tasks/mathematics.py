"""Mathematics: DeepMind's generated questions in txt form, or MATH-style json.

Sources: google-deepmind/mathematics_dataset, Apache-2.0; hendrycks/math, MIT; from the hub HuggingFaceH4/MATH-500, since
the paper does not say which set it used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowinfer.errors import DataError
from flowinfer.results import Question
from flowinfer.tasks.base import Task, fetch_rows, need, read_jsonl, read_text


def read(path: Path) -> list[Question]:
    """Read a txt, json or jsonl file, or every such file of a folder."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in (".txt", ".json", ".jsonl"))
        if not files:
            raise DataError(f"{path}: no txt, json or jsonl files", help=f"forms: {TASK.forms}")
        return [question for file in files for question in read(file)]
    if path.suffix == ".txt":
        return _read_txt(path)
    rows = read_jsonl(path) if path.suffix == ".jsonl" else _json_rows(path)
    return [_question(row, path.stem, index, place) for index, (place, row) in enumerate(rows)]


def fetch() -> list[Question]:
    """Download MATH-500."""
    rows = fetch_rows("HuggingFaceH4/MATH-500", None, "test", "mathematics")
    return [_question(row, "math500", index, f"MATH-500:{index}") for index, row in enumerate(rows)]


def _read_txt(path: Path) -> list[Question]:
    lines = read_text(path).split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    if len(lines) % 2:
        raise DataError(
            f"{path}:{len(lines)}: a question without an answer", help="lines alternate: question, then answer"
        )
    questions = []
    for index in range(0, len(lines), 2):
        text, answer = lines[index].strip(), lines[index + 1].strip()
        if not text or not answer:
            raise DataError(f"{path}:{index + 1}: an empty line", help="lines alternate: question, then answer")
        questions.append(
            Question(
                id=f"{path.stem}-{index // 2}",
                question=text,
                reference=answer,
                kind="mathematics",
                subject=path.stem,
            )
        )
    return questions


def _json_rows(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    try:
        document = json.loads(read_text(path))
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON: {error}") from error
    if isinstance(document, dict):
        document = [document]
    if not isinstance(document, list) or not all(isinstance(row, dict) for row in document):
        raise DataError(f"{path}: expected a list of objects")
    return [(f"{path}[{index}]", row) for index, row in enumerate(document)]


def _question(row: Mapping[str, Any], stem: str, index: int, place: str) -> Question:
    text = need(row, "problem" if "problem" in row else "question", place)
    subject = row.get("subject") or row.get("type")
    level = row.get("level")
    return Question(
        id=str(row.get("unique_id", row.get("id", f"{stem}-{index}"))),
        question=text,
        reference=need(row, "answer" if "answer" in row else "solution", place),
        kind="mathematics",
        subject=f"{subject} {level}" if subject and level else str(subject) if subject else None,
    )


TASK = Task(
    name="mathematics",
    title="Mathematics",
    forms="DeepMind txt (question line, answer line), MATH-style json or jsonl (problem, answer), or a folder of them",
    hub_id="HuggingFaceH4/MATH-500",
    licence="Apache-2.0 (DeepMind), MIT (MATH)",
    read=read,
    fetch=fetch,
)
