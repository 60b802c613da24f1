"""Fitting a choice's threshold to a run in which every member was tried: how sure a member has to be.

Pure: what was written is read again, nothing runs. Chosen is on all questions; what to expect on others is estimated by
choosing on four fifths of them and counting on the fifth that was left out, five times.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from flowinfer.errors import DataError
from flowinfer.planning.bounds import longest
from flowinfer.planning.plan import Plan, Selection
from flowinfer.results import Record, StepResult
from flowinfer.runs.judging import majority, score
from flowinfer.runs.stats import Interval, mcnemar_exact, wilson
from flowinfer.spec import AUTO

_FOLDS = 5
_LEAST = 20
"""Questions below which nothing is fitted."""
_LEVEL = 0.05
"""Above it, that right answers have a higher signal than wrong ones may be chance."""


@dataclass(frozen=True)
class Tried:
    """One question: what each candidate's signal was, whether it was right, and the cost up to it."""

    id: str
    values: tuple[float, ...]
    correct: tuple[bool, ...]
    tokens: tuple[int, ...]
    """Written by all steps that run if this candidate is taken."""
    seconds: tuple[float, ...]
    """Along the longest chain of those steps."""

    def taken(self, at: float) -> int:
        """Return the candidate that a threshold takes."""
        return next((k for k, value in enumerate(self.values[:-1]) if value >= at), len(self.values) - 1)


@dataclass(frozen=True)
class Outcome:
    """What a threshold gives on some questions."""

    at: float
    accuracy: float
    tokens: float
    """Mean of a question."""
    seconds: float


@dataclass(frozen=True)
class Limits:
    """What a threshold must keep to."""

    max_tokens: float = math.inf
    max_seconds: float = math.inf
    min_accuracy: float = 0.0

    def admit(self, outcome: Outcome) -> bool:
        """Return whether an outcome keeps to them."""
        is_cheap = outcome.tokens <= self.max_tokens and outcome.seconds <= self.max_seconds
        return is_cheap and outcome.accuracy >= self.min_accuracy


@dataclass(frozen=True)
class Fitted:
    """A threshold and what it is worth."""

    chosen: Outcome
    """On the questions that it was chosen on."""
    left_out: float
    """Accuracy on questions that had no part in choosing."""
    interval: Interval
    """Of that accuracy."""
    first: Outcome
    """Always the first candidate."""
    last: Outcome
    """Always the last."""
    against_last: float
    """p of McNemar's test: left out, against always the last."""
    auc: float
    """How often a right answer of the first candidate has a higher signal than a wrong one."""
    n: int


def fit(questions: Sequence[Tried], limits: Limits) -> Fitted:
    """Choose a threshold: the most accurate within the limits, or the cheapest where an accuracy is asked for.

    Raises:
        DataError: too few questions, a signal that says nothing, or no threshold within the limits.
    """
    if len(questions) < _LEAST:
        raise DataError(f"{len(questions)} judged questions are too few to fit a threshold", help=f"{_LEAST} at least")
    auc, p = separation([(one.values[0], one.correct[0]) for one in questions])
    if p > _LEVEL:
        told = f"the signal says nothing about the first member's answers: AUC {auc:.2f}, p {p:.2g}"
        raise DataError(told, help="use another signal, or more questions")
    chosen = _choose(questions, limits)
    if chosen is None:
        raise DataError("no threshold keeps to these limits", help="loosen them")
    folds = [_choose([one for one in questions if _fold(one) != k], limits) for k in range(_FOLDS)]
    fallback = chosen.at
    right = {one.id: one.correct[one.taken(_at(folds[_fold(one)], fallback))] for one in questions}
    last_only = sum(one.correct[-1] and not right[one.id] for one in questions)
    own_only = sum(right[one.id] and not one.correct[-1] for one in questions)
    return Fitted(
        chosen=chosen,
        left_out=fmean(right.values()),
        interval=wilson(sum(right.values()), len(questions)),
        first=_outcome(questions, 0.0, lambda one: 0),
        last=_outcome(questions, AUTO, lambda one: len(one.values) - 1),
        against_last=mcnemar_exact(own_only, last_only),
        auc=auc,
        n=len(questions),
    )


def _at(found: Outcome | None, otherwise: float) -> float:
    return otherwise if found is None else found.at


