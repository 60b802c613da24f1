"""Showing diagnostics: with source and caret, one per line, for GitHub, or as data."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TextIO

from wcwidth import wcswidth, wcwidth

from flowinfer.errors import Diagnostic

_TAB = 4


def print_diagnostics(diagnostics: Iterable[Diagnostic], form: str = "full", file: TextIO | None = None) -> None:
    """Print diagnostics in a form: full, concise or github."""
    forms = {"full": full, "concise": concise, "github": github}
    for diagnostic in diagnostics:
        print(forms[form](diagnostic), file=file or sys.stderr)


def full(diagnostic: Diagnostic) -> str:
    """Return the message with its place, source line, caret and help."""
    span = diagnostic.span
    number = str(span.line)
    gutter = " " * len(number)
    source = diagnostic.source_line
    end = span.end_column - 1 if span.end_line == span.line else len(source)
    before = display_width(source[: span.column - 1])
    width = max(1, display_width(source[span.column - 1 : max(end, span.column - 1)]))
    lines = [
        f"{diagnostic.severity}[{diagnostic.code}]: {diagnostic.message}",
        f"{gutter}--> {span.file}:{span.line}:{span.column}",
        f"{gutter} |",
        f"{number} | {source.expandtabs(_TAB)}",
        f"{gutter} | {' ' * before}{'^' * width}",
    ]
    if diagnostic.help:
        lines.append(f"{gutter} = help: {diagnostic.help}")
    return "\n".join(lines)


def concise(diagnostic: Diagnostic) -> str:
    """Return one line: place, code, message."""
    span = diagnostic.span
    hint = f" ({diagnostic.help})" if diagnostic.help else ""
    return (
        f"{span.file}:{span.line}:{span.column}: {diagnostic.severity}[{diagnostic.code}]: {diagnostic.message}{hint}"
    )


def github(diagnostic: Diagnostic) -> str:
    """Return a workflow command that annotates the line."""
    span = diagnostic.span
    text = diagnostic.message + (f"; {diagnostic.help}" if diagnostic.help else "")
    for character, escape in (("%", "%25"), ("\r", "%0D"), ("\n", "%0A")):
        text = text.replace(character, escape)
    place = f"file={span.file},line={span.line},col={span.column},endColumn={span.end_column}"
    return f"::{diagnostic.severity} {place},title={diagnostic.code}::{text}"


def to_json(diagnostic: Diagnostic) -> dict[str, Any]:
    """Return the diagnostic as plain data: 1-based places, columns in code points."""
    span = diagnostic.span
    return {
        "code": diagnostic.code,
        "severity": str(diagnostic.severity),
        "message": diagnostic.message,
        "file": span.file,
        "line": span.line,
        "column": span.column,
        "end_line": span.end_line,
        "end_column": span.end_column,
        "help": diagnostic.help,
    }


def display_width(text: str) -> int:
    """Return how many terminal columns a text takes; tabs to the next multiple of four."""
    text = text.expandtabs(_TAB)
    width = wcswidth(text)
    return width if width >= 0 else sum(max(wcwidth(character), 0) for character in text)
