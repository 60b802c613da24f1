"""What `evaluate` returns in Python: the results, the judged answers, and tables of them."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from flowinfer.errors import of_arguments
from flowinfer.results import Record
from flowinfer.runs.summary import Results
from flowinfer.runs.tables import notes, summary_lines


@dataclass(frozen=True)
class Evaluation:
    """A flow's results on a data set."""

    results: Results
    records: tuple[Record, ...]
    """Every question with its trace and verdict, in the order of finishing."""
    notes: tuple[str, ...] = ()
    """What one must know before believing it, beside what the results say."""

    @property
    def accuracy(self) -> float | None:
        """Return the share of right answers, between 0 and 1; failed questions are not counted."""
        return self.results.accuracy

    @property
    def interval(self) -> tuple[float, float]:
        """Return Wilson's 95 % interval of the accuracy."""
        return self.results.interval

    @property
    def table(self) -> list[dict[str, object]]:
        """Return one row per question, ready for a data frame."""
        return [
            {
                "id": record.question.id,
                "correct": record.score.correct if record.score else None,
                "extracted": record.score.extracted if record.score else None,
                "reference": record.question.reference,
                "status": record.score.status if record.score else "failed",
                "seconds": record.trace.seconds,
                "answer": record.trace.answer,
            }
            for record in self.records
        ]

    def __repr__(self) -> str:
        lines = [f"{self.results.flow} on {self.results.dataset}, zoo {self.results.zoo}"]
        lines += [f"  {name:<20} {value}" for name, value in summary_lines(self.results)]
        return "\n".join([*lines, *(f"  {note}" for note in self._remarks())])

    def _repr_html_(self) -> str:
        title = escape(f"{self.results.flow} on {self.results.dataset}, zoo {self.results.zoo}")
        rows = "".join(
            f"<tr><th style='text-align:left'>{escape(name)}</th><td style='text-align:left'>{escape(value)}</td></tr>"
            for name, value in summary_lines(self.results)
        )
        remarks = "".join(f"<p><small>{escape(note)}</small></p>" for note in self._remarks())
        return f"<table><caption>{title}</caption>{rows}</table>{remarks}"

    def _remarks(self) -> tuple[str, ...]:
        return (*map(of_arguments, notes(self.results)), *self.notes)
