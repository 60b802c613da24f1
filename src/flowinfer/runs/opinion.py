"""A second opinion: what a model says of answers that were found by weak rules. An audit, and never the score."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from flowinfer.errors import UsageError
from flowinfer.language.prompts import render
from flowinfer.planning.plan import compile
from flowinfer.results import Question, Record, Score
from flowinfer.runs.cache import DiskStepCache, default_folder, step_key
from flowinfer.runs.experiment import Request, evaluate, rescore
from flowinfer.spec import Flow

if TYPE_CHECKING:
    from flowinfer.engine.base import Observer

MOST_TOKENS = 256
"""Of a reply, where nothing else is set."""
_MOST_CHARACTERS = 4000
"""Of an answer, of which the end is shown: what its writer settled on stands there."""
_ASK = (
    "Below are a question, its right answer, and what somebody answered. Is the answer that they settled on the right"
    " one: the same option, value or meaning? What they say in passing does not count, only what they end with. Do not"
    " solve the question yourself.\n\nQuestion:\n{question}\n\nRight answer: {reference}\n\n"
    "What they answered:\n{answer}\n\nReply with one word: yes or no."
)
_YES = re.compile(r"\b(?:yes|right|correct)\b|(?<!不)(?:是|对|正确)", re.I)
_NO = re.compile(r"\b(?:no|not|wrong|incorrect)\b|不是|不对|不正确|错|否", re.I)

Says = Literal["right", "wrong", "neither"]


@dataclass(frozen=True)
class Doubt:
    """An answer that a weak rule found, or found nothing in, with its verdict by the present rules."""

    record: Record
    score: Score

    def question(self) -> Question:
        """Return what is asked about it."""
        answer = self.record.trace.answer
        shown = answer if len(answer) <= _MOST_CHARACTERS else f"... {answer[-_MOST_CHARACTERS:]}"
        values = {"question": self.record.question.whole, "reference": self.record.question.gold, "answer": shown}
        return Question(id=self.record.question.id, question=render(_ASK, values), reference="")


@dataclass(frozen=True)
class Opinion:
    """What the model says of an answer."""

    doubt: Doubt
    says: Says
    reply: str

    @property
    def is_other(self) -> bool:
        """Whether it says the contrary of the verdict."""
        return self.says == ("wrong" if self.doubt.score.correct else "right")


def doubts(path: Path) -> list[Doubt]:
    """Return a run's answers whose verdict no marked answer bears, judged by the present rules."""
    from flowinfer.tasks.answers import MARKED

    found = [Doubt(record, score) for record, score in rescore(path) if score is not None]
    return [
        doubt
        for doubt in found
        if doubt.record.trace.answer.strip()
        and doubt.score.status != "truncated"
        and not (doubt.score.status == "ok" and doubt.score.rule.startswith(MARKED))
    ]


def flow_of(model: str, zoo: str, options: Mapping[str, str] | None = None) -> Flow:
    """Return the flow that asks one model of a zoo.

    Raises:
        UsageError: that is no model's name.
        FlowError: the zoo has no such model.
    """
    from flowinfer.language.check import check

    if not re.fullmatch(r"[^\W\d][\w.-]*", model):
        raise UsageError(f"--second-opinion '{model}': expected a model's name", help="`flowinfer models` lists them")
    given = {"max_tokens": str(MOST_TOKENS), **(options or {})}
    return check(f'{model}[prompt="{{question}}"]', file="<--second-opinion>", zoo=zoo, overrides=given)


def num_cached(flow: Flow, asked: Sequence[Doubt]) -> int:
    """Return of how many answers the model's opinion is known from an earlier time."""
    from flowinfer.engine.work import render_prompts
    from flowinfer.machine import this_machine
    from flowinfer.planning.placement import ready
    from flowinfer.zoos.toy import provide

    provide(flow.models.values())
    plan, cache = ready(flow, this_machine()), DiskStepCache(default_folder(), "")
    (step,) = plan.steps
    questions = [doubt.question() for doubt in asked]
    prompts = [render_prompts(plan, step, question, question.question, {}) for question in questions]
    keys = [step_key(plan, step, shown, one.id) for shown, one in zip(prompts, questions, strict=True)]
    return sum(cache.get(key) is not None for key in keys)


def ask(
    flow: Flow,
    asked: Sequence[Doubt],
    *,
    observer: Observer | None = None,
    on_record: Callable[[Record], None] | None = None,
) -> list[Opinion]:
    """Ask a model about answers; replies are kept in the cache of steps, so that who is interrupted asks no more twice.

    Raises:
        RunError: the model cannot be loaded, or its first questions fail, all of them.
    """
    from flowinfer.tasks.base import Dataset, fingerprint

    questions = tuple(doubt.question() for doubt in asked)
    dataset = Dataset("second opinion", "second opinion", questions, fingerprint(questions), "")
    replies: dict[str, str] = {}

    def heard(record: Record) -> None:
        replies[record.question.id] = record.trace.answer
        if on_record:
            on_record(record)

    evaluate(flow, dataset, Request(out=None), observer=observer, on_record=heard)
    found = [(doubt, replies.get(doubt.record.question.id, "")) for doubt in asked]
    return [Opinion(doubt, read(reply), reply) for doubt, reply in found]


def read(reply: str) -> Says:
    """Return what a reply says: its first word where that is yes or no, else the only one of both that it has."""
    first = re.match(r"\W*(\w+)", reply)
    for text in (first[1] if first else "", reply):
        is_yes, is_no = bool(_YES.search(text)), bool(_NO.search(text))
        if is_yes != is_no:
            return "right" if is_yes else "wrong"
    return "neither"


def by_rule(asked: Sequence[Doubt]) -> Counter[str]:
    """Count answers by the rule of their verdict, most frequent first."""
    return Counter(doubt.score.rule for doubt in asked)


def most_tokens(flow: Flow) -> int:
    """Return the most tokens of a reply."""
    (step,) = compile(flow).steps
    return step.decoding.max_tokens
