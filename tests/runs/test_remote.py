"""A data set asked of a server that goes in the middle, and how it goes on."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from flowinfer.language.check import check
from flowinfer.machine import this_machine
from flowinfer.planning.placement import ready
from flowinfer.planning.plain import to_json
from flowinfer.results import StepResult, Trace
from flowinfer.runs import remote
from flowinfer.runs.remote import message_of, open_client
from tests.command import flowinfer, running

ASK = ("exec", "-e", "Qwen", "--zoo", "lab", "--dataset", "gsm8k", "--limit", "5", "--batch", "1", "-q")


class Server(ThreadingHTTPServer):
    """Answers so many questions with 7, then breaks every connection off."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.left = 2
        self.keys: list[str | None] = []
        self.busy: list[str] = []
        """How long it says that it is, answer after answer."""
        plan = ready(check("Qwen", zoo="lab"), this_machine())
        self.said = {"flowinfer": {"plan": to_json(plan)}}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing."""


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self._answer(self.server.said)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.keys.append(self.headers["Authorization"])
        self.server.left -= 1
        if self.server.busy:
            self.send_response(503)
            self.send_header("Retry-After", self.server.busy.pop())
            self.end_headers()
            return
        if self.server.left < 0:
            self.connection.close()
            return
        told = {"text": "7", "passed_on": "7", "prompts": {"n1": "?"}, "tokens": 1, "seconds": 0.1}
        step = StepResult(step="s1", finish_reason="eos", **told)
        trace = Trace(question_id=asked["question"]["id"], answer="7", finish_reason="eos", seconds=0.1, steps=(step,))
        self._answer(trace.model_dump(mode="json"))

    def _answer(self, data: Any) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(data).encode())

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with running(Server()) as server:
        yield server


def test_a_run_whose_server_goes_is_gone_on_with_there(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-abcdefgh")
    url = f"http://127.0.0.1:{server.server_port}"
    done = flowinfer(*ASK, "--url", url, "--api-key-env", "MY_KEY", cwd=tmp_path)
    assert done.returncode == 3
    assert done.stderr.startswith(f"error: the server at {url} cannot be reached")
    (run,) = (tmp_path / "runs").iterdir()
    assert f"= help: mend it, and go on with: flowinfer exec --resume {run.name}\n" in done.stderr
    assert len((run / "samples.jsonl").read_text("utf-8").splitlines()) == 2
    server.left = 9
    done = flowinfer("exec", "--resume", "latest", "-q", "--json", cwd=tmp_path)
    assert (done.returncode, json.loads(done.stdout)["n"]) == (0, 5)
    assert server.left == 9 - 3
    assert set(server.keys) == {"Bearer sk-abcdefgh"}


def test_a_password_in_a_servers_address_is_not_kept_and_asked_for_again(server: Server, tmp_path: Path) -> None:
    url = f"http://me:secret-word@127.0.0.1:{server.server_port}"
    done = flowinfer(*ASK, "--url", url, cwd=tmp_path)
    assert done.returncode == 3
    (run,) = (tmp_path / "runs").iterdir()
    assert "secret-word" not in done.stderr + "".join(path.read_text("utf-8") for path in run.iterdir())
    done = flowinfer("exec", "--resume", run.name, cwd=tmp_path)
    assert (done.returncode, done.stderr.split("\n")[0]) == (
        2,
        "error: the server's address was kept without its password",
    )


def test_a_busy_server_is_asked_again_when_it_says_by_a_number_or_a_date(server: Server, tmp_path: Path) -> None:
    server.left, server.busy = 99, ["0", "Wed, 31 Dec 1969 23:00:00 GMT"]
    url = f"http://127.0.0.1:{server.server_port}"
    done = flowinfer(*ASK, "--url", url, cwd=tmp_path)
    assert (done.returncode, server.left, server.busy) == (0, 99 - 5 - 2, [])


def test_a_connection_that_is_quiet_for_long_is_asked_after(server: Server) -> None:
    """After a sleep of this machine the other side may be gone without a word."""
    with (
        open_client(remote.Server(f"http://127.0.0.1:{server.server_port}")) as client,
        client.stream("GET", "/") as reply,
    ):
        connection = reply.extensions["network_stream"].get_extra_info("socket")
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


def test_a_page_of_a_server_that_is_not_ours_is_told_on_one_line() -> None:
    page = "<!DOCTYPE HTML>\n<html>\n  <head><title>Not found</title></head>\n  <p>no\n  file</p>\n</html>"
    assert message_of(httpx.Response(404, text=page)) == "HTTP 404: Not found no file"
