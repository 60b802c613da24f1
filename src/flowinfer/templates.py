"""Checking prompt templates against the stages that come before them."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from flowinfer.errors import Span
from flowinfer.options import did_you_mean
from flowinfer.prompts import BUILT_IN_FIELDS, TemplateError, fields_of
from flowinfer.reporter import Reporter
from flowinfer.syntax import Value

_RESULT = re.compile(r"result_(\d+)")


@dataclass(frozen=True)
class Earlier:
    """A stage before the one whose template is checked."""

    label: str | None
    is_answers: bool


class TemplateCheck:
    """Report fields that a template cannot have at its place."""

    def __init__(self, report: Reporter) -> None:
        self._report = report

    def check(self, template: str, written: Value | None, earlier: Sequence[Earlier], use: Span) -> None:
        """Check one template.

        Args:
            template: its text.
            written: where it was written; None for a built-in one, whose problems are shown at its use.
            earlier: the stages before it.
            use: the place that uses it.
        """
        try:
            fields = fields_of(template)
        except TemplateError as error:
            self._report.error("E0404", str(error), _place_of_problem(written) or use)
            return
        places = _places(written)
        for index, field in enumerate(fields):
            place = places[index] if len(places) == len(fields) else use
            self._field(field.name, place, earlier)

    def _field(self, name: str, span: Span, earlier: Sequence[Earlier]) -> None:
        if name in ("question", "choices"):
            return
        result = _RESULT.fullmatch(name)
        labels = [stage.label for stage in earlier if stage.label]
        if name == "prev":
            if not earlier:
                self._report.error("E0402", "'{prev}' in the first stage", span, "no stage comes before it")
        elif name == "answers":
            if not any(stage.is_answers for stage in earlier):
                hint = "a '&' group must come before: (A & B) -> C"
                self._report.error("E0403", "'{answers}' without a '&' group before it", span, hint)
        elif result:
            number, count = int(result[1]), len(earlier)
            if not 1 <= number <= count:
                stages = (
                    "no stage precedes" if not count else f"{count} stage{'s precede' if count > 1 else ' precedes'}"
                )
                hint = f"use {{result_{count}}} or {{prev}}" if count else "use {question} only"
                self._report.error("E0401", f"'{{{name}}}' is too early: {stages}", span, hint)
        elif name not in labels:
            known = [*BUILT_IN_FIELDS, *labels, *(f"result_{k}" for k in range(1, len(earlier) + 1))]
            hint = did_you_mean(name, known) or f"fields: {', '.join(known)}"
            self._report.error("E0400", f"unknown field '{{{name}}}'", span, hint)


def _places(written: Value | None) -> list[Span]:
    """Return where the fields of a template stand in the text as written, first to last; none where that is unknown."""
    if written is None or written.kind != "string":
        return []
    try:
        fields = fields_of(written.raw)
    except TemplateError:
        return []
    return _spans(written, [(field.offset, written.raw.index("}", field.offset) + 1) for field in fields])


def _place_of_problem(written: Value | None) -> Span | None:
    if written is None or written.kind != "string":
        return None
    try:
        fields_of(written.raw)
    except TemplateError as error:
        return _spans(written, [(error.offset, error.offset + 1)])[0]
    return None


def _spans(written: Value, stretches: Sequence[tuple[int, int]]) -> list[Span]:
    """Return the places of stretches of a value as written, each cut at the end of its line."""
    starts = [0, *(match.end() for match in re.finditer("\n", written.raw)), len(written.raw) + 1]
    spans = []
    for start, end in stretches:
        row = bisect_right(starts, start) - 1
        column = start - starts[row] + (written.span.column if row == 0 else 1)
        width = min(end, starts[row + 1] - 1) - start
        line = written.span.line + row
        spans.append(Span(written.span.file, line, column, line, column + width))
    return spans
