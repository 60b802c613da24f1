"""Answers that run on into a question of their own, and the stop texts that would end them there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from flowinfer.results import Record
from flowinfer.runs.summary import RunOn
from flowinfer.tasks.answers.turns import NextQuestion, next_question

_ONE_IN = 50
"""As many answers must run on before anything is said of it."""
_MOST_STOPS = 4
_SHOWN = 3


def goes_on(record: Record) -> NextQuestion | None:
    """Return where a judged answer goes on with another question, by the rule by which the judge cuts it."""
    return next_question(record.trace.answer, record.question.question) if record.score is not None else None


def run_on(records: Sequence[Record], going_on: Mapping[str, NextQuestion], step: str) -> RunOn | None:
    """Return which answers run on; None where hardly any does.

    A stop text is proposed only where it cuts no answer of these before the judge would.

    Args:
        records: what was answered and judged.
        going_on: by question, what `goes_on` says, where it says anything.
        step: what writes the answers, in words.
    """
    answered = [record for record in records if record.score is not None]
    found = {
        record.question.id: (record.trace.answer, begins)
        for record in answered
        if (begins := going_on.get(record.question.id)) is not None
    }
    if not found or len(found) < len(answered) // _ONE_IN:
        return None
    ends = {record.question.id: len(record.trace.answer) for record in answered}
    needless = sum(len(text) - begins.at for text, begins in found.values())
    ends |= {name: begins.at for name, (_, begins) in found.items()}
    headings = Counter(begins.heading for _, begins in found.values() if begins.heading)
    return RunOn(
        num=len(found),
        of=len(answered),
        first=tuple(found)[:_SHOWN],
        needless=needless / max(1, sum(len(record.trace.answer) for record in answered)),
        stops=tuple(
            heading
            for heading, _ in headings.most_common(_MOST_STOPS)
            if all(record.trace.answer.find(heading, 0, ends[record.question.id]) < 0 for record in answered)
        ),
        step=step,
    )
