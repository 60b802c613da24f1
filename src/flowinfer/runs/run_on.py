"""Answers that run on into a question of their own, and the stop texts that would end them there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

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


def run_on(answers: Mapping[str, str], going_on: Mapping[str, NextQuestion], step: str) -> RunOn | None:
    """Return which answers run on; None where hardly any does.

    A stop text is proposed only where it cuts no answer of these before the judge would.

    Args:
        answers: by question, the texts that were judged.
        going_on: by question, what `goes_on` says, where it says anything.
        step: what writes the answers, in words.
    """
    found = {name: begins for name, begins in going_on.items() if name in answers}
    if not found or len(found) < len(answers) // _ONE_IN:
        return None
    needless = sum(len(answers[name]) - begins.at for name, begins in found.items())
    headings = Counter(begins.heading for begins in found.values() if begins.heading)

    def cuts(heading: str, name: str) -> bool:
        """Return whether a stop text would cut an answer before the judge would."""
        end = found[name].at if name in found else len(answers[name])
        return answers[name].find(heading, 0, end) >= 0

    return RunOn(
        num=len(found),
        of=len(answers),
        first=tuple(found)[:_SHOWN],
        needless=needless / max(1, sum(map(len, answers.values()))),
        stops=tuple(
            heading
            for heading, _ in headings.most_common(_MOST_STOPS)
            if not any(cuts(heading, name) for name in answers)
        ),
        step=step,
    )
