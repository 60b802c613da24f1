"""Worked examples above a question: where they come from, which, and how they are written."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flowinfer.errors import DataError, UsageError
from flowinfer.results import Question
from flowinfer.tasks import generic
from flowinfer.tasks.sources import Item, draw, placed, task_named
from flowinfer.tasks.splits import EXAMPLES

COLUMN = "examples"
"""A prompt that shows this field has the examples there; else they stand above the question in {question}."""

_CHINESE = re.compile(r"[\u3400-\u9fff]")
_CALCULATION = re.compile(r"<<[^<>]*>>")
"""Marks for a calculator in GSM8K's answers, which no reader sees."""


@dataclass(frozen=True)
class Pool:
    """What examples are taken from."""

    items: tuple[Item, ...]
    source: str
    """For people."""
    by_subject: bool = False
    """Whether a question's examples are the first of its own subject; else they are the same for all."""


def pool_of(name: str, data: Mapping[str, Path], label: str, *, is_lab: bool) -> Pool:
    """Load what a data set's examples are taken from.

    Args:
        name: of the data set, as asked for.
        data: local files by name; `NAME:dev` is that of its examples.
        label: of the data set, for messages.
        is_lab: its questions are the lab's, which have none.
    Raises:
        UsageError: it has none.
        DataError: they cannot be read.
    """
    task, given = task_named(name), data.get(f"{name}{EXAMPLES}")
    if task is None:
        path = data.get(name, Path(name))
        beside = given or path.with_name(f"{path.stem}.dev.jsonl")
        if not beside.is_file():
            cure = f"write them into '{beside}', in the same form"
            raise UsageError(f"'{path}' has no examples for --few-shot", help=cure)
        return _pool(generic.read(beside), str(beside))
    if given is not None and not given.exists():
        raise DataError(f"{given}: no such file or folder", help=f"give {task.local_forms}")
    if given is not None and (task.examples is None or not given.is_dir()):
        return _pool(task.read(given), str(given), by_subject=task.by_subject)
    if task.examples is None or (given is None and is_lab):
        cure = f"--data {name}{EXAMPLES}=PATH names a file of them, in its form"
        raise UsageError(f"'{label}' has no split to take examples for --few-shot from", help=cure)
    named = f"the split '{task.about.examples}'" if task.about else "its examples"
    found = task.examples(given or data.get(name))
    return _pool(found, named if given is None else str(given), by_subject=task.by_subject)


def _pool(found: Sequence[Question | Item], source: str, *, by_subject: bool = False) -> Pool:
    return Pool(tuple(item for item in placed(found, source) if item.unasked is None), source, by_subject)


def with_examples(
    questions: Sequence[Question],
    pool: Pool,
    number: int,
    *,
    seed: int,
    in_column: bool,
    header: Callable[[Question], str],
) -> tuple[tuple[Question, ...], str]:
    """Return questions with so many examples each, and what was done, in words.

    Args:
        pool: items that are asked themselves are passed over.
        seed: what examples for all are drawn by.
        in_column: put them into the column `COLUMN`, not above the question.
        header: what stands above a question without examples.
    Raises:
        DataError: there are fewer.
    """
    asked = {question.whole for question in questions}
    left = [item for item in pool.items if item.question.whole not in asked]
    is_chinese = 2 * sum(bool(_CHINESE.search(item.question.question)) for item in left) > len(left)
    if not pool.by_subject:
        left.sort(key=lambda item: draw(seed, item.question.id))
    texts: dict[str | None, str] = {}
    found = []
    for question in questions:
        subject = question.subject if pool.by_subject else None
        if subject not in texts:
            chosen = [item for item in left if not pool.by_subject or item.question.subject == subject][:number]
            if len(chosen) < number:
                of = f" of '{subject}'" if pool.by_subject else ""
                raise DataError(
                    f"{pool.source} has {len(chosen)} examples{of} that are not asked themselves, not {number}",
                    help=f"--few-shot {len(chosen)}" if chosen else "leave out --few-shot",
                )
            texts[subject] = "\n\n".join(_written(item, is_chinese=is_chinese) for item in chosen)
        found.append(_with(question, texts[subject], header(question), in_column=in_column))
    which = "the first of its subject" if pool.by_subject else f"the same for all, drawn with seed {seed}"
    amount = "1 example" if number == 1 else f"{number} examples"
    return tuple(found), f"above each question: {amount} of {pool.source}, {which}"


def _with(question: Question, text: str, header: str, *, in_column: bool) -> Question:
    if in_column:
        return question.model_copy(update={"columns": {**question.columns, COLUMN: text}})
    return question.model_copy(update={"intro": f"{header}\n{text}\n" if header else f"{text}\n"})


def _written(item: Item, *, is_chinese: bool) -> str:
    """Return an example as a text: question, options, and the worked answer or what is right."""
    answer = _CALCULATION.sub("", item.worked) or item.question.reference
    return f"{item.question.whole}\n{'答案：' if is_chinese else 'Answer: '}{answer}"
