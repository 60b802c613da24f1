"""GSM8K: grade-school word problems whose answers end in `#### n` (openai/grade-school-math)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flowinfer.errors import DataError
from flowinfer.results import Question
from flowinfer.tasks import generic
from flowinfer.tasks.sources import Item, Task, fetch_split

_LOCAL = "the original test.jsonl (question, answer ending in '#### n')"
_CURE = f"without network: --data gsm8k=PATH, {_LOCAL}"


def read(path: Path) -> Sequence[Item]:
    """Read GSM8K's jsonl; ids are the items' own, else line numbers from 0.

    Raises:
        DataError: the path is a folder without test.jsonl, or an item is malformed.
    """
    file = _file(path) if path.is_dir() else path
    questions = generic.read(file, kind="gsm8k")
    if not questions:
        raise DataError(f"{file}: no questions", help=f"give {_LOCAL}")
    return questions


def _file(folder: Path) -> Path:
    for name in ("test.jsonl", "gsm8k_test.jsonl"):
        if (folder / name).is_file():
            return folder / name
    found = sorted(folder.glob("*.jsonl"))
    if len(found) == 1:
        return found[0]
    names = ", ".join(path.name for path in found) or "no .jsonl file"
    raise DataError(f"{folder}: no test.jsonl (it holds {names})", help=f"give one file: {_LOCAL}")


def fetch() -> Sequence[Question]:
    """Load the test split (1,319 questions) of openai/gsm8k."""
    rows = fetch_split("openai/gsm8k", "main", "test", cure=_CURE)
    return [
        Question(
            id=str(index),
            question=str(row["question"]),
            reference=str(row["answer"]).rpartition("####")[2].strip(),
            kind="gsm8k",
        )
        for index, row in enumerate(rows)
    ]


TASK = Task("gsm8k", read, fetch, "openai/gsm8k (main, test)", _LOCAL)
