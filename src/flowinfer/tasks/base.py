"""From a data set's name to its questions: loading, choosing some of them, and the text that a prompt shows.

What is loaded is recorded by a fingerprint over the chosen items, so that a run resumed later can tell other data.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from flowinfer import registry
from flowinfer.errors import DataError, UsageError
from flowinfer.language.prompts import foreign_note
from flowinfer.planning import plan as plans
from flowinfer.results import Question
from flowinfer.spec import Flow, nodes
from flowinfer.tasks import generic
from flowinfer.tasks.references import AnswerIndex, check, judges_note, settle
from flowinfer.tasks.sources import Item, Task

_LAB = Path(__file__).parent.parent / "zoos" / "lab"
"""The lab's zoo, with its items beside the weights: `ceval.jsonl` and the like, test items of seed 42."""
_LAB_MARK = " (lab)"
"""Ends the label of a data set whose items are the lab's."""
_LAB_NUM = 100
"""How many of the lab's items are asked where nothing else is said: the first of them."""


_CEVAL_HEADER = "以下是中国关于{subject}考试的单项选择题，请选出其中的正确答案。"


@dataclass(frozen=True)
class Dataset:
    """Questions, and where they came from."""

    name: str
    """As asked for: a task's name or a path."""
    label: str
    """For tables: the task's name or the file's stem."""
    questions: tuple[Question, ...]
    fingerprint: str
    """sha256 over the questions in their order."""
    source: str
    """The local path, or what was loaded from the hub."""
    note: str | None = None
    """What a user must know of how its answers were read."""


def load_questions(
    name: str,
    *,
    data: Mapping[str, Path] | None = None,
    limit: int | None = None,
    sample: int | None = None,
    seed: int = 0,
    ids: Sequence[str] | None = None,
    use_items: bool = False,
    answer_index: AnswerIndex | None = None,
    columns: Mapping[str, str] | None = None,
) -> Dataset:
    """Load a data set and choose questions from it.

    Args:
        name: a task (gsm8k, ceval, mathematics, or a plug-in's) or the path of a jsonl file.
        data: local files or folders by task name; a task without one is loaded from the hub.
        limit: the first N questions.
        sample: N random ones, by seed: the same for the same ids, and a larger sample holds the smaller.
        ids: exactly these, in this order.
        use_items: without local data, take the lab's 1,000 items of that form instead of the hub's; the first 100 of
            them where nothing else is said.
        answer_index: what answers count from that are indices of options; told from the whole file if not given.
        columns: further fields that every question needs, each with the model whose prompt shows it.
    Raises:
        UsageError: the name is unknown, or more than one of limit, sample and ids is given.
        DataError: the data cannot be read, ids repeat, an asked id is not there, columns are missing, or no judge could
            read a reference.
    """
    lab = _LAB / f"{name}.jsonl"
    if use_items and name not in (data or {}) and name in registry.tasks() and lab.is_file():
        source = "the lab's test items, seed 42"
        loaded = _Loaded(f"{name}{_LAB_MARK}", tuple(generic.read(lab, columns=columns or {})), source)
        limit = _LAB_NUM if limit is None and sample is None and ids is None else limit
    else:
        loaded = _load(name, data or {}, columns or {})
    _refuse_repeated_ids(loaded)
    settled = settle(loaded.items, answer_index)
    by_id = {item.question.id: item for item in settled.items}
    known = [item.question for item in settled.items]
    questions = tuple(_choose(loaded.source, known, limit=limit, sample=sample, seed=seed, ids=ids))
    check([by_id[question.id] for question in questions])
    refuse_missing(columns or {}, questions, loaded.source)
    note = "; ".join(filter(None, (settled.note, judges_note(settled.items)))) or None
    return Dataset(name, loaded.label, questions, fingerprint(questions), loaded.source, note)


def load_for(flows: Sequence[Flow], name: str, **chosen: Any) -> Dataset:  # the arguments of `load_questions`
    """Load what some flows of one zoo ask: with the columns that their prompts show; of the lab's zoo its own items."""
    needed = {column: model for flow in flows for column, model in plans.columns(flow).items()}
    return load_questions(name, use_items=flows[0].zoo in ("toy", "lab"), columns=needed, **chosen)


def refuse_missing(columns: Mapping[str, str], questions: Sequence[Question], source: str) -> None:
    """Refuse questions that lack a column.

    Raises:
        DataError: which column, whose prompt shows it, and how many lack it.
    """
    for name, model in columns.items():
        lacking = [question.id for question in questions if name not in question.columns]
        if lacking:
            named = ", ".join(f"'{identifier}'" for identifier in lacking[:3]) + (", ..." if len(lacking) > 3 else "")
            raise DataError(
                f"{source}: {len(lacking)} of {len(questions)} questions have no column '{name}' ({named})",
                help=f"the prompt of '{model}' has {{{name}}}: add it to every item of a .jsonl file",
            )


