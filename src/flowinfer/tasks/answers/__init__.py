"""Finding the answer in what a model wrote, and comparing it with the reference.

`judge` never raises and never guesses: where several answers stand side by side it says `ambiguous`, where none does
`no_answer`, and both count as wrong and are counted apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from flowinfer.results import Ballot, Score
from flowinfer.tasks.answers.anchors import Anchor, anchors
from flowinfer.tasks.answers.boxes import boxed
from flowinfer.tasks.answers.letters import find_choice
from flowinfer.tasks.answers.maths import judge_maths
from flowinfer.tasks.answers.numbers import equal_numbers, gold_number
from flowinfer.tasks.answers.quantities import find_number
from flowinfer.tasks.answers.text import Found, Text, prepare
from flowinfer.tasks.answers.turns import own_turn

__all__ = ["MARKED", "Found", "Passed", "Why", "explain", "extract", "judge", "vote"]

_LETTERS = ("A", "B", "C", "D")
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
    """
    text = prepare(output)
    if text.status is not None:
        return Score(correct=False, extracted=None, status=text.status, rule="thinking", span=None)
    own = own_turn(text, question or "")
    score = _scored(task, own, reference, question or "", choices)
    is_cut = finish_reason in ("length", "context") and own.places[-1:] == text.places[-1:]
    if is_cut and score.status == "ok" and not score.rule.startswith(MARKED):
        return Score(correct=False, extracted=None, status="truncated", rule="finish_reason", span=None)
    return score


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


def _scored(task: str, text: Text, reference: str, question: str, choices: Mapping[str, str] | None) -> Score:
    if task == "mathematics":
        return judge_maths(text, reference, question)
    found = _find(task, text, choices, question)
    if found.value is None:
        return Score(correct=False, extracted=None, status=found.status, rule=found.rule, span=found.span)
    return Score(
        correct=_is_right(task, found.value, reference, choices),
        extracted=found.value,
        status="ok",
        rule=found.rule,
        span=found.span,
    )


def extract(task: str, output: str, *, question: str | None = None, choices: Mapping[str, str] | None = None) -> Found:
    """Find the answer in an output without a reference, as majority votes need it."""
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


def _find(task: str, text: Text, choices: Mapping[str, str] | None, question: str) -> Found:
    if task == "ceval":
        return find_choice(text, choices or {letter: "" for letter in _LETTERS}, question)
    if task == "exact":
        return _find_exact(text, choices, question)
    return find_number(text, question)


def _find_exact(text: Text, choices: Mapping[str, str] | None, question: str) -> Found:
    if choices:
        return find_choice(text, choices, question)
    from flowinfer.tasks.answers.anchors import last_anchor

    anchored = last_anchor(text)
    part = anchored or text
    content = part.string.strip().strip("*`\"'").rstrip("。.").strip()
    return Found(content or None, "ok" if content else "no_answer", "anchor" if anchored else "whole", part.span())


def _is_right(task: str, value: str, reference: str, choices: Mapping[str, str] | None) -> bool:
    if task == "ceval" or choices:
        return value.upper() == prepare(reference).string.strip().strip("()[]。.").upper()
    if task == "exact":
        return _folded(value) == _folded(prepare(reference).string)
    gold = gold_number(reference)
    return gold is not None and equal_numbers(value, gold)


def _folded(text: str) -> str:
    return " ".join(text.lower().strip().rstrip("。.").split())
