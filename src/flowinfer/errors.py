"""Everything that can go wrong in a way that its user can mend, and where in a `.flow` text it went wrong.

FlowInferError            exit code
├── FlowError        1    a .flow text has errors: carries all of its diagnostics, sorted by place
├── DataError        1    a data set, zoo file, run folder or other input file is malformed
│   └── UnreadableFile  1 a file is missing, no regular file, too large, or not UTF-8
├── UsageError       2    the command line or a Python call asks for something impossible
│   └── UnreadableFlow  2 a .flow file is missing, a folder, or not UTF-8
└── RunError         3    a run could not go on
    ├── OutputLost   3    standard output cannot be written to
    │   └── ReaderGone 0  nobody reads it any more, which fails no pipeline
    ├── LoadError    3    a model or tokenizer could not be loaded, or is unsuitable
    ├── MemoryShort  3    what was asked for does not fit into memory
    ├── HeadCut      3    a connection to a head elsewhere broke
    └── DeviceLost   3    a device can do nothing more in this process
        └── HeadLost 3    a head elsewhere is not there any more

Anything else that escapes is a bug of ours and shows its traceback.
"""

from __future__ import annotations

import ctypes
import gc
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from flowinfer.output.secrets import shown
from flowinfer.output.terminal import visible

_SHORT = ("not enough memory", "out of memory", "can't allocate memory", "cublas_status_alloc_failed")
"""What torch and its libraries say where memory is short."""
_LOST = ("CUDA error", "Triton Error [CUDA]", "cuDNN error", "NCCL Error", "ECC error", "unspecified launch failure")
"""What they say where a device has failed."""
_OPTION = re.compile(
    r"--(?:(?P<set>prompts|zoo) (?P<value>[a-z][\w-]*|FILE\.toml)|(?P<name>[a-z][a-z-]*)(?P<takes> (?=[A-Z]))?)"
)
"""An option in a message, two of them with a value that could be meant."""
_MOST_SHOWN = 900
"""Characters of a message."""


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
        self.message = shortened(visible(shown(message)))
        super().__init__(self.message)
        self.help = visible(shown(help)) if help else help
        """What the user can do about it."""


def shortened(text: str) -> str:
    """Return a message without its middle where a quoted value makes it endless."""
    if len(text) <= _MOST_SHOWN:
        return text
    return f"{text[: _MOST_SHOWN * 3 // 4]} ... {text[-_MOST_SHOWN // 5 :]}"


@contextmanager
def in_python_words() -> Iterator[None]:
    """Let errors speak of arguments where they are met in Python: `limit`, not `--limit`."""
    try:
        yield
    except FlowInferError as error:
        error.message = of_arguments(error.message)
        error.help = error.help and of_arguments(error.help)
        error.args = (error.message,)
        raise


def of_arguments(text: str) -> str:
    """Write options as arguments; commands in `...` stay as they are."""

    def argument(match: re.Match[str]) -> str:
        if match["set"]:
            value = f'"{match["value"]}"'
            return f'params={{"prompts": {value}}}' if match["set"] == "prompts" else f"zoo={value}"
        name = match["name"].replace("-", "_")
        return ("params" if name == "set" else name) + ("=" if match["takes"] else "")

    parts = text.split("`")
    return "`".join(part if index % 2 else _OPTION.sub(argument, part) for index, part in enumerate(parts))


class FlowError(FlowInferError):
    """A `.flow` text was refused."""

    def __init__(self, diagnostics: Iterable[Diagnostic], *, num_untold: int = 0) -> None:
        self.diagnostics = tuple(sorted(diagnostics, key=lambda d: (d.span, d.code)))
        self.num_untold = num_untold
        """How many more errors there are than are told."""
        errors = [d for d in self.diagnostics if d.severity is Severity.ERROR]
        first = errors[0] if errors else self.diagnostics[0]
        place = f"{first.span.file}:{first.span.line}:{first.span.column}"
        num_more = len(errors) - 1 + num_untold
        more = f" (and {num_more} more)" if num_more > 0 else ""
        super().__init__(f"{place}: {first.message}{more}", help=first.help)


class DataError(FlowInferError):
    """An input file other than a `.flow` text is missing, malformed or does not fit."""


class UnreadableFile(DataError):
    """A file that the user named cannot be read as text; says why."""

    def __init__(self, path: object, reason: str, *, help: str | None = None) -> None:
        super().__init__(f"{path}: {reason}", help=help)
        self.reason = reason


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


class HeadLoading(LoadError):
    """A head in another process is there, and still loads its model."""


class MemoryShort(RunError):
    """What was asked for does not fit into the memory of its device."""


class OutputLost(RunError):
    """Standard output cannot be written to."""


class ReaderGone(OutputLost):
    """The reader of standard output has had enough."""

    exit_code = 0


class DeviceLost(RunError):
    """A device has failed for good."""

    kept: ClassVar[list[object]] = []
    """Tensors that stay as long as the process; whoever ends it then runs no destructors."""

    @classmethod
    def keep_tensors(cls) -> None:
        """Let no tensor go any more, not even when Python ends.

        torch aborts the process where memory goes back that a lost device has used: its destructors raise.
        """
        torch = sys.modules["torch"]
        if not cls.kept:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(cls.kept))
        cls.kept[:] = [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]


class HeadCut(RunError):
    """The connection to a head elsewhere broke, and the head has forgotten what it held; another may be had."""


class HeadLost(DeviceLost):
    """A head in another process or on another host is not there any more."""


def is_memory_short(error: BaseException) -> bool:
    """Return whether an error tells of short memory."""
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower() if isinstance(error, RuntimeError) else ""
    return any(mark in text for mark in _SHORT)


def is_device_lost(error: BaseException) -> bool:
    """Return whether an error tells that a device can do nothing more in this process, whatever is asked of it."""
    if isinstance(error, DeviceLost):
        return True
    text = str(error) if isinstance(error, RuntimeError) and not is_memory_short(error) else ""
    return any(mark in text for mark in _LOST) and "captur" not in text  # a graph that cannot be recorded loses nothing
