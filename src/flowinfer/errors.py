"""Everything that can go wrong in a way that its user can mend, and where in a `.flow` text it went wrong.

FlowInferError            exit code
├── FlowError        1    a .flow text has errors: carries all of its diagnostics, sorted by place
├── DataError        1    a data set, zoo file, run folder or other input file is malformed
├── UsageError       2    the command line or a Python call asks for something impossible
│   └── UnreadableFlow  2 a .flow file is missing, a folder, or not UTF-8
└── RunError         3    a run could not go on
    ├── LoadError    3    a model or tokenizer could not be loaded, or is unsuitable
    └── MemoryShort  3    what was asked for does not fit into memory

Anything else that escapes is a bug of ours and shows its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from flowinfer.secrets import shown
from flowinfer.terminal import visible


class Severity(StrEnum):
    """How much a diagnostic matters: errors refuse the flow, warnings do not."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, order=True)
class Span:
    """A stretch of one file: 1-based lines and columns in code points, the end exclusive."""

    file: str
    line: int
    column: int
    end_line: int
    end_column: int


@dataclass(frozen=True)
class Diagnostic:
    """One finding about a `.flow` text; `flowinfer explain CODE` tells more about its code."""

    code: str
    """Stable identifier such as "E0100" (errors) or "W0100" (warnings)."""
    severity: Severity
    message: str
    span: Span
    source_line: str
    """The line of text that the span starts on, without its newline."""
    help: str | None = None


class FlowInferError(Exception):
    """Base of all errors that are shown to users without a traceback; no secrets, nothing that steers a terminal."""

    exit_code = 1

    def __init__(self, message: str, *, help: str | None = None) -> None:
        self.message = visible(shown(message))
        super().__init__(self.message)
        self.help = visible(shown(help)) if help else help
        """What the user can do about it."""


class FlowError(FlowInferError):
    """A `.flow` text was refused."""

    def __init__(self, diagnostics: Iterable[Diagnostic]) -> None:
        self.diagnostics = tuple(sorted(diagnostics, key=lambda d: (d.span, d.code)))
        errors = [d for d in self.diagnostics if d.severity is Severity.ERROR]
        first = errors[0] if errors else self.diagnostics[0]
        place = f"{first.span.file}:{first.span.line}:{first.span.column}"
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        super().__init__(f"{place}: {first.message}{more}", help=first.help)


class DataError(FlowInferError):
    """An input file other than a `.flow` text is missing, malformed or does not fit."""


class UsageError(FlowInferError):
    """A command or call asks for something that cannot be done."""

    exit_code = 2


class UnreadableFlow(UsageError):
    """A `.flow` file cannot be read; others that were named beside it may."""


class RunError(FlowInferError):
    """A run failed."""

    exit_code = 3


class LoadError(RunError):
    """A model or tokenizer could not be loaded, or cannot serve in its place."""


class MemoryShort(RunError):
    """What was asked for does not fit into the memory of its device."""
