"""Data sets: from files, the hub, or the package's own items, to questions with ids and a fingerprint."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rapidfuzz import process

from flowinfer.errors import DataError, UsageError
from flowinfer.registry import load, tasks
from flowinfer.results import Question


@dataclass(frozen=True)
class Task:
    """A data set that has a name."""

    name: str
    title: str
    forms: str
    """What local files may look like."""
    hub_id: str
    licence: str
    read: Callable[[Path], list[Question]]
    """Read a local file or folder."""
    fetch: Callable[[], list[Question]]
    """Download through the library `datasets`."""


@dataclass(frozen=True)
class Dataset:
    """Questions to ask."""

    name: str
    label: str
    """Shown everywhere, e.g. "ceval" or "ceval (demo items)"."""
    questions: tuple[Question, ...]
    source: str
    """Path, hub id, or the package."""
    fingerprint: str
    """sha256 over the questions."""


def load_questions(
    name: str,
    *,
    data: Mapping[str, Path] | None = None,
    limit: int | None = None,
    sample: int | None = None,
    seed: int = 42,
    ids: Sequence[str] = (),
    use_items: bool = False,
) -> Dataset:
    """Load a data set and choose questions from it.

    Args:
        name: a task's name, or the path of a jsonl file.
        data: task name -> local file or folder in the data set's original form.
        limit: the first N.
        sample: N at random by `seed`, kept in the data set's order.
        ids: exactly these, in this order.
        use_items: without local data, take the package's own small set instead of the hub.
    Raises:
        UsageError: no such data set, or choices that contradict each other or name no question.
        DataError: a file is malformed, with place and cure, or the hub cannot be reached.
    """
    _refuse_contradiction(limit, sample, ids)
    dataset = _load(name, dict(data or {}), use_items=use_items)
    if not dataset.questions:
        raise DataError(f"{dataset.source}: no questions")
    _refuse_duplicates(dataset)
    chosen: Sequence[Question] = dataset.questions
    if ids:
        chosen = _by_ids(dataset, ids)
    elif sample is not None:
        if sample > len(chosen):
            raise UsageError(f"--sample {sample}: '{dataset.label}' has {len(chosen)} questions")
        picked = sorted(random.Random(seed).sample(range(len(chosen)), sample))
        chosen = [chosen[index] for index in picked]
    elif limit is not None:
        chosen = chosen[:limit]
    return replace(dataset, questions=tuple(chosen), fingerprint=fingerprint(chosen))


def question_text(question: Question) -> str:
    """Return what fills {question}: the exam's heading for real C-Eval items, the question, its choices as lines."""
    from flowinfer.tasks.ceval import heading

    lines = [*heading(question), question.question]
    lines += [f"{letter}. {text}" for letter, text in question.choices.items()]
    return "\n".join(lines)


def fingerprint(questions: Sequence[Question]) -> str:
    """Return sha256 over questions in canonical form."""
    rows = [question.model_dump(mode="json") for question in questions]
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def read_text(path: Path) -> str:
    """Return a UTF-8 file's text.

    Raises:
        DataError: it cannot be read or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}", help="save the file as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from error


def read_jsonl(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return (place, object) of each line of a jsonl file, blank lines passed over.

    Raises:
        DataError: a line is no JSON object, with its number.
    """
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{place}: not valid JSON: {error}", help="one JSON object per line") from error
        if not isinstance(row, dict):
            raise DataError(f"{place}: expected a JSON object, found {type(row).__name__}")
        rows.append((place, row))
    return rows


def need(row: Mapping[str, Any], key: str, place: str) -> str:
    """Return a row's field as text.

    Raises:
        DataError: it is missing or empty.
    """
    if row.get(key) is None or str(row[key]).strip() == "":
        near = process.extractOne(key, list(row), score_cutoff=60)
        hint = f"did you mean to rename '{near[0]}'?" if near else f"its fields are: {', '.join(row) or 'none'}"
        raise DataError(f"{place}: field '{key}' is missing", help=hint)
    return str(row[key])


def task(name: str) -> Task:
    """Return a registered task.

    Raises:
        UsageError: there is none of that name.
    """
    known = tasks()
    if name not in known:
        near = process.extractOne(name, list(known), score_cutoff=60)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}; or a path to a .jsonl file"
        raise UsageError(f"unknown data set '{name}'", help=hint)
    found = load(known[name])
    assert isinstance(found, Task), "registered tasks are Task objects"
    return found


def _load(name: str, data: dict[str, Path], *, use_items: bool) -> Dataset:
    for given in data:
        if given not in tasks():
            task(given)
    if name not in tasks() and (name.endswith((".jsonl", ".json", ".csv")) or Path(name).exists()):
        from flowinfer.tasks.generic import read_generic

        questions = read_generic(Path(name))
        return Dataset(Path(name).stem, Path(name).name, tuple(questions), name, fingerprint(questions))
    found = task(name)
    if name in data:
        path = data[name].expanduser()
        if not path.exists():
            raise DataError(f"--data {name}={path}: no such file or folder", help=f"forms: {found.forms}")
        questions = found.read(path)
        return Dataset(name, name, tuple(questions), str(path), fingerprint(questions))
    if use_items:
        from flowinfer.tasks.generic import read_generic

        path = Path(__file__).parent / "items" / f"{name}.jsonl"
        if path.is_file():
            questions = read_generic(path)
            return Dataset(name, f"{name} (demo items)", tuple(questions), "demo items", fingerprint(questions))
    questions = found.fetch()
    return Dataset(name, name, tuple(questions), found.hub_id, fingerprint(questions))


def fetch_rows(hub_id: str, subset: str | None, split: str, name: str) -> list[dict[str, Any]]:
    """Download a split through `datasets`.

    Raises:
        DataError: offline or missing; names the local alternative.
    """
    import datasets

    datasets.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(hub_id, subset, split=split)
    except Exception as error:  # the library raises many kinds, from connection to parsing
        reason = next((line for line in str(error).split("\n") if line.strip()), type(error).__name__)
        raise DataError(
            f"data set '{hub_id}' cannot be loaded from the hub: {reason[:200]}",
            help=f"use local files: --data {name}=PATH (see `flowinfer datasets`)",
        ) from error
    return [dict(row) for row in loaded]


def _by_ids(dataset: Dataset, ids: Sequence[str]) -> list[Question]:
    by_id = {question.id: question for question in dataset.questions}
    for wanted in ids:
        if wanted not in by_id:
            near = process.extractOne(wanted, list(by_id), score_cutoff=60)
            hint = f"did you mean '{near[0]}'?" if near else f"ids look like '{dataset.questions[0].id}'"
            raise UsageError(f"--ids: '{dataset.label}' has no question '{wanted}'", help=hint)
    return [by_id[wanted] for wanted in dict.fromkeys(ids)]


def _refuse_contradiction(limit: int | None, sample: int | None, ids: Sequence[str]) -> None:
    given = [name for name, value in (("--limit", limit), ("--sample", sample), ("--ids", ids or None)) if value is not None]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} choose questions in different ways", help="give one of them")
    for name, value in (("--limit", limit), ("--sample", sample)):
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1, found {value}")


def _refuse_duplicates(dataset: Dataset) -> None:
    seen: set[str] = set()
    for question in dataset.questions:
        if question.id in seen:
            raise DataError(f"{dataset.source}: id '{question.id}' occurs twice", help="ids must be unique")
        seen.add(question.id)
