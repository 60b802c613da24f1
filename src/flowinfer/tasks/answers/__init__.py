"""Finding the answer in what a model wrote, and comparing it with the reference.

`judge` never raises and never guesses: where several answers stand side by side it says `ambiguous`, where none does
`no_answer`, and both count as wrong and are counted apart.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from flowinfer.errors import UsageError
from flowinfer.results import Ballot, Score
from flowinfer.tasks.answers.anchors import Anchor, anchored, anchors, boxed
from flowinfer.tasks.answers.kinds import is_same, read_gold
from flowinfer.tasks.answers.letters import find_choice
from flowinfer.tasks.answers.maths import find_maths
from flowinfer.tasks.answers.numbers import equal_numbers, gold_number
from flowinfer.tasks.answers.quantities import find_number
from flowinfer.tasks.answers.text import Found, Text, prepare
from flowinfer.tasks.answers.turns import own_turn

__all__ = ["MARKED", "TASKS", "Found", "Passed", "Why", "explain", "extract", "judge", "vote"]

TASKS = ("gsm8k", "ceval", "mathematics", "exact")
"""A number, a letter, a value of the reference's kind, these words and no others."""
MARKED = ("boxed", "anchor", "only_letter", "whole")
"""Rules that read an answer which its writer has marked as one."""


def judge(
    task: str,
    output: str,
    reference: str,
    *,
    question: str | None = None,
    choices: Mapping[str, str] | None = None,
    finish_reason: str | None = None,
) -> Score:
    """Score one output.

    Args:
        task: gsm8k (a number), ceval (a letter), mathematics (by the reference's kind) or exact.
        output: what the model wrote.
        reference: the gold answer, in the data set's own form.
        question: the question, where its wording decides: whether a list is ordered, which option or unit is asked for.
        choices: letter -> option, for ceval; A to D where not given.
        finish_reason: why the model stopped; where it had no tokens left, only an answer that it had marked counts.
    Returns:
        verdict, what was found, by which rule, and where.
    Raises:
        UsageError: an argument is of no kind that can be judged.
    """
    _check(task, choices, output, reference, question or "")
    text = prepare(output)
    own = text if text.status else own_turn(text, question or "")
    if text.status is not None:
        found, is_right = Found(None, text.status, "thinking", None), False
    elif task == "mathematics":
        gold = read_gold(reference, question or "")
        found = find_maths(own, gold)
        is_right = found.value is not None and is_same(found.value, gold)
    else:
        found = _find(task, own, choices, question or "")
        is_right = found.value is not None and _is_right(task, found.value, reference, choices)
    is_cut = finish_reason in ("length", "context") and own.places[-1:] == text.places[-1:]
    if is_cut and found.status == "ok" and not found.rule.startswith(MARKED):
        found, is_right = Found(None, "truncated", "finish_reason", None), False
    return Score(correct=is_right, extracted=found.value, status=found.status, rule=found.rule, span=found.span)


class Passed(NamedTuple):
    """A stretch that looked like an answer and was not taken for one."""

    rule: str
    """boxed, anchor, run_on (another question that the model asked itself) or thinking."""
    text: str
    span: tuple[int, int]
    """Where in the output it stands: start, end in code points."""
    reason: str
    """Why it was passed over, in words."""


class Why(NamedTuple):
    """A verdict and how it came about."""

    score: Score
    text: str | None
    """What the output says at the score's span."""
    passed_over: tuple[Passed, ...]
    """In the order of the output."""


def explain(
    task: str,
    output: str,
    reference: str,
    *,
    question: str | None = None,
    choices: Mapping[str, str] | None = None,
    finish_reason: str | None = None,
) -> Why:
    """Score one output as `judge` does, and tell what was passed over on the way."""
    score = judge(task, output, reference, question=question, choices=choices, finish_reason=finish_reason)
    text = prepare(output)
    own = own_turn(text, question or "")
    found = [("boxed", Anchor(box)) for box in boxed(own)]
    found += [("anchor", anchor) for anchor in anchors(own, question or "")]
    passed = []
    for rule, anchor in found:
        span = anchor.tail.span()
        if span is not None and not (score.span and span[0] <= score.span[0] and score.span[1] <= span[1]):
            is_before = score.span is not None and span[0] < score.span[0]
            reason = anchor.passed or ("another follows" if is_before else "not of the kind that is asked for")
            passed.append(Passed(rule, output[slice(*span)].strip(), span, reason))
    begin, end = (text.places[0], text.places[-1]) if text.places else (len(output), len(output))
    if output[:begin].strip():
        passed.append(Passed("thinking", output[:begin].strip(), (0, begin), "thinking, or too far from the end"))
    if own.places and own.places[-1] < end:
        span = (own.places[-1] + 1, end + 1)
        passed.append(Passed("run_on", output[slice(*span)].strip(), span, "another question"))
    told = output[slice(*score.span)] if score.span else None
    return Why(score, told, tuple(sorted(passed, key=lambda one: one.span)))


def extract(task: str, output: str, *, question: str | None = None, choices: Mapping[str, str] | None = None) -> Found:
    """Find the answer in an output without a reference, as majority votes need it."""
    _check(task, choices, output, question or "")
    text = prepare(output)
    if text.status is not None:
        return Found(None, text.status, "thinking", None)
    return _find(task, own_turn(text, question or ""), choices, question or "")


def vote(
    task: str, outputs: Sequence[str], *, question: str | None = None, choices: Mapping[str, str] | None = None
) -> Ballot:
    """Choose the output whose answer most outputs share; the first seen wins a tie."""
    answers = tuple(extract(task, output, question=question, choices=choices).value for output in outputs)
    counts = Counter(answer for answer in answers if answer is not None)
    won = max(counts, key=lambda answer: counts[answer], default=None)  # of equals the first seen
    return Ballot(answers=answers, winner=answers.index(won))


def _check(task: str, choices: Mapping[str, str] | None, *texts: object) -> None:
    if task not in TASKS:
        raise UsageError(f"unknown task '{task}'", help=f"use one of: {', '.join(TASKS)}")
    for text in texts:
        if not isinstance(text, str):
            raise UsageError(f"{text!r:.60} is no text", help="give output, reference and question as texts")
    is_lettered = isinstance(choices, Mapping) and all(re.fullmatch("[A-Z]", str(letter)) for letter in choices)
    if choices is not None and not is_lettered:
        raise UsageError("choices do not go by capital letters", help='give {"A": "...", "B": "..."}')


def _find(task: str, text: Text, choices: Mapping[str, str] | None, question: str) -> Found:
    if task == "ceval" or (task == "exact" and choices):
        return find_choice(text, choices or dict.fromkeys("ABCD", ""), question)
    if task != "exact":
        return find_number(text, question)
    *_, part = (text, *anchored(text))
    content = part.string.strip().strip("*`\"'").rstrip("。.").strip()
    rule = "whole" if part is text else "anchor"
    return Found(content or None, "ok" if content else "no_answer", rule, part.span())


def _is_right(task: str, value: str, reference: str, choices: Mapping[str, str] | None) -> bool:
    if task == "ceval" or choices:
        return value.upper() == prepare(reference).string.strip().strip("()[]。.").upper()
    if task == "exact":
        return _folded(value) == _folded(prepare(reference).string)
    gold = gold_number(reference)
    return gold is not None and equal_numbers(value, gold)


def _folded(text: str) -> str:
    return " ".join(text.lower().strip().rstrip("。.").split())
