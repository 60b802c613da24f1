"""Collecting diagnostics about a `.flow` text and the files that it imports."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable

from flowinfer.errors import Diagnostic, Severity, Span
from flowinfer.language.codes import CODES

NEWLINE = re.compile(r"\r\n|\n|\r")
MOST_TOLD = 100
"""Most errors, and most warnings, of one text that are told; the others are counted."""
_MOST_SHOWN = 300
"""Longest message and help, in characters; of longer ones the middle is left out."""


class Reporter:
    """Collects diagnostics, each with its source line; one slip of the pen is told once."""

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self.spoiled_lines: set[int] = set()
        """Lines with characters that mean nothing: what else they hold cannot be judged."""
        self.num_problems = 0
        """How often something was wrong, told or not."""
        self.num_untold = 0
        """How many more errors there were than are told."""
        self.codes: set[str] = set()
        """Of all that was found, told or not."""
        self._num_told = dict.fromkeys(Severity, 0)
        self._found: dict[Diagnostic, None] = {}
        self._sources: dict[str, list[str]] = {}
        self._slips: dict[tuple[str, int, int], Diagnostic | None] = {}
        """Place -> the slip there; None where it is counted only."""
        self._starts: list[int] = []
        self.add_source(file, text)
        self._starts = [0, *(match.end() for match in NEWLINE.finditer(text))]

    @property
    def diagnostics(self) -> list[Diagnostic]:
        """Return what was found, each once, in the order of finding."""
        return list(self._found)

    @property
    def is_full(self) -> bool:
        """Return whether no further error will be told, so that no help need be thought of."""
        return self._num_told[Severity.ERROR] >= MOST_TOLD

    @property
    def has_errors(self) -> bool:
        """Whether the text is refused already."""
        return any(found.severity is Severity.ERROR for found in self._found)

    def extend(self, diagnostics: Iterable[Diagnostic], num_untold: int) -> None:
        """Add what another reporter found."""
        for found in diagnostics:
            self._tell(found)
        self.num_untold += num_untold

    def add_source(self, file: str, text: str) -> None:
        """Know the lines of another file, for the diagnostics about it."""
        self._sources[file] = NEWLINE.split(text)

    def error(self, code: str, message: str, span: Span, help: str | None = None) -> None:
        """Add an error."""
        self._add(code, Severity.ERROR, message, span, help)

    def warning(self, code: str, message: str, span: Span, help: str | None = None) -> None:
        """Add a warning."""
        self._add(code, Severity.WARNING, message, span, help)

    def place(self, start: int, end: int) -> Span:
        """Return the span of text[start:end], cut at the end of its first line."""
        line = bisect_right(self._starts, start)
        column = start - self._starts[line - 1] + 1
        last = len(self._sources[self.file][line - 1]) + 1
        end_column = max(column + 1, min(column + end - start, last))
        return Span(self.file, line, column, line, end_column)

    def before(self, span: Span) -> str:
        """Return what stands before a place in its line, the nearest of it."""
        return self._sources[span.file][span.line - 1][max(0, span.column - 100) : span.column - 1]

    def last_line(self) -> Span:
        """Return the span of the last line that holds anything."""
        lines = self._sources[self.file]
        last = max((number for number, line in enumerate(lines, 1) if line.strip()), default=1)
        return Span(self.file, last, 1, last, max(2, len(lines[last - 1]) + 1))

    def _add(self, code: str, severity: Severity, message: str, span: Span, help: str | None) -> None:
        self.num_problems += 1
        place = (span.file, span.line, span.column)
        if severity is Severity.ERROR and self.is_full and place not in self._slips:  # counted, however many they are
            self.codes.add(code)
            self.num_untold += 1
            if code.startswith("E00"):
                self._slips[place] = None
            return
        lines = self._sources.get(span.file, [])
        line = lines[span.line - 1] if span.line <= len(lines) else ""
        if not _shows_text(span.file):
            message, line, help = CODES[code].title, "", "lines and words are shown of files whose names end in .flow"
        found = Diagnostic(code, severity, _short(message), span, line, help and _short(help))
        if self._is_news(found, place):
            self._tell(found)

    def _tell(self, found: Diagnostic) -> None:
        if found in self._found:
            return
        self.codes.add(found.code)
        if self._num_told[found.severity] >= MOST_TOLD:
            self.num_untold += found.severity is Severity.ERROR
            return
        self._num_told[found.severity] += 1
        self._found[found] = None

    def _is_news(self, found: Diagnostic, place: tuple[str, int, int]) -> bool:
        """Return whether no slip was told of the same place; a full-width character gives way to what it stands for."""
        if not found.code.startswith("E00"):
            return True
        if place in self._slips:
            former = self._slips[place]
            if former is None or former.code != "E0002" or former == found:
                return False
            if former in self._found:
                del self._found[former]
                self._num_told[former.severity] -= 1
        self._slips[place] = found
        return True


def _shows_text(file: str) -> bool:
    """Return whether a text is a flow by its name, or was given as one: no text of other files may be shown."""
    return file.startswith("<") or file.endswith(".flow")


def _short(text: str) -> str:
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN // 2]} ... {text[-_MOST_SHOWN // 2 :]}"
