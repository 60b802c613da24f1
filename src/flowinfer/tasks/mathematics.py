"""Mathematics: DeepMind's mathematics_dataset txt (question line, answer line) and MATH-style json."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from flowinfer.errors import DataError
from flowinfer.results import Question
from flowinfer.tasks import generic
from flowinfer.tasks.sources import Item, JsonLine, Task, fetch_split, json_array, json_lines, malformed, read_text

_LOCAL = "a DeepMind mathematics_dataset txt file or folder, or MATH-style json (problem, answer, subject, level)"
_CURE = f"without network: --data mathematics=PATH, {_LOCAL}"


def read(path: Path) -> Sequence[Item]:
    """Read txt (a module a file), json or jsonl; a folder is read whole, in the order of its file names.

    Raises:
        DataError: nothing to read, or an item is malformed.
    """
    files = _files(path) if path.is_dir() else [path]
    questions = [question for file in files for question in _read_file(file)]
    if not questions:
        raise DataError(f"{path}: no questions", help=f"give {_LOCAL}")
    return questions


def _files(folder: Path) -> Sequence[Path]:
    found = sorted(path for path in folder.iterdir() if path.suffix in (".txt", ".json", ".jsonl"))
    kinds = sorted({path.suffix for path in found})
    if len(kinds) > 1:
        raise DataError(f"{folder}: holds {' and '.join(kinds)} files", help="give one file, or a folder of one form")
    if not found:
        raise DataError(f"{folder}: no txt, json or jsonl files", help=f"give {_LOCAL}")
    return found


def _read_file(file: Path) -> Iterable[Item]:
    match file.suffix:
        case ".json":
            return [_math(item, index) for index, item in enumerate(json_array(file))]
        case ".jsonl":
            return [_item(item, index) for index, item in enumerate(json_lines(file))]
        case _:
            return _module(file)


def _module(file: Path) -> Iterator[Item]:
    """Read a module's txt: question and answer lines in turn; ids are "module/number"."""
    lines = read_text(file).split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    if len(lines) % 2:
        raise malformed(file, len(lines), "a question without an answer line", "write questions and answers in turn")
    for index in range(0, len(lines), 2):
        for offset in (0, 1):
            if not lines[index + offset].strip():
                raise malformed(file, index + offset + 1, "empty line", "write questions and answers in turn")
        question = Question(
            id=f"{file.stem}/{index // 2}",
            question=lines[index],
            reference=lines[index + 1].strip(),
            kind="mathematics",
            subject=file.stem,
        )
        yield Item(question, f"{file}:{index + 2}")


def _item(item: JsonLine, index: int) -> Item:
    if "problem" in item.fields:
        return _math(item, index)
    return generic.question_of(item, kind="mathematics", number=index)


def _math(item: JsonLine, index: int) -> Item:
    question = Question(
        id=item.optional("unique_id") or item.optional("id") or str(index),
        question=item.text("problem", "question"),
        reference=_gold(item),
        kind="mathematics",
        subject=item.optional("subject") or item.optional("type"),
    )
    return item.item(question)


def _gold(item: JsonLine) -> str:
    """Return the answer field, or, as in MATH's own files, the last box of the solution."""
    if "answer" in item.fields:
        return item.text("answer")
    from flowinfer.tasks.answers.boxes import last_box

    box = last_box(item.text("solution", "answer"))
    if box is None:
        raise item.complain("no 'answer', and no \\boxed{...} in 'solution'", "give each item an answer")
    return box


def fetch() -> Sequence[Item]:
    """Load HuggingFaceH4/MATH-500 (the paper does not say which set it used; its examples are MATH's subjects)."""
    rows = fetch_split("HuggingFaceH4/MATH-500", None, "test", cure=_CURE)
    return [_math(JsonLine(Path("MATH-500"), index + 1, row), index) for index, row in enumerate(rows)]


TASK = Task("mathematics", read, fetch, "HuggingFaceH4/MATH-500 (test)", _LOCAL)
