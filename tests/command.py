"""The command line inside the suite's own process: what a process of its own would print, but torch is imported once.

What only a process can show (signals, closed streams, environment at start) begins one in the test that shows it.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from http.server import HTTPServer
from pathlib import Path
from typing import TypeVar

import pytest

from flowinfer import cli

S = TypeVar("S", bound=HTTPServer)


def hear_signals() -> None:
    """Let a child be ended by signals, also where the tests were begun in the background and it would not hear them."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def running(server: S) -> Iterator[S]:
    """Let a server answer in a thread of its own."""
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def flowinfer(*arguments: str, cwd: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command in a folder; return its exit code and what it printed, the traceback of a bug too."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    with pytest.MonkeyPatch.context() as patch, chdir(cwd), redirect_stdout(out), redirect_stderr(err):
        patch.setenv("COLUMNS", "120")
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8"))
        before = os.environ.copy()
        try:
            cli.run(arguments)
        except SystemExit as end:
            code = int(end.code or 0)
        except Exception:  # a bug: shown as the interpreter shows it
            traceback.print_exc()
            code = 1
        finally:
            os.environ.clear()
            os.environ.update(before)
    printed = []
    for stream in (out, err):
        stream.flush()
        printed.append(stream.buffer.getvalue().decode("utf-8"))  # type: ignore[attr-defined]  # a BytesIO
    return subprocess.CompletedProcess(arguments, code, *printed)
