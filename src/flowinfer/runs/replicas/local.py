"""Replicas as processes of this machine, each with GPUs or CPU cores of its own."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import IO

from pydantic import BaseModel

from flowinfer.runs.replicas.site import Gone, Hear
from flowinfer.runs.replicas.wire import line_of

_LAST_LINES = 20
"""Of what a process says on standard error."""
_END_SECONDS = 5.0
"""Until a process that does not end by itself is killed."""


class LocalSite:
    """Processes of this machine.

    Args:
        gpus: of each replica, what it sees as its GPUs (CUDA_VISIBLE_DEVICES); None: whatever there is.
        cores: of each replica, its CPU cores; none = all.
        cpu_bytes: of this machine's memory, what each may count with.
    """

    def __init__(self, gpus: Sequence[str | None], cores: Sequence[Sequence[int]], cpu_bytes: int) -> None:
        self.num_replicas, self.cpu_bytes = len(cores), cpu_bytes
        self.hosts: Sequence[str] = ("",) * len(cores)
        self._gpus, self._cores = gpus, cores
        self._processes: dict[int, Process] = {}

    def begin(self, index: int, program: str, hear: Hear) -> Process:
        """Start a process; see `Site.begin`."""
        if index in self._processes:
            self._processes[index].end()
        gpus = self._gpus[index]
        own = {} if gpus is None else {"CUDA_VISIBLE_DEVICES": gpus}
        self._processes[index] = Process(program, hear, lambda how: hear(Gone(how)), own, self._cores[index])
        return self._processes[index]

    def close(self) -> None:
        """End all processes."""
        for process in self._processes.values():
            process.end()
        for process in self._processes.values():
            process.wait()


class Process:
    """A replica's process; it ends when this one does, since its input then ends.

    Args:
        program: see `Site.begin`.
        hear: takes the lines that it says.
        gone: hears how it has ended, last.
        environment: what it has besides this process's.
        cores: it may use; none = all.
    """

    def __init__(
        self,
        program: str,
        hear: Callable[[bytes], None],
        gone: Callable[[str], None],
        environment: Mapping[str, str],
        cores: Sequence[int],
    ) -> None:
        path = os.pathsep.join(filter(None, sys.path))
        threads = {"OMP_NUM_THREADS": threads_for(len(cores))} if cores else {}
        self._process = subprocess.Popen(
            (sys.executable, "-P", "-m", program),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(os.environ) | {"PYTHONPATH": path} | threads | dict(environment),
            process_group=0,  # an interrupt at a terminal is for who asks
        )
        if cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(self._process.pid, cores)
        self._last: deque[str] = deque(maxlen=_LAST_LINES)
        self._errors = threading.Thread(target=self._read_errors, daemon=True)
        self._errors.start()
        self._reader = threading.Thread(target=self._read, args=(hear, gone), daemon=True)
        self._reader.start()
        self._outbox = Outbox(self._write, self._close)

    @property
    def pid(self) -> int:
        """Return its number."""
        return self._process.pid

    def send(self, message: BaseModel) -> None:
        """Say something to it; to one that has ended, nothing."""
        self.write(line_of(message))

    def write(self, line: bytes) -> None:
        """Say a message that is a line already; nobody waits until it is read."""
        self._outbox.put(line)

    def kill(self) -> None:
        """End it, whatever it does."""
        self._process.kill()

    def end(self) -> None:
        """Let it end."""
        self._outbox.end()

    def wait(self) -> None:
        """Wait until it has ended; kill it if it does not."""
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._outbox.join()
        self._reader.join()

    def _write(self, lines: bytes) -> None:
        with suppress(OSError):  # that it has gone is heard
            _of(self._process.stdin).write(lines)
            _of(self._process.stdin).flush()

    def _close(self) -> None:
        with suppress(OSError):  # it has gone with a part of a message unread
            _of(self._process.stdin).close()

    def _read(self, hear: Callable[[bytes], None], gone: Callable[[str], None]) -> None:
        """Pass on what it says until it has gone."""
        with _of(self._process.stdout) as stream:
            for line in stream:
                if line.endswith(b"\n"):  # a kill may cut one short
                    hear(line)
        code = self._process.wait()
        self._errors.join()
        gone(self._how(code))

    def _how(self, code: int) -> str:
        """Return how it ended, in words."""
        words = f"exit code {code}"
        if code < 0:
            words = f"signal {signal.Signals(-code).name}"
            words += ", as the system does where memory is short" if -code == signal.SIGKILL else ""
        return words + (f"; it said: {self._last[-1]}" if self._last and code > 0 else "")

    def _read_errors(self) -> None:
        with _of(self._process.stderr) as stream:
            for line in stream:
                self._last.append(line.decode(errors="replace").rstrip())


class Outbox:
    """Lines on their way to a replica: nobody waits until they are read, and those that wait go together.

    Args:
        send: takes some lines.
        close: is called last.
    """

    def __init__(self, send: Callable[[bytes], None], close: Callable[[], None] = lambda: None) -> None:
        self._send, self._close = send, close
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def put(self, line: bytes) -> None:
        """Send a line."""
        self._lines.put(line)

    def end(self) -> None:
        """Send what is there, and close."""
        self._lines.put(None)

    def join(self) -> None:
        """Wait until it has closed."""
        self._thread.join()

    def _run(self) -> None:
        is_over = False
        while not is_over:
            lines = [self._lines.get()]
            with suppress(queue.Empty):
                while lines[-1] is not None:
                    lines.append(self._lines.get_nowait())
            is_over = lines[-1] is None
            self._send(b"".join(line for line in lines if line is not None))
        self._close()


def _of(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None, "all three are pipes"
    return stream


def threads_for(cores: int) -> str:
    """Return how many threads so many cores get: one each, or fewer where the user says so."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return str(min(cores, int(asked)) if asked.isdecimal() and int(asked) > 0 else cores)
