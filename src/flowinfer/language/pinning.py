"""Write into a flow's text the values that it was run with, so that it stands without `--set`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flowinfer.errors import Span
from flowinfer.language.declarations import Loader
from flowinfer.spec import RENAMED

_PLAIN = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?|true|false")
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"})


@dataclass(frozen=True)
class _Edit:
    line: int
    start: int
    """Column, 1-based."""
    end: int
    text: str


def pin(text: str, values: Mapping[str, str]) -> str:
    """Return a flow's text with other values of its params, and of options of `defaults`.

    Args:
        text: a flow without errors; of what it imports nothing is changed.
        values: by name of a param of the text, or of an option of `defaults`.
    """
    declared = Loader(text, "<flow>", Path()).load()
    left = {name if name in declared.params else RENAMED.get(name, name): value for name, value in values.items()}
    edits = []
    for name in list(left):
        param = declared.params.get(name)
        if param is not None and param.span.file == "<flow>":
            written = _quoted(left.pop(name)) if param.type.text == "str" else left.pop(name)
            edits.append(
                _over(param.default.span, written) if param.default else _behind(param.type.span, f" = {written}")
            )
    for defaults in declared.defaults:
        for option in defaults.options:
            if defaults.span.file == "<flow>" and option.key in left:
                edits.append(_over(option.value.span, _value(left.pop(option.key))))
    lines = text.removeprefix("\ufeff").split("\n")
    for edit in sorted(edits, key=lambda edit: (edit.line, edit.start), reverse=True):
        line = lines[edit.line - 1]
        lines[edit.line - 1] = line[: edit.start - 1] + edit.text + line[edit.end - 1 :]
    if left:
        options = ", ".join(f"{name}={_value(value)}" for name, value in left.items())
        lines.insert(0, f"defaults {{ {options} }}")
    return "\n".join(lines)


def _over(span: Span, text: str) -> _Edit:
    return _Edit(span.line, span.column, span.end_column, text)


def _behind(span: Span, text: str) -> _Edit:
    return _Edit(span.line, span.end_column, span.end_column, text)


def _value(text: str) -> str:
    return text if _PLAIN.fullmatch(text) else _quoted(text)


def _quoted(text: str) -> str:
    return f'"{text.translate(_ESCAPES)}"'
