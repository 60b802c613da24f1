"""Verdicts: an answer is judged by what its question asks for, here or in whichever process answered it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flowinfer.engine.faults import reason
from flowinfer.results import Ballot, Question, Record, Score, Trace

if TYPE_CHECKING:
    from flowinfer.tasks.answers import Why


def judged(question: Question, trace: Trace) -> Record:
    """Return a question's record with its verdict; one that cannot be judged has failed."""
    try:
        return Record(question=question, trace=trace, score=score(question, trace))
    except BaseException as error:  # what is not the question's is raised
        return failed(Record(question=question, trace=trace), error)


def failed(record: Record, error: BaseException) -> Record:
    """Return a record as that of a question that failed after it was answered."""
    failure = {"answer": "", "finish_reason": "error", "error": reason(error)}
    return record.model_copy(update={"score": None, "trace": record.trace.model_copy(update=failure)})


def score(question: Question, trace: Trace) -> Score | None:
    """Judge a trace; None where the question failed or has no reference."""
    from flowinfer.tasks.answers import judge

    return judge(**_judged_by(question, trace)) if _is_judged(question, trace) else None


def why(question: Question, trace: Trace) -> Why | None:
    """Judge a trace and tell how the verdict came about; None where there is none."""
    from flowinfer.tasks.answers import explain

    return explain(**_judged_by(question, trace)) if _is_judged(question, trace) else None


def _is_judged(question: Question, trace: Trace) -> bool:
    return trace.error is None and bool(question.reference)


def _judged_by(question: Question, trace: Trace) -> dict[str, Any]:
    """Return what a judge is told."""
    return {
        "task": question.kind,
        "output": trace.answer,
        "reference": question.reference,
        "question": question.question,
        "choices": question.choices or None,
        "finish_reason": trace.finish_reason,
    }


def majority(question: Question, outputs: Sequence[str]) -> Ballot:
    """Let outputs vote for the one that most agree with."""
    from flowinfer.tasks.answers import vote

    return vote(question.kind, outputs, question=question.question, choices=question.choices or None)
