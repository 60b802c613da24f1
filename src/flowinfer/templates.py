"""Checking prompt templates against the stages that come before them."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from flowinfer.errors import Span
from flowinfer.options import Scope, near_miss
from flowinfer.prompts import BUILT_IN_FIELDS, TemplateError, fields_of, with_params
from flowinfer.reporter import Reporter
from flowinfer.syntax import Value

_RESULT = re.compile(r"result_(\d+)")


@dataclass(frozen=True)
class Earlier:
    """A stage before the one whose template is checked."""

    label: str | None
    is_answers: bool


_MEANT = {
    **dict.fromkeys(("问题", "題目", "题目", "提问", "输入", "query", "q", "prompt", "user"), "question"),
    **dict.fromkeys(("选项", "選項", "options", "option"), "choices"),
    **dict.fromkeys(("上一步", "上一个回答", "前文", "回答", "答案", "结果", "previous", "response", "output"), "prev"),
    **dict.fromkeys(("所有回答", "各回答"), "answers"),
}
"""Words that people write for the fields, also in Chinese."""


class TemplateCheck:
    """Check fields against what a template can have at its place.

    Args:
        report: hears of those that it cannot.
        scope: values of params.
    """

    def __init__(self, report: Reporter, scope: Scope) -> None:
        self._report, self._scope = report, scope

    def check(self, template: str, written: Value | None, earlier: Sequence[Earlier], use: Span) -> str:
        """Check one template; return it with its params filled in.

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
            return template
        places = _places(written)
        texts: dict[str, str] = {}
        for index, field in enumerate(fields):
            place = places[index] if len(places) == len(fields) else use
            if field.name.startswith("$"):
                data = self._scope.data(Value("parameter", field.name[1:], field.name, place))
                texts[field.name[1:]] = str(data).lower() if isinstance(data, bool) else str(data)
            else:
                self._field(field.name, place, earlier)
        return with_params(template, texts)

    def _field(self, name: str, span: Span, earlier: Sequence[Earlier]) -> None:
        if name in ("question", "choices"):
            return
        result = _RESULT.fullmatch(name)
        labels = [stage.label for stage in earlier if stage.label]
        if name == "prev":
            if not earlier:
                hint = "no stage comes before it; use {question}"
                self._report.error("E0402", "'{prev}' in the first stage", span, hint)
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
            self._unknown(name, labels, span, earlier)

    def _unknown(self, name: str, labels: Sequence[str], span: Span, earlier: Sequence[Earlier]) -> None:
        """Report a field that is near a known one as a mistake, any other as a column of the data set."""
        count = len(earlier)
        known = list(dict.fromkeys([*BUILT_IN_FIELDS, *labels, *(f"result_{k}" for k in range(1, count + 1))]))
        meant = _MEANT.get(name.lower())
        hint = f"did you mean '{meant}'?" if meant else near_miss(name, known)
        if hint is None and name in self._scope.params:
            hint = f"a param is written with its mark: {{${name}}}"
            self._scope.used.add(name)
        if hint is None and name.lower() in ("answer", "reference", "gold", "label"):
            hint = f"fields: {', '.join(known)}; the right answer is not shown to models"
        if hint:
            self._report.error("E0400", f"unknown field '{{{name}}}'", span, hint)
            return
        hint = f"fields that are always there: {', '.join(known)}"
        self._report.warning("W0302", f"'{{{name}}}' must be a column of the data set", span, hint)


def earliest_read(template: str, earlier: Sequence[Earlier]) -> int | None:
    """Return the index of the first earlier stage that a checked template reads, or None."""
    read = []
    for use in fields_of(template):
        result = _RESULT.fullmatch(use.name)
        if use.name == "prev" or (result and earlier):
            read.append(int(result[1]) - 1 if result else len(earlier) - 1)
        read += [
            index
            for index, stage in enumerate(earlier)
            if (use.name == "answers" and stage.is_answers) or use.name == stage.label
        ]
    return min(read, default=None)


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