def language_note(flow: Flow, questions: Sequence[Question], label: str = "") -> str | None:
    """Return what a user must know whose questions are not in the language that the flow's prompt set asks in.

    Args:
        label: of the data set; the lab's models learnt its own items in these words.
    """
    if label.endswith(_LAB_MARK):
        return None
    templates = (node.template for node in nodes(flow.root))
    return foreign_note(flow.prompts, templates, [question_text(question) for question in questions])


def question_text(question: Question) -> str:
    """Return what fills `{question}` in a prompt: header (C-Eval subjects), question, and a line per choice."""
    lines = [question.whole]
    if question.kind == "ceval" and question.subject and question.choices:
        lines.insert(0, _CEVAL_HEADER.format(subject=question.subject))
    return "\n".join(lines)


def fingerprint(questions: Sequence[Question]) -> str:
    """Return the sha256 of the questions' canonical JSON, in their order."""
    digest = hashlib.sha256()
    for question in questions:
        said = question.model_dump(exclude=None if question.columns else {"columns"})
        line = json.dumps(said, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        digest.update(line.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()


@dataclass(frozen=True)
class _Loaded:
    label: str
    items: tuple[Item, ...]
    source: str


def _load(name: str, data: Mapping[str, Path], columns: Mapping[str, str]) -> _Loaded:
    known = registry.tasks()
    if name in known:
        task = registry.load(known[name])
        if not isinstance(task, Task):
            raise UsageError(f"task '{name}' is not a flowinfer.tasks.sources.Task", help="update its package")
        path = data.get(name)
        if path is None:
            return _Loaded(name, _placed(task.fetch(), task.hub), task.hub)
        if not path.exists():
            raise DataError(f"{path}: no such file or folder", help=f"give {task.local_forms}")
        return _Loaded(name, _placed(task.read(path), str(path)), str(path))
    path = data.get(name, Path(name))
    if path.suffix == ".jsonl" or path.is_file():
        items = tuple(generic.read(path, columns=columns))
        if not items:
            raise DataError(f"{path}: no questions", help='write {"question": ..., "answer": ...}, one a line')
        return _Loaded(path.stem, items, str(path))
    close = get_close_matches(name, known, n=1)
    cure = f"did you mean '{close[0]}'?" if close else f"use one of {', '.join(known)}, or a path to a .jsonl file"
    raise UsageError(f"unknown data set '{name}'", help=cure)


def _placed(found: Sequence[Question | Item], source: str) -> tuple[Item, ...]:
    """Give questions that do not say where they stand a place by their id."""
    return tuple(one if isinstance(one, Item) else Item(one, f"{source}, question '{one.id}'") for one in found)


def _refuse_repeated_ids(loaded: _Loaded) -> None:
    counts = Counter(item.question.id for item in loaded.items)
    repeated = [identifier for identifier, count in counts.items() if count > 1]
    if repeated:
        more = f" and {len(repeated) - 1} more" if len(repeated) > 1 else ""
        raise DataError(
            f"{loaded.source}: id '{repeated[0]}'{more} stands for several questions",
            help="give every item an id of its own, or none any id",
        )


def _choose(
    source: str,
    questions: Sequence[Question],
    *,
    limit: int | None,
    sample: int | None,
    seed: int,
    ids: Sequence[str] | None,
) -> Sequence[Question]:
    _refuse_bad_choice(limit=limit, sample=sample, ids=ids)
    if ids is not None:
        return _by_ids(source, questions, ids)
    if sample is not None:
        return sorted(questions, key=lambda question: _draw(seed, question.id))[:sample]
    return questions[:limit]


def _refuse_bad_choice(*, limit: int | None, sample: int | None, ids: Sequence[str] | None) -> None:
    if sum(option is not None for option in (limit, sample, ids)) > 1:
        raise UsageError("limit, sample and ids exclude each other", help="give one of them")
    for option, value in (("limit", limit), ("sample", sample)):
        if value is not None and value < 1:
            raise UsageError(f"{option} must be at least 1, not {value}")


def _draw(seed: int, identifier: str) -> bytes:
    """Return a question's place in the random order of a seed: the same on every machine and Python version."""
    return hashlib.sha256(f"{seed}\n{identifier}".encode("utf-8", "surrogatepass")).digest()


def _by_ids(source: str, questions: Sequence[Question], ids: Sequence[str]) -> Sequence[Question]:
    by_id = {question.id: question for question in questions}
    for identifier in ids:
        if identifier not in by_id:
            close = get_close_matches(identifier, by_id, n=1, cutoff=0.5)
            first = questions[0].id
            cure = f"did you mean '{close[0]}'?" if close else f"its ids look like '{first}'"
            raise DataError(f"{source}: no question has the id '{identifier}'", help=cure)
    if len(set(ids)) < len(ids):
        raise UsageError("an id is asked for twice", help="name every id once")
    return [by_id[identifier] for identifier in ids]
