"""Showing diagnostics: with source and caret, one per line, for GitHub, or as data."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from functools import lru_cache
from itertools import accumulate
from typing import Any, TextIO

from wcwidth import wcswidth, wcwidth

from flowinfer.errors import Diagnostic, Severity
from flowinfer.output.secrets import num_known, shown
from flowinfer.output.terminal import visible_line

_TAB = 4
_WIDEST = 160
"""Columns of a source line that are shown whole; of a longer one, only what stands around the mistake."""
_AROUND = 60
"""Columns on each side of it."""


def print_diagnostics(diagnostics: Iterable[Diagnostic], form: str = "full", file: TextIO | None = None) -> None:
    """Print diagnostics in a form: full, concise or github."""
    forms = {"full": full, "concise": concise, "github": github}
    stream = file or sys.stderr
    for diagnostic in diagnostics:
        text = forms[form](diagnostic)
        print(_coloured(text, diagnostic) if form == "full" and _has_colours(stream) else text, file=stream)


_COLOURS = {Severity.ERROR: "\x1b[1;31m", Severity.WARNING: "\x1b[1;33m"}
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


def _has_colours(stream: TextIO) -> bool:
    """Return whether a stream is a terminal whose user wants colours (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _coloured(text: str, diagnostic: Diagnostic) -> str:
    """Return the full form with its severity and caret in colour, its frame dim."""
    colour = _COLOURS[diagnostic.severity]
    first, arrow, *rest = text.split("\n")
    head, colon, message = first.partition(": ")
    lines = [f"{colour}{head}{_PLAIN}{colon}{message}", f"{_DIM}{arrow}{_PLAIN}"]
    if diagnostic.source_line:
        bar, source, caret, *rest = rest
        frame, mark, marks = caret.partition("| ")
        lines += [f"{_DIM}{bar}{_PLAIN}", source, f"{_DIM}{frame}{mark}{_PLAIN}{colour}{marks}{_PLAIN}"]
    return "\n".join([*lines, *rest])


def full(diagnostic: Diagnostic) -> str:
    """Return the message with its place, source line, caret and help."""
    span = diagnostic.span
    number = str(span.line)
    gutter = " " * len(number)
    lines = [
        f"{diagnostic.severity}[{diagnostic.code}]: {_line(diagnostic.message)}",
        f"{gutter}--> {_line(span.file)}:{span.line}:{span.column}",
    ]
    if diagnostic.source_line:
        source, start, end = _window(diagnostic)
        before = display_width(source[:start])
        width = max(1, display_width(source[:end]) - before)
        lines += [
            f"{gutter} |",
            f"{number} | {source.expandtabs(_TAB)}".rstrip(),
            f"{gutter} | {' ' * before}{'^' * width}",
        ]
    if diagnostic.help:
        lines.append(f"{gutter} = help: {_line(diagnostic.help)}")
    return "\n".join(lines)


def _window(diagnostic: Diagnostic) -> tuple[str, int, int]:
    """Return the source line as it can be shown, and where in it the caret begins and ends."""
    span, source = diagnostic.span, _safe(diagnostic.source_line, num_known())
    start = span.column - 1
    end = max(start + 1, span.end_column - 1 if span.end_line == span.line else len(source))
    if len(source) <= _WIDEST and display_width(source) <= _WIDEST:
        return source, start, end
    first = start - _num_fitting(source[max(0, start - _AROUND) : start][::-1])
    last = start + _num_fitting(source[start : start + _AROUND])
    left, right = "... " if first else "", " ..." if last < len(source) else ""
    shift = len(left) - first
    return left + source[first:last] + right, start + shift, min(end, last) + shift


def _num_fitting(text: str) -> int:
    """Return how many of the first characters of a text fit beside the mistake."""
    return sum(columns <= _AROUND for columns in accumulate(display_width(character) for character in text))


@lru_cache(maxsize=4)
def _safe(line: str, num_secrets: int) -> str:
    """Return a line without secrets, once for all that is said of it: it may be the whole of a file.

    Args:
        num_secrets: that are known by now.
    """
    return visible_line(shown(line, keeps_length=True))


def _line(text: str) -> str:
    return visible_line(shown(text))


def concise(diagnostic: Diagnostic) -> str:
    """Return one line: place, code, message."""
    span = diagnostic.span
    hint = f" ({diagnostic.help})" if diagnostic.help else ""
    return (
        f"{_line(span.file)}:{span.line}:{span.column}: {diagnostic.severity}[{diagnostic.code}]: "
        f"{_line(diagnostic.message + hint)}"
    )


def github(diagnostic: Diagnostic) -> str:
    """Return a workflow command that annotates the line."""
    span = diagnostic.span
    text = shown(diagnostic.message + (f"; {diagnostic.help}" if diagnostic.help else ""))
    for character, escape in (("%", "%25"), ("\r", "%0D"), ("\n", "%0A")):
        text = text.replace(character, escape)
    file = span.file.replace("%", "%25").replace(":", "%3A").replace(",", "%2C")
    place = f"file={file},line={span.line},col={span.column},endColumn={span.end_column}"
    return f"::{diagnostic.severity} {place},title={diagnostic.code}::{text}"


def to_json(diagnostic: Diagnostic) -> dict[str, Any]:
    """Return the diagnostic as plain data: 1-based places, columns in code points."""
    span = diagnostic.span
    return {
        "code": diagnostic.code,
        "severity": str(diagnostic.severity),
        "message": shown(diagnostic.message),
        "file": span.file,
        "line": span.line,
        "column": span.column,
        "end_line": span.end_line,
        "end_column": span.end_column,
        "help": shown(diagnostic.help) if diagnostic.help else None,
    }


def display_width(text: str) -> int:
    """Return how many terminal columns a text takes; tabs to the next multiple of four."""
    text = text.expandtabs(_TAB)
    width = wcswidth(text)
    return width if width >= 0 else sum(max(wcwidth(character), 0) for character in text)
