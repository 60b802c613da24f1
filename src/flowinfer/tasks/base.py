"""From a data set's name to its questions: loading, choosing some of them, and the text that a prompt shows.

What is loaded is recorded by a fingerprint over the chosen items, so that a run resumed later can tell other data.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from flowinfer import registry
from flowinfer.errors import DataError, UsageError
from flowinfer.language.prompts import foreign_note
from flowinfer.planning import plan as plans
from flowinfer.results import Question
from flowinfer.spec import Flow, nodes
from flowinfer.tasks import fewshot, generic
from flowinfer.tasks.references import AnswerIndex, check, judges_note, settle
from flowinfer.tasks.sources import Item, draw, placed, task_named

_LAB = Path(__file__).parent.parent / "zoos" / "lab"
"""The lab's zoo, with its items beside the weights: `ceval.jsonl` and the like, test items of seed 42."""
_LAB_MARK = " (lab)"
"""Ends the label of a data set whose items are the lab's."""
_LAB_NUM = 100
"""How many of the lab's items are asked where nothing else is said: the first of them."""


_EXAM_HEADER = "以下是中国关于{subject}考试的单项选择题，请选出其中的正确答案。"
"""C-Eval's, above choice questions of a subject with a Chinese name."""
_CHINESE = re.compile(r"[\u3400-\u9fff]")


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
    few_shot: int = 0,
) -> Dataset:
    """Load a data set and choose questions from it.

    Args:
        name: a task (of those that `flowinfer datasets` lists) or the path of a jsonl file.
        data: local files or folders by task name; a task without one is loaded from the hub. `NAME:dev` names what its
            examples are taken from.
        limit: the first N questions.
        sample: N random ones, by seed: the same for the same ids, and a larger sample holds the smaller.
        ids: exactly these, in this order.
        use_items: without local data, take the lab's 1,000 items of that form instead of the hub's; the first 100 of
            them where nothing else is said.
        answer_index: what answers count from that are indices of options; told from the whole file if not given.
        columns: further fields that every question needs, each with the model whose prompt shows it.
        few_shot: how many worked examples stand above each question; drawn by the seed, or the first of its subject.
    Raises:
        UsageError: the name is unknown, more than one of limit, sample and ids is given, or there are no examples.
        DataError: the data cannot be read, ids repeat, an asked id is not there, columns are missing, or no judge could
            read a reference.
    """
    _refuse_bad_choice(limit=limit, sample=sample, ids=ids, few_shot=few_shot)
    if use_items and name not in (data or {}) and name in registry.tasks() and _lab_file(name).is_file():
        loaded = _lab_items(name, columns or {})
        limit = _LAB_NUM if limit is None and sample is None and ids is None else limit
    else:
        loaded = _load(name, data or {}, columns or {})
    _refuse_repeated_ids(loaded)
    settled = settle([item for item in loaded.items if item.unasked is None], answer_index)
    if not settled.items:
        raise DataError(f"{loaded.source}: no questions", help=_unasked_note(loaded.items))
    by_id = {item.question.id: item for item in settled.items}
    known = [item.question for item in settled.items]
    questions = tuple(_choose(loaded.source, known, limit=limit, sample=sample, seed=seed, ids=ids))
    check([by_id[question.id] for question in questions])
    notes = [_unasked_note(loaded.items), settled.note, judges_note(settled.items)]
    label = loaded.label
    if few_shot:
        pool = fewshot.pool_of(name, data or {}, label, is_lab=label.endswith(_LAB_MARK))
        pool = replace(pool, items=settle(pool.items, answer_index).items)
        in_column = fewshot.COLUMN in (columns or {})
        questions, note = fewshot.with_examples(
            questions, pool, few_shot, seed=seed, in_column=in_column, header=_intro
        )
        notes.append(note)
        label = f"{label.removesuffix(_LAB_MARK)} {few_shot}-shot" + _LAB_MARK * label.endswith(_LAB_MARK)
    refuse_missing(columns or {}, questions, loaded.source)
    told = "; ".join(filter(None, notes)) or None
    return Dataset(name, label, questions, fingerprint(questions), loaded.source, told)


