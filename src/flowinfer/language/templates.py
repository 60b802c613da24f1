"""Checking prompt templates against the stages that come before them."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from flowinfer.errors import Span
from flowinfer.language.nearness import near_miss
from flowinfer.language.options import Scope
from flowinfer.language.prompts import BUILT_IN_FIELDS, TemplateError, field_names, fields_of, with_values
from flowinfer.language.reporter import Reporter
from flowinfer.language.tree import Value

_RESULT = re.compile(r"result_(\d+)")
_MOST_LISTED = 40
"""Fields that a help lists."""


@dataclass(frozen=True)
class Earlier:
    """A stage before the one whose template is checked."""

    label: str | None
    is_answers: bool
    is_round: bool = False
    """Whether it is the round before of a repeat, which has no number."""
    is_debate: bool = False
    """Whether it is the round before of a debate, in which each has an answer of its own."""


_MEANT = {
    **dict.fromkeys(("问题", "題目", "题目", "提问", "输入", "query", "q", "prompt", "user"), "question"),
    **dict.fromkeys(("选项", "選項", "options", "option"), "choices"),
    **dict.fromkeys(("上一步", "上一个回答", "前文", "回答", "答案", "结果", "previous", "response", "output"), "prev"),
    **dict.fromkeys(("所有回答", "各回答"), "answers"),
}
"""Words that people write for the fields, also in Chinese."""
_ELSEWHERE = {
    "examples": "--few-shot N fills it",
    "round": "a repeat fills it: (A -> B)*3",
    "own": "a debate fills it, from round 2 on: (A & B)*3",
}
"""What fills a field that its place has not."""


class TemplateCheck:
    """Check fields against what a template can have at its place.

    Args:
        report: hears of those that it cannot.
        scope: values of params.
    """

    def __init__(self, report: Reporter, scope: Scope) -> None:
        self._report, self._scope = report, scope
        self._done: set[tuple[int, frozenset[str]]] = set()
        """Templates as written, by identity, with the fields that were told of: many stages may share one."""
        self._filled: dict[int, str] = {}
        """Templates as written, by identity -> with their params filled in."""

    def check(
        self, template: str, written: Value | None, earlier: Sequence[Earlier], use: Span, *, has_rounds: bool = False
    ) -> str:
        """Check one template; return it with its params filled in.

        Args:
            template: its text.
            written: where it was written; None for a built-in one, whose problems are shown at its use.
            earlier: the stages before it.
            use: the place that uses it.
            has_rounds: whether it stands in a repeat.
        """
        try:
            names = field_names(template)
        except TemplateError as error:
            if self._is_news(written, frozenset()):
                self._report.error("E0404", str(error), _place_of_problem(written) or use)
            return template
        known = _known(earlier) | (dict.fromkeys(["round"]) if has_rounds else {})
        unknown = frozenset(name for name in names if name not in known and not name.startswith("$"))
        if unknown and self._is_news(written, unknown):
            for field, place in _placed(template, written, use):
                if field in unknown and not self._report.is_full:
                    self._field(field, place, known, len(_numbered(earlier)))
        return self._with_params(template, written, use) if any(name.startswith("$") for name in names) else template

    def _is_news(self, written: Value | None, unknown: frozenset[str]) -> bool:
        if written is None:
            return True
        key = (id(written), unknown)
        is_news = key not in self._done
        self._done.add(key)
        return is_news

    def _with_params(self, template: str, written: Value | None, use: Span) -> str:
        filled = self._filled.get(id(written)) if written is not None else None
        if filled is None:
            texts: dict[str, str] = {}
            for field, place in _placed(template, written, use):
                if field.startswith("$") and field[1:] not in texts:
                    data = self._scope.data(Value("parameter", field[1:], field, place))
                    texts[field[1:]] = str(data).lower() if isinstance(data, bool) else str(data)
            filled = with_values(template, {f"${name}": text for name, text in texts.items()})
            if written is not None:
                self._filled[id(written)] = filled
        return filled

    def _field(self, name: str, span: Span, known: Collection[str], num_earlier: int) -> None:
        if name == "prev":
            hint = "no stage comes before it; use {question}"
            self._report.error("E0402", "'{prev}' in the first stage", span, hint)
        elif name == "answers":
            hint = "a '&' group must come before: (A & B) -> C"
            self._report.error("E0403", "'{answers}' without a '&' group before it", span, hint)
        elif _RESULT.fullmatch(name):
            precede = f"{num_earlier} stage{'s precede' if num_earlier > 1 else ' precedes'}"
            hint = f"use {{result_{num_earlier}}} or {{prev}}" if num_earlier else "use {question} only"
            message = f"'{{{name}}}' is too early: {precede if num_earlier else 'no stage precedes'}"
            self._report.error("E0401", message, span, hint)
        else:
            self._unknown(name, span, known)

    def _unknown(self, name: str, span: Span, known: Collection[str]) -> None:
        """Report a field that is near a known one as a mistake, any other as a column of the data set."""
        fields = [*BUILT_IN_FIELDS, *(one for one in known if one not in BUILT_IN_FIELDS)]
        meant = _MEANT.get(name.lower())
        hint = f"did you mean '{meant}'?" if meant else near_miss(name, fields)
        if hint is None and name in self._scope.params:
            hint = f"a param is written with its mark: {{${name}}}"
            self._scope.used.add(name)
        listed = ", ".join(fields[:_MOST_LISTED]) + (", ..." if len(fields) > _MOST_LISTED else "")
        if hint is None and name.lower() in ("answer", "reference", "gold", "label"):
            hint = f"fields: {listed}; the right answer is not shown to models"
        if hint:
            self._report.error("E0400", f"unknown field '{{{name}}}'", span, hint)
            return
        hint = _ELSEWHERE.get(name, f"fields that are always there: {listed}")
        self._report.warning("W0302", f"'{{{name}}}' must be a column of the data set", span, hint)


def _known(earlier: Sequence[Earlier]) -> dict[str, None]:
    """Return the fields that a template after some stages may have, in the order in which help lists them."""
    labels = [stage.label for stage in earlier if stage.label]
    results = [f"result_{k}" for k in range(1, len(_numbered(earlier)) + 1)]
    places = (["prev"] if earlier else []) + (["answers"] if any(stage.is_answers for stage in earlier) else [])
    places += ["own"] if any(stage.is_debate for stage in earlier) else []
    return dict.fromkeys(["question", "choices", *places, *labels, *results])


def _numbered(earlier: Sequence[Earlier]) -> list[int]:
    """Return the indices of the stages that {result_1}, {result_2}, ... are."""
    return [index for index, stage in enumerate(earlier) if not stage.is_round]


def _placed(template: str, written: Value | None, use: Span) -> list[tuple[str, Span]]:
    """Return the fields of a template with their places; where those are unknown, the place of its use."""
    fields, places = fields_of(template), _places(written)
    known = len(places) == len(fields)
    return [(field.name, places[index] if known else use) for index, field in enumerate(fields)]


def earliest_read(template: str, earlier: Sequence[Earlier]) -> int | None:
    """Return the index of the first earlier stage that a checked template reads, or None."""
    read = []
    for use in fields_of(template):
        result = _RESULT.fullmatch(use.name)
        if use.name == "prev" or (result and earlier):
            read.append(_numbered(earlier)[int(result[1]) - 1] if result else len(earlier) - 1)
        read += [
            index
            for index, stage in enumerate(earlier)
            if (use.name == "answers" and stage.is_answers)
            or (use.name == "own" and stage.is_debate)
            or use.name == stage.label
        ]
    return min(read, default=None)


def shows_item(template: str, labels: Collection[str]) -> bool:
    """Return whether a checked template shows a field of the data set's items."""
    names = {use.name for use in fields_of(template)} - {"prev", "answers", "own"} - set(labels)
    return any(_RESULT.fullmatch(name) is None for name in names)


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
