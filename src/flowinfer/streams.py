"""The process's streams and signals, made safe before anything else runs: what is closed, full or gone is told once."""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import Any

from flowinfer.errors import OutputLost, ReaderGone


class _Output(io.FileIO):
    """Standard output: what cannot be written is an error of its own kind, once."""

    _is_lost = False

    def write(self, data: Any) -> int:  # any buffer
        """Write; where that fails, take all else in silence."""
        if self._is_lost:
            return len(data)
        try:
            return super().write(data) or 0
        except BrokenPipeError as error:
            self._is_lost = True
            raise ReaderGone("nobody reads standard output any more") from error
        except OSError as error:
            self._is_lost = True
            raise OutputLost(f"cannot write to standard output: {(error.strerror or str(error)).lower()}") from error


class _Messages(io.FileIO):
    """Standard error: where nobody can be told, work goes on untold."""

    def write(self, data: Any) -> int:  # any buffer
        """Write what can be written."""
        try:
            return super().write(data) or 0
        except OSError:
            return len(data)


def make_safe() -> None:
    """Give the process three streams that no message can break."""
    for number, mode in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:  # closed: a file opened later would take its place; writing to this one fails, as it should
            os.open(os.devnull, mode)
    sys.stdin = sys.stdin or io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), "utf-8")
    sys.stdout = _text(_Output(1, "w", closefd=False), sys.stdout)
    sys.stderr = _text(_Messages(2, "w", closefd=False), sys.stderr)


def _text(raw: io.FileIO, before: Any) -> io.TextIOWrapper:  # None where it was closed
    encoding = getattr(before, "encoding", None) or "utf-8"
    buffered = io.BufferedWriter(raw)
    is_shown = raw.isatty() or isinstance(raw, _Messages)
    return io.TextIOWrapper(buffered, encoding, errors="backslashreplace", line_buffering=is_shown)


def take_signals() -> list[int]:
    """Let the signals that end a session interrupt the work as Ctrl-C does; return where those that came are noted."""
    came: list[int] = []

    def interrupt(number: int, frame: object) -> None:
        came.append(number)
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # one that is ignored (nohup) stays so
            signal.signal(number, interrupt)
    return came
