"""A run folder's samples as the page shows them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowinfer.results import Record
from flowinfer.runs.judging import judged
from flowinfer.runs.store import ordered_records
from flowinfer.runs.summary import summarize_run
from flowinfer.runs.tables import summary_lines


class Samples:
    """One run's samples, read once.

    Args:
        path: a run folder.
    Raises:
        DataError: it is damaged.
    """

    def __init__(self, path: Path) -> None:
        records = ordered_records(path)
        self._records = {record.question.id: record for record in records}
        results = summarize_run(path, records)
        self._listed = {
            "name": path.name,
            "says": [f"{name} {value}" for name, value in summary_lines(results)],
            "titles": {step.step: step.title for step in results.steps},
            "samples": [_sample(record) for record in records],
        }

    def listed(self) -> Mapping[str, Any]:
        """Return what the run says of itself, and each sample in short."""
        return self._listed

    def record(self, question_id: str) -> Record | None:
        """Return one sample whole; None where there is none of that id."""
        return self._records.get(question_id)


def _sample(record: Record) -> dict[str, Any]:
    score = record.score
    verdict = "failed" if record.trace.error else "open" if score is None else "right" if score.correct else "wrong"
    return {
        "id": record.question.id,
        "question": record.question.question,
        "verdict": verdict,
        "found": score.extracted if score else None,
        "changed": _has_changed(record),
    }


def _has_changed(record: Record) -> bool:
    """Return whether the answer is another than the first stage's, or than some member's that voted."""
    trace = record.trace
    if trace.ballot is not None:
        return len(set(trace.ballot.answers)) > 1
    if record.score is None or len(trace.steps) < 2:
        return False
    first = trace.steps[0]
    early = trace.model_copy(update={"answer": first.passed_on, "finish_reason": first.finish_reason, "ballot": None})
    score = judged(record.question, early).score
    return score is None or score.extracted != record.score.extracted
