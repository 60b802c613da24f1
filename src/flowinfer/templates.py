"""Checking prompt templates against the stages that come before them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from flowinfer.errors import Span
from flowinfer.mistakes import Reporter
from flowinfer.options import did_you_mean
from flowinfer.prompts import BUILT_IN_FIELDS, TemplateError, fields_of
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
            self._report.error("E0404", str(error), _place(written, template[error.offset], 0) or use)
            return
        seen: dict[str, int] = {}
        for field in fields:
            nth = seen.get(field.name, 0)
            seen[field.name] = nth + 1
            span = _place(written, "{" + field.name, nth) or use
            self._field(field.name, span, earlier)

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


def _place(written: Value | None, needle: str, nth: int) -> Span | None:
    """Return where the nth `needle` stands in a value as written, or None where it cannot be told."""
    if written is None or written.kind != "string":
        return None
    at = -1
    for _ in range(nth + 1):
        at = written.raw.find(needle, at + 1)
        if at < 0:
            return None
    before = written.raw[:at].replace("\r\n", "\n").split("\n")
    line = written.span.line + len(before) - 1
    column = len(before[-1]) + (written.span.column if len(before) == 1 else 1)
    width = len(needle) + (written.raw[at + len(needle) : at + len(needle) + 1] == "}")
    return Span(written.span.file, line, column, line, column + width)
