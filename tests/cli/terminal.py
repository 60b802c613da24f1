"""A command at a real terminal, and a server that says what a test wants, so that nothing heavy is imported."""

from __future__ import annotations

import codecs
import json
import os
import pty
import select
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.command import hear_signals

_PATIENCE_SECONDS = 60
"""After which a test that waits for a text fails instead of hanging."""


class Terminal:
    """`flowinfer` at a terminal of its own."""

    def __init__(self, *arguments: str, cwd: Path, **environment: str) -> None:
        self._master, slave = pty.openpty()
        command = [sys.executable, "-m", "flowinfer", *arguments]
        env = {name: value for name, value in os.environ.items() if name not in ("CI", "NO_COLOR")}
        env |= {"TERM": "xterm-256color", "COLUMNS": "200", "INPUTRC": os.devnull, **environment}
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, cwd=cwd, env=env, preexec_fn=_own_terminal
        )
        os.close(slave)
        self._shown = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._master, text.encode())

    def interrupt(self) -> None:
        """Press Ctrl-C once the program sleeps.

        What edits a line loses an interrupt that falls between a key and its wait for the next one: a person presses
        again, a test that pressed again might do so twice.
        """
        status = Path(f"/proc/{self.process.pid}/stat")
        end = time.monotonic() + _PATIENCE_SECONDS
        while status.exists() and status.read_text().rpartition(")")[2].split()[0] != "S":
            assert time.monotonic() < end, "it never sleeps"
            time.sleep(0.01)
        self.type("\x03")

    def until(self, text: str) -> str:
        """Wait until a text is shown; return what was shown up to its end and not yet returned."""
        end = time.monotonic() + _PATIENCE_SECONDS
        while text not in self._shown:
            assert select.select([self._master], [], [], max(0, end - time.monotonic()))[0], self._shown
            try:
                self._shown += self._decoder.decode(os.read(self._master, 65536))
            except OSError:  # it has ended
                raise AssertionError(self._shown) from None
        found, self._shown = self._shown[: (cut := self._shown.index(text) + len(text))], self._shown[cut:]
        return found.replace("\r\n", "\n")

    def ended(self) -> int:
        """Wait for the end; return the exit code."""
        try:
            while os.read(self._master, 65536):
                pass
        except OSError:
            pass
        os.close(self._master)
        with self.process:
            return self.process.wait()


def _own_terminal() -> None:
    hear_signals()
    os.setsid()
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Echo(ThreadingHTTPServer):
    """Answers a question with itself in pieces of three characters; `endless` until the client goes."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies: list[dict[str, Any]] = []

    @property
    def address(self) -> str:
        """Return where it listens."""
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:  # a client that goes
        """Say nothing."""


class _Handler(BaseHTTPRequestHandler):
    server: Echo

    def do_GET(self) -> None:
        models = {"data": [{"id": "echo"}, {"id": "other"}]}
        self._begin(200 if self.path == "/v1/models" else 404)
        self.wfile.write(json.dumps(models).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        text = body["messages"][-1]["content"]
        self._begin(200)
        self._tell({"content": "", "reasoning_content": "[first]\nhm\n\n"})
        while text == "endless":
            self._tell({"content": "on and "})
        for begin in range(0, len(text), 3):
            self._tell({"content": text[begin : begin + 3]})
        self._tell({}, "stop")
        self.wfile.write(b"data: [DONE]\n\n")

    def _begin(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Connection", "close")
        self.end_headers()

    def _tell(self, delta: dict[str, str], reason: str | None = None) -> None:
        data = {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
        self.wfile.write(f"data: {json.dumps(data)}\n\n".encode())

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""
