"""C-Eval: Chinese four-option questions in 52 subjects (hkust-nlp/ceval, csv per subject)."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from flowinfer.errors import DataError
from flowinfer.results import Question
from flowinfer.tasks import generic
from flowinfer.tasks.sources import Item, Task, fetch_split, malformed, read_text
from flowinfer.tasks.subjects import CEVAL_SUBJECTS

_LETTERS = ("A", "B", "C", "D")
_LOCAL = "C-Eval's folder (val/SUBJECT_val.csv), a folder of such files, or one csv with id,question,A,B,C,D,answer"
_CURE = f"without network: --data ceval=PATH, {_LOCAL}"
_SPLIT = re.compile(r"_(?:val|dev|test)$")


def read(path: Path) -> Sequence[Item]:
    """Read C-Eval's csv files, or JSON lines; ids are "subject/number".

    A folder with a subfolder val is read from there; dev (five worked examples a subject) only where val is absent.

    Raises:
        DataError: nothing to read, or a row is malformed.
    """
    if path.suffix in (".jsonl", ".json"):
        return generic.read(path, kind="ceval")
    names = _subject_names(path)
    files = _files(path) if path.is_dir() else [path]
    questions = [question for file in files for question in _rows(file, names)]
    if not questions:
        raise DataError(f"{path}: no questions", help=f"give {_LOCAL}")
    return questions


def _files(folder: Path) -> Sequence[Path]:
    for place in (folder / "val", folder, folder / "dev"):
        found = sorted(place.glob("*.csv"))
        if found:
            return found
    raise DataError(f"{folder}: no csv files", help=f"give {_LOCAL}")


def _subject_names(path: Path) -> Mapping[str, str]:
    """Return subject -> Chinese name, from a subject_mapping.json at or above the path where there is one."""
    base = path if path.is_dir() else path.parent
    for folder in (base, base.parent):
        file = folder / "subject_mapping.json"
        if file.is_file():
            try:
                value = json.loads(read_text(file))
                return CEVAL_SUBJECTS | {str(key): str(names[1]) for key, names in value.items()}
            except (ValueError, AttributeError, LookupError, TypeError) as error:
                raise DataError(
                    f"{file}: not a subject mapping", help='write {"law": ["Law", "法学", "Humanities"], ...}'
                ) from error
    return CEVAL_SUBJECTS


def _rows(file: Path, names: Mapping[str, str]) -> Iterator[Item]:
    subject = _SPLIT.sub("", file.stem)
    reader = csv.DictReader(io.StringIO(read_text(file), newline=""))
    try:
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise malformed(file, reader.line_num + 1, f"not CSV: {error}", "quote texts that hold quotes") from error
    missing = [name for name in ("question", *_LETTERS, "answer") if name not in (reader.fieldnames or ())]
    if missing:
        columns = ", ".join(f"'{name}'" for name in missing)
        raise malformed(file, 1, f"missing columns: {columns}", "the first line must be: id,question,A,B,C,D,answer")
    for number, (line, row) in enumerate(rows):
        if any(row[name] is None for name in ("question", *_LETTERS, "answer")):
            raise malformed(file, line, "too few columns", "quote texts that hold commas or quotes")
        answer = row["answer"].strip().upper()
        if answer not in _LETTERS:
            raise malformed(
                file,
                line,
                f"the answer is '{answer}', not one of A, B, C, D",
                "the test split has no answers: use val",
            )
        yield Item(_question(subject, str(row.get("id") or number), row, answer, names), f"{file}:{line}")


def _question(subject: str, number: str, row: Mapping[str, object], answer: str, names: Mapping[str, str]) -> Question:
    return Question(
        id=f"{subject}/{number}",
        question=str(row["question"]),
        reference=answer,
        kind="ceval",
        choices={letter: str(row[letter]) for letter in _LETTERS},
        subject=names.get(subject, subject),
    )


def fetch() -> Sequence[Question]:
    """Load the val split of ceval/ceval-exam, subject by subject."""
    return [
        _question(subject, str(row["id"]), row, str(row["answer"]), CEVAL_SUBJECTS)
        for subject in CEVAL_SUBJECTS
        for row in fetch_split("ceval/ceval-exam", subject, "val", cure=_CURE)
    ]


TASK = Task("ceval", read, fetch, "ceval/ceval-exam (val, 52 subjects)", _LOCAL)