def _choose(questions: Sequence[Tried], limits: Limits) -> Outcome | None:
    seen = sorted({value for one in questions for value in one.values[:-1]})
    between = [_between(low, high) for low, high in pairwise(seen)]
    outcomes = [_at_threshold(questions, at) for at in (0.0, *between, 1.0)]
    admitted = [one for one in outcomes if limits.admit(one)]
    if limits.min_accuracy:
        return min(admitted, key=lambda one: (one.tokens, -one.accuracy), default=None)
    return max(admitted, key=lambda one: (one.accuracy, -one.tokens), default=None)


def _between(low: float, high: float) -> float:
    """Return a number of few digits above one number and not above another, about in their middle."""
    rounded = (float(f"{(low + high) / 2:.{digits}g}") for digits in range(6, 18))
    return next((one for one in rounded if low < one <= high), high)


def _at_threshold(questions: Sequence[Tried], at: float) -> Outcome:
    return _outcome(questions, at, lambda one: one.taken(at))


def _outcome(questions: Sequence[Tried], at: float, taken: Callable[[Tried], int]) -> Outcome:
    choices = [(one, taken(one)) for one in questions]
    return Outcome(
        at=at,
        accuracy=fmean(one.correct[k] for one, k in choices),
        tokens=fmean(one.tokens[k] for one, k in choices),
        seconds=fmean(one.seconds[k] for one, k in choices),
    )


def _fold(one: Tried) -> int:
    return int(hashlib.sha256(one.id.encode(errors="surrogatepass")).hexdigest(), 16) % _FOLDS


def separation(pairs: Sequence[tuple[float, bool]]) -> tuple[float, float]:
    """Return the AUC of a signal for being right, and the one-sided p of the Mann-Whitney test (normal, with ties).

    Where all are right, or all wrong, nothing can be said: (0.5, 1).
    """
    right = [value for value, is_right in pairs if is_right]
    wrong = [value for value, is_right in pairs if not is_right]
    if not right or not wrong:
        return 0.5, 1.0
    wins = sum((one > other) + (one == other) / 2 for one in right for other in wrong)
    values = [value for value, _ in pairs]
    n, product = len(values), len(right) * len(wrong)
    ties = sum(count**3 - count for count in (values.count(value) for value in set(values)))
    variance = product / 12 * (n + 1 - ties / (n * (n - 1)))
    if variance <= 0:
        return 0.5, 1.0
    z = (wins - product / 2) / math.sqrt(variance)
    return wins / product, math.erfc(z / math.sqrt(2)) / 2


def tried(plan: Plan, selection: Selection, record: Record) -> Tried | None:
    """Return what a record says of each candidate; None where it has no verdict, or not all were tried."""
    ended = {step.step: step for step in record.trace.steps}
    taken = next((one for one in record.trace.selections if one.selection == selection.id), None)
    if taken is None or record.score is None or len(taken.values) < len(selection.candidates):
        return None
    right = []
    for candidate in selection.candidates:
        answers = [answer for text in candidate for answer in _texts(plan, record, ended, text)]
        ballot = majority(record.question, [one.passed_on for one in answers])
        if len(answers) > 1 and plan.answer.weights:
            ballot = ballot.weighed([plan.answer.weights.get(one.step, 1.0) for one in answers])
        winner = answers[ballot.winner]
        said = {"answer": winner.passed_on, "finish_reason": winner.finish_reason}
        verdict = score(record.question, record.trace.model_copy(update=said))
        right.append(bool(verdict and verdict.correct))
    costs = [_cost(plan, selection, ended, index) for index in range(len(selection.candidates))]
    return Tried(
        id=record.question.id,
        values=tuple(value or 0.0 for value in taken.values),
        correct=tuple(right),
        tokens=tuple(sum(step.tokens for step in steps.values()) for steps in costs),
        seconds=tuple(longest(plan, {name: step.seconds for name, step in steps.items()}) for steps in costs),
    )


def _texts(plan: Plan, record: Record, ended: Mapping[str, StepResult], text: str) -> list[StepResult]:
    """Return the results whose texts a step or a selection gave."""
    inner = next((one for one in plan.selections if one.id == text), None)
    if inner is None:
        return [ended[text]] if text in ended else []
    taken = next(one.taken for one in record.trace.selections if one.selection == text)
    shown = inner.candidates if inner.quorum else inner.candidates[0 if inner.gathers else taken : taken + 1]
    return [result for candidate in shown for name in candidate for result in _texts(plan, record, ended, name)]


def _cost(plan: Plan, selection: Selection, ended: Mapping[str, StepResult], index: int) -> dict[str, StepResult]:
    """Return the steps that run if a candidate is taken."""
    return {
        step.id: ended[step.id]
        for step in plan.steps
        if step.id in ended and not any(one.selection == selection.id and one.tried > index for one in step.when)
    }
