"""Checking prompt templates against the stages that come before them."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from flowinfer.errors import Span
from flowinfer.options import near_or_all
from flowinfer.prompts import BUILT_IN_FIELDS, TemplateError, field_names, fields_of
from flowinfer.reporter import Reporter
from flowinfer.syntax import Value

_RESULT = re.compile(r"result_\d+")


@dataclass(frozen=True)
class Earlier:
    """A stage before the one whose template is checked."""

    label: str | None
    is_answers: bool


class TemplateCheck:
    """Report fields that a template cannot have at its place."""

    def __init__(self, report: Reporter) -> None:
        self._report = report
        self._done: set[tuple[int, frozenset[str]]] = set()
        """Templates as written, by identity, with the fields that were told of: many stages may share one."""

    def check(self, template: str, written: Value | None, earlier: Sequence[Earlier], use: Span) -> None:
        """Check one template.

        Args:
            template: its text.
            written: where it was written; None for a built-in one, whose problems are shown at its use.
            earlier: the stages before it.
            use: the place that uses it.
        """
        known = _known(earlier)
        try:
            unknown = field_names(template).difference(known)
        except TemplateError as error:
            if self._is_news(written, frozenset()):
                self._report.error("E0404", str(error), _place_of_problem(written) or use)
            return
        if not unknown or not self._is_news(written, unknown):
            return
        fields, places = fields_of(template), _places(written)
        for index, field in enumerate(fields):
            if field.name in unknown and not self._report.is_full:
                self._field(field.name, places[index] if len(places) == len(fields) else use, known, len(earlier))

    def _is_news(self, written: Value | None, unknown: frozenset[str]) -> bool:
        if written is None:
            return True
        key = (id(written), unknown)
        is_news = key not in self._done
        self._done.add(key)
        return is_news

    def _field(self, name: str, span: Span, known: Collection[str], num_earlier: int) -> None:
        if name == "prev":
            self._report.error("E0402", "'{prev}' in the first stage", span, "no stage comes before it")
        elif name == "answers":
            hint = "a '&' group must come before: (A & B) -> C"
            self._report.error("E0403", "'{answers}' without a '&' group before it", span, hint)
        elif _RESULT.fullmatch(name):
            precede = f"{num_earlier} stage{'s precede' if num_earlier > 1 else ' precedes'}"
            hint = f"use {{result_{num_earlier}}} or {{prev}}" if num_earlier else "use {question} only"
            message = f"'{{{name}}}' is too early: {precede if num_earlier else 'no stage precedes'}"
            self._report.error("E0401", message, span, hint)
        else:
            fields = [*BUILT_IN_FIELDS, *(name for name in known if name not in BUILT_IN_FIELDS)]
            near = near_or_all(name, fields, "fields", self._report)
            self._report.error("E0400", f"unknown field '{{{name}}}'", span, near)


def _known(earlier: Sequence[Earlier]) -> dict[str, None]:
    """Return the fields that a template after some stages may have, in the order in which help lists them."""
    labels = [stage.label for stage in earlier if stage.label]
    results = [f"result_{k}" for k in range(1, len(earlier) + 1)]
    places = (["prev"] if earlier else []) + (["answers"] if any(stage.is_answers for stage in earlier) else [])
    return dict.fromkeys(["question", "choices", *places, *labels, *results])


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
