"""Learning routes: from runs of several flows on the same questions, and what the table is worth on others.

Pure: what was written is read again, nothing runs. The table holds all questions; what to expect of it is estimated by
asking five tables, each of four fifths of the questions, about the fifth that it has not seen, or about some of that
where questions are very many.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from flowinfer.engine.deciding import Pick
from flowinfer.engine.routing import NEIGHBOURS, RULE, Router, counted
from flowinfer.errors import DataError
from flowinfer.language.routes import DataSet, Example, HeldOut, Member, Outcome, Table
from flowinfer.results import Record
from flowinfer.runs.stats import mcnemar_exact, wilson
from flowinfer.runs.summary import cost_of
from flowinfer.runs.summing import calls_of
from flowinfer.spec import Routes

_FOLDS = 5
_MOST_ASKED = 5000
"""Questions that the five tables are asked about at most: each is compared with all others."""
_LEAST = 50
"""Common questions below which nothing is learned: a fold has to have ten."""
_LEVEL = 0.05


@dataclass(frozen=True)
class Ran:
    """One flow's runs."""

    flow: str
    """As written, without options."""
    identity: str
    records: dict[tuple[str, str], Record]
    """By data set and question id."""
    seconds: dict[tuple[str, str], float]
    """Of those that were timed alone."""


@dataclass(frozen=True)
class _Ran:
    """One flow's answer to a question."""

    record: Record
    seconds: float | None
    """None where it was not timed alone."""

    @property
    def is_right(self) -> bool:
        return self.record.score is not None and self.record.score.correct

    @property
    def tokens(self) -> int:
        return sum(step.tokens for step in self.record.trace.steps)


def learn(flows: Sequence[Ran]) -> Table:
    """Return a table of the questions that all flows have a verdict on.

    Raises:
        DataError: there are fewer than two flows, or too few such questions.
    """
    if len(flows) < 2:
        hint = "give runs of several flows on the same questions: flowinfer sweep makes them"
        raise DataError("routes choose among two flows at least, and these runs are of one", help=hint)
    keys = _common(flows)
    if len(keys) < _LEAST:
        hint = f"{_LEAST} at least, on which every flow has a verdict"
        raise DataError(f"{len(keys)} common questions are too few to learn routes from", help=hint)
    rows = [[_Ran(flow.records[key], flow.seconds.get(key)) for flow in flows] for key in keys]
    outcomes = [_outcome([row[member] for row in rows]) for member in range(len(flows))]
    members = tuple(
        Member(flow=flow.flow, identity=flow.identity, outcome=outcome)
        for flow, outcome in zip(flows, outcomes, strict=True)
    )
    examples = tuple(
        Example(question=row[0].record.question.whole, right="".join(str(int(one.is_right)) for one in row))
        for row in rows
    )
    picks = _left_out(examples, outcomes)
    return Table(
        rule=RULE,
        neighbours=NEIGHBOURS,
        members=members,
        learned_on=_data_sets(flows, keys),
        held_out=_held_out([rows[index] for index in picks], outcomes, tuple(picks.values())),
        examples=examples,
    )


def _common(flows: Sequence[Ran]) -> list[tuple[str, str]]:
    """Return the questions that all flows have a verdict on, in the order of the first flow's."""

    def asked(flow: Ran, key: tuple[str, str]) -> str | None:
        record = flow.records.get(key)
        return record.question.whole if record and record.score else None

    texts = {key: asked(flows[0], key) for key in flows[0].records}
    return [key for key, text in texts.items() if text is not None and all(asked(flow, key) == text for flow in flows)]


def _data_sets(flows: Sequence[Ran], keys: Sequence[tuple[str, str]]) -> tuple[DataSet, ...]:
    asked = {key for flow in flows for key in flow.records}
    names = dict.fromkeys(name for name, _ in keys)
    return tuple(
        DataSet(
            name=name,
            questions=sum(one == name for one, _ in keys),
            left_out=sum(one == name for one, _ in asked) - sum(one == name for one, _ in keys),
        )
        for name in names
    )


def _left_out(examples: Sequence[Example], outcomes: Sequence[Outcome]) -> dict[int, Pick]:
    """Return what is picked for each question, or some of very many, by a table that has not seen it: by its index."""
    found: dict[int, Pick] = {}
    by_chance = sorted(range(len(examples)), key=lambda index: _digest(examples[index].question))
    tried = set(by_chance[:_MOST_ASKED])
    counts = counted([example.question for example in examples])
    folds = [_fold(example.question) for example in examples]  # a question that stands twice is in one fold
    tokens = tuple(outcome.tokens for outcome in outcomes)
    for fold in range(_FOLDS):
        seen = [index for index, own in enumerate(folds) if own != fold]
        asked = [index for index, own in enumerate(folds) if own == fold and index in tried]
        if not seen:
            raise DataError("all questions are the same", help="routes are learned from different ones")
        if not asked:
            continue
        marks = tuple(examples[index].right for index in seen)
        router = Router(Routes("", "", NEIGHBOURS, (), tokens, (), marks), counts[seen])
        found |= dict(zip(asked, router.picks(counts[asked]), strict=True))
    return {index: found[index] for index in sorted(found)}


def _fold(text: str) -> int:
    return int(_digest(text), 16) % _FOLDS


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _held_out(rows: Sequence[Sequence[_Ran]], outcomes: Sequence[Outcome], picks: Sequence[Pick]) -> HeldOut:
    best = max(range(len(outcomes)), key=lambda member: (outcomes[member].accuracy, -outcomes[member].tokens, -member))
    routed = [row[pick.member] for row, pick in zip(rows, picks, strict=True)]
    gained = sum(one.is_right and not row[best].is_right for one, row in zip(routed, rows, strict=True))
    lost = sum(row[best].is_right and not one.is_right for one, row in zip(routed, rows, strict=True))
    p_value = mcnemar_exact(gained, lost)
    return HeldOut(
        folds=_FOLDS,
        route=_outcome(routed),
        picked=tuple(sum(pick.member == member for pick in picks) for member in range(len(outcomes))),
        best=best,
        last=len(outcomes) - 1,
        oracle=_outcome([min(row, key=lambda one: (not one.is_right, one.tokens)) for row in rows]),
        gained=gained,
        lost=lost,
        p_value=p_value,
        pays=gained > lost and p_value < _LEVEL,
    )


def _outcome(answers: Sequence[_Ran]) -> Outcome:
    right, n = sum(one.is_right for one in answers), len(answers)
    interval, cost = wilson(right, n), cost_of([one.record for one in answers])
    seconds = [one.seconds for one in answers if one.seconds is not None]
    return Outcome(
        accuracy=right / n,
        interval=(interval.low, interval.high),
        tokens=fmean(one.tokens for one in answers),
        calls=fmean(calls_of(one.record.trace) for one in answers),
        seconds=fmean(seconds) if len(seconds) == n else None,
        cost=None if cost is None else cost / n,
    )