def load_for(flows: Sequence[Flow], name: str, **chosen: Any) -> Dataset:  # the arguments of `load_questions`
    """Load what some flows of one zoo ask: with the columns that their prompts show; of the lab's zoo its own items."""
    columns = [plans.columns(flow) for flow in flows]
    needed = {column: model for each in columns for column, model in each.items()}
    if chosen.get("few_shot") and len({fewshot.COLUMN in each for each in columns}) > 1:
        raise UsageError(
            "some flows show {examples} in a prompt, others do not", help="put it into all of them or none"
        )
    loaded = load_questions(name, use_items=flows[0].zoo in ("toy", "lab"), columns=needed, **chosen)
    for flow in flows:
        refuse_open(flow, loaded.questions, loaded.source)
    return loaded


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
                help=f"the prompt of '{model}' has {{{name}}}: "
                + ("--few-shot N fills it" if name == fewshot.COLUMN else "add it to every item of a .jsonl file"),
            )


def refuse_open(flow: Flow, questions: Sequence[Question], source: str) -> None:
    """Refuse questions none of which has choices, where a flow chooses among them.

    Raises:
        DataError: which stage does.
    """
    step = plans.chooser(plans.compile(flow).steps)
    if step is not None and not any(question.choices for question in questions):
        raise DataError(
            f"{source}: no question has choices, and '{step.title}' chooses among them (by=likelihood)",
            help="leave by=likelihood out, or ask a data set of choice questions",
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
    """Return what fills `{question}` in a prompt: header and examples, question, and a line per choice."""
    intro = _intro(question)
    return f"{intro}\n{question.whole}" if intro else question.whole


def _intro(question: Question) -> str:
    """Return what stands above a question."""
    if question.intro is not None:
        return question.intro
    has_header = question.kind == "ceval" and question.choices and _CHINESE.search(question.subject or "")
    return _EXAM_HEADER.format(subject=question.subject) if has_header else ""


def fingerprint(questions: Sequence[Question]) -> str:
    """Return the sha256 of the questions' canonical JSON, in their order."""
    digest = hashlib.sha256()
    for question in questions:
        later = {name for name in ("columns", "intro") if not getattr(question, name)}  # fields of later versions
        said = question.model_dump(exclude=later)
        line = json.dumps(said, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        digest.update(line.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()


@dataclass(frozen=True)
class _Loaded:
    label: str
    items: tuple[Item, ...]
    source: str


def _lab_file(name: str) -> Path:
    return _LAB / f"{name}.jsonl"


def _lab_items(name: str, columns: Mapping[str, str]) -> _Loaded:
    items = tuple(generic.read(_lab_file(name), columns=columns))
    return _Loaded(f"{name}{_LAB_MARK}", items, "the lab's test items, seed 42")


def _load(name: str, data: Mapping[str, Path], columns: Mapping[str, str]) -> _Loaded:
    task = task_named(name)
    if task is not None:
        path = data.get(name)
        if path is None:
            return _Loaded(name, placed(task.fetch(), task.hub), task.hub)
        if not path.exists():
            raise DataError(f"{path}: no such file or folder", help=f"give {task.local_forms}")
        return _Loaded(name, placed(task.read(path), str(path)), str(path))
    path = data.get(name, Path(name))
    if path.suffix == ".jsonl" or path.is_file():
        items = tuple(generic.read(path, columns=columns))
        if not items:
            raise DataError(f"{path}: no questions", help='write {"question": ..., "answer": ...}, one a line')
        return _Loaded(path.stem, items, str(path))
    known = registry.tasks()
    close = get_close_matches(name, known, n=1)
    cure = f"did you mean '{close[0]}'?" if close else f"use one of {', '.join(known)}, or a path to a .jsonl file"
    raise UsageError(f"unknown data set '{name}'", help=cure)


def _unasked_note(items: Sequence[Item]) -> str | None:
    """Return how many items are left out, and why the first one is."""
    left = [item for item in items if item.unasked is not None]
    return f"{len(left)} of {len(items)} items are left out: {left[0].place} {left[0].unasked}" if left else None


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
    if ids is not None:
        return _by_ids(source, questions, ids)
    if sample is not None:
        return sorted(questions, key=lambda question: draw(seed, question.id))[:sample]
    return questions[:limit]


def _refuse_bad_choice(*, limit: int | None, sample: int | None, ids: Sequence[str] | None, few_shot: int) -> None:
    if sum(option is not None for option in (limit, sample, ids)) > 1:
        raise UsageError("limit, sample and ids exclude each other", help="give one of them")
    for option, value in (("limit", limit), ("sample", sample)):
        if value is not None and value < 1:
            raise UsageError(f"{option} must be at least 1, not {value}")
    if few_shot < 0:
        raise UsageError(f"few_shot must be at least 0, not {few_shot}")


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
