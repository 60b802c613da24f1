"""The command in a process of its own, over real sockets, and the clients that people use."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from flowinfer.cli.serve import checked_flows
from flowinfer.errors import LoadError
from flowinfer.machine import this_machine
from flowinfer.serving.bodies import flow_named
from flowinfer.serving.flows import served
from flowinfer.serving.problems import Problem
from tests.command import flowinfer, hear_signals
from tests.conftest import ROOT

ASK = [{"role": "user", "content": "3 + 4 = ?"}]


class Process:
    """A server in a process of its own."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "flowinfer", "serve", *arguments, "--zoo", "lab", "--port", "0"]
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, preexec_fn=hear_signals
        )
        self.said: list[str] = []
        assert self.process.stderr
        for line in self.process.stderr:
            self.said.append(line.rstrip("\n"))
            if line.startswith("ready: "):
                self.address = line.split()[1]
                return
        self.ended()
        raise AssertionError("\n".join(self.said))

    @property
    def port(self) -> int:
        """Return its port."""
        return int(self.address.rpartition(":")[2])

    def chat(self, **body: Any) -> httpx.Response:
        """Ask for a chat's next turn."""
        whole = {"model": "s2p", "messages": ASK, "max_tokens": 8} | body
        return httpx.post(f"{self.address}/v1/chat/completions", json=whole, timeout=None)

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def ended(self) -> int:
        """Wait for its end; return its exit code."""
        with self.process:
            return self.process.wait()


@pytest.fixture(scope="module")
def server() -> Iterator[Process]:
    process = Process(str(ROOT / "pipelines" / "s2p.flow"), "fast=pi")
    yield process
    process.signal(signal.SIGTERM)
    assert process.ended() == 0


@pytest.mark.slow
@pytest.mark.parametrize("keys", [None, "one-of-the-keys, another-of-the-keys"], ids=["no key", "keys"])
def test_the_lines_to_try_work_when_they_are_pasted(keys: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    pytest.importorskip("openai", reason="openai is not installed: pip install 'flowinfer[clients]'")
    if keys:
        monkeypatch.setenv("KEYS_OF_THE_TEST", keys)
    process = Process("fast=pi", *(["--api-key-env", "KEYS_OF_THE_TEST"] if keys else []))
    assert process.process.stderr
    curl, python = (process.process.stderr.readline() for _ in range(2))
    pasted = subprocess.run(curl, shell=True, capture_output=True, text=True, check=True)
    answer = json.loads(pasted.stdout)["choices"][0]["message"]["content"]
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    pasted = subprocess.run(python, shell=True, capture_output=True, text=True, check=True)
    assert pasted.stdout == answer + "\n"
    process.signal(signal.SIGTERM)
    assert process.ended() == 0


def test_flows_that_cannot_run_here_are_left_out_of_a_folder_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "shared.flow").write_text('prompt words = "{question}"')
    (tmp_path / "here.flow").write_text('import "shared.flow"\ndefaults { name="org/here" }\nQwen[prompt=words]')
    (tmp_path / "far.flow").write_text('model Far = "org/far" { device="cuda:7" }\nFar')
    heard: dict[str, str] = {}
    flows = checked_flows([str(tmp_path)], "lab", None)
    here, _ = served(flows, this_machine(), heard.__setitem__)
    assert [flow.name for flow in here] == ["org/here"]
    why = "model 'Far' is declared on cuda:7, which this machine does not have"
    assert heard == {"far": why}
    for name, told in (("far", f"the model 'far' is not served: {why}"), ("fra", "the model 'fra' does not exist; ")):
        with pytest.raises(Problem) as refused:
            flow_named(name, {flow.name: flow for flow in here}, heard)
        assert refused.value.status == 404 and refused.value.message.startswith(told)
    with pytest.raises(LoadError, match=why):
        served({"far": flows["far"]}, this_machine(), heard.__setitem__)


def test_an_answer_over_a_socket_is_that_of_exec(server: Process, tmp_path: Path) -> None:
    answered = server.chat(max_tokens=None).json()["choices"][0]["message"]["content"]
    told = flowinfer("exec", "s2p", "--prompt", "3 + 4 = ?", "--json", "--zoo", "lab", cwd=tmp_path)
    assert json.loads(told.stdout)["text"] == answered


@pytest.mark.slow
def test_a_data_set_run_against_a_server_has_the_folder_that_it_has_here(server: Process, tmp_path: Path) -> None:
    """All but seconds, and what they are made of."""
    asked = ("exec", "s2p", "--dataset", "gsm8k", "--limit", "4", "--zoo", "lab", "--json", "--no-cache")
    here = flowinfer(*asked, "--out", "here", cwd=tmp_path)
    there = flowinfer(*asked, "--out", "there", "--url", server.address, cwd=tmp_path)
    assert there.returncode == here.returncode == 0, there.stderr
    texts = {}
    for name in ("here", "there"):
        (folder,) = (tmp_path / name).iterdir()
        assert {path.name for path in folder.iterdir()} >= {"pipeline.flow", "plan.json", "run.json", "results.json"}
        lines = (folder / "samples.jsonl").read_text("utf-8").splitlines()
        records = {record["question"]["id"]: record for record in map(json.loads, lines)}
        texts[name] = {
            key: (record["score"], [(step["prompts"], step["text"]) for step in record["trace"]["steps"]])
            for key, record in records.items()
        }
        plan = json.loads((folder / "plan.json").read_text("utf-8"))
        placed = {name: one.pop("why") and one for name, one in plan["placements"].items()}  # free memory changes
        texts[name] |= {"plan": plan | {"placements": placed}, "flow": (folder / "pipeline.flow").read_text("utf-8")}
    assert texts["there"] == texts["here"]
    assert len(texts["here"]) == 4 + 2
    assert json.loads(there.stdout)["accuracy"] == json.loads(here.stdout)["accuracy"]


def test_a_conversation_with_a_server_has_its_traces(server: Process, tmp_path: Path) -> None:
    lines = "/set max_tokens=6\n3 + 4 = ?\n/trace\n/flow\n/flow s3p\n"
    done = flowinfer("chat", "s2p", "--url", server.address, cwd=tmp_path, stdin=lines)
    answer, *traced = done.stdout.split("\n")
    assert answer == server.chat(max_tokens=6).json()["choices"][0]["message"]["content"]
    assert [line.split()[1] for line in traced if line.startswith("==")] == ["s1", "s2"]
    assert traced[-3:] == ["* s2p", "  fast", ""]
    assert done.stderr == "error: the server has no flow 's3p'\n  = help: did you mean 's2p'?\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "max_tokens=5"], "the flow that is served as 's2p' is another: its steps, options or models differ"),
        (["--model", "s3p"], "the model 's3p' does not exist; did you mean 's2p'?"),
        (["--api-key-env", "NO_SUCH_VARIABLE"], "error: the environment variable NO_SUCH_VARIABLE holds no key"),
    ],
)
def test_a_server_that_cannot_answer_a_data_set_is_told(
    server: Process, options: list[str], message: str, tmp_path: Path
) -> None:
    asked = ("exec", "s2p", "--dataset", "gsm8k", "--limit", "2", "--zoo", "lab", "--url", server.address)
    done = flowinfer(*asked, *options, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--url", "http://127.0.0.1:9", "--dataset", "gsm8k"], 3, "error: the server at http://127.0.0.1:9 cannot be"),
        (["--url", "somewhere", "--dataset", "gsm8k"], 2, "error: --url 'somewhere': no address of a server"),
        (["--url", "http://x"], 2, "error: --url asks a server a data set's questions"),
        (["--model", "x", "--prompt", "y"], 2, "error: --model and --api-key-env say how to reach a server"),
    ],
)
def test_what_is_wrong_with_an_address_is_told(options: list[str], code: int, message: str, tmp_path: Path) -> None:
    done = flowinfer("exec", "s2p", "--zoo", "lab", "--limit", "1", *options, cwd=tmp_path)
    assert (done.returncode, message in done.stderr) == (code, True), done.stderr


def test_a_client_whose_connection_breaks_leaves_nothing(server: Process) -> None:
    body = json.dumps({"model": "fast", "messages": ASK, "max_tokens": 900, "temperature": 2, "stream": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    for sent in (head + body, head + body[:20], head[:30], b"", b"\x00\xff\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(sent)
            if sent == head + body:
                connection.recv(100)
    assert server.chat().status_code == 200
    metrics = httpx.get(f"{server.address}/metrics").text
    while "flowinfer_questions_under_way 0.0" not in metrics:
        metrics = httpx.get(f"{server.address}/metrics").text


KILLED = """
import socket, sys
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
connection.sendall(bytes.fromhex(sys.argv[2]))
if sys.argv[3] == "reads":
    connection.recv(1)
print("there", flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_clients_that_are_killed_in_any_state_leave_nothing(server: Process) -> None:
    """By SIGKILL: before a word, in the head, in the body, before the answer, in it, and while they listen."""

    def raw(**changes: Any) -> bytes:
        body = json.dumps({"model": "fast", "messages": ASK, "max_tokens": 900, "temperature": 2} | changes).encode()
        return f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body

    listens = b"GET /flowinfer/events HTTP/1.1\r\nHost: x\r\n\r\n"
    sent = [
        (b"", ""),
        (raw()[:30], ""),
        (raw()[:-20], ""),
        (raw(), ""),
        (raw(stream=True), "reads"),
        (listens, "reads"),
    ]
    before = server.chat().json()["choices"]
    clients = []
    for data, how in sent * 2:
        command = [sys.executable, "-c", KILLED, str(server.port), data.hex(), how]
        clients.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    for one in clients:
        assert one.stdout
        assert one.stdout.readline() == "there\n"
        one.kill()
        with one:
            pass
    while "flowinfer_questions_under_way 0.0" not in httpx.get(f"{server.address}/metrics").text:
        pass
    assert server.chat().json()["choices"] == before


@pytest.mark.slow
def test_memory_after_many_requests_is_that_after_a_few(server: Process) -> None:
    """`benchmarks/serve.py --memory 1000,10000` and `benchmarks/soak.py` ask more of it.

    Torch's own memory on a CPU comes and goes, by 17 % on a busy machine.
    """

    def resident() -> int:
        return int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1])

    async def ask(count: int) -> None:
        async with httpx.AsyncClient(timeout=None) as client:
            body = {"model": "fast", "messages": ASK, "max_tokens": 1}
            for _ in range(count // 16):
                replies = (client.post(f"{server.address}/v1/chat/completions", json=body) for _ in range(16))
                assert {reply.status_code for reply in await asyncio.gather(*replies)} == {200}

    asyncio.run(ask(320))
    few = resident()
    asyncio.run(ask(1600))
    assert resident() < 1.25 * few


@pytest.mark.slow
def test_a_thousand_idle_connections_and_slow_readers_hold_up_nobody(server: Process) -> None:
    body = json.dumps({"model": "s2p", "messages": ASK, "stream": True, "max_tokens": 64}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(1000)]
    slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(50)]
    try:
        for one in slow:
            one.sendall(head + body)
        assert server.chat().status_code == 200
    finally:
        for one in (*idle, *slow):
            one.close()


def test_openais_own_client_is_served(server: Process) -> None:
    openai = pytest.importorskip("openai", reason="openai is not installed: pip install 'flowinfer[clients]'")
    client = openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["s2p", "fast"]
    plain = client.chat.completions.create(model="s2p", messages=ASK, max_tokens=8, logprobs=True)
    assert plain.choices[0].finish_reason in ("stop", "length")
    assert plain.choices[0].logprobs.content[0].bytes
    assert plain.usage.total_tokens == plain.usage.prompt_tokens + plain.usage.completion_tokens
    options = {"include_usage": True}
    with client.chat.completions.create(
        model="s2p", messages=ASK, max_tokens=8, stream=True, stream_options=options
    ) as stream:
        chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == plain.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == plain.usage.completion_tokens
    with client.chat.completions.create(model="s2p", messages=ASK, max_tokens=500, stream=True) as stream:
        next(iter(stream))  # and it stops
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="s2q", messages=ASK)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="s2p", messages=ASK, n=2)
    assert refused.value.param == "n"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(
            model="s2p", messages=[{"role": "user", "content": "seven " * 3000}], stream=True
        )
    assert long.value.code == "context_length_exceeded"
    completed = client.completions.create(model="s2p", prompt=["3 + 4 = ?", "5 + 6 = ?"], max_tokens=4)
    assert len(completed.choices) == 2


def test_a_server_that_is_stopped_finishes_what_is_under_way() -> None:
    process = Process("s2p", "--drain", "30")
    with httpx.stream(
        "POST",
        f"{process.address}/v1/chat/completions",
        json={"model": "s2p", "messages": ASK, "stream": True},
        timeout=None,
    ) as reply:
        lines = reply.iter_lines()
        next(lines)
        process.signal(signal.SIGTERM)
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert process.ended() == 0


@pytest.mark.slow
def test_a_second_signal_stops_a_server_at_once_with_an_error_for_who_still_waits() -> None:
    process = Process("one=" + str(ROOT / "pipelines" / "pi.flow"), "--drain", "600")
    body = {"model": "one", "messages": ASK, "stream": True, "max_tokens": 900, "temperature": 2}
    with httpx.stream("POST", f"{process.address}/v1/chat/completions", json=body, timeout=None) as reply:
        lines = reply.iter_lines()
        next(lines)
        process.signal(signal.SIGINT)
        while httpx.get(f"{process.address}/ready").status_code == 200:
            pass
        process.signal(signal.SIGINT)
        last = [line for line in lines if line][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["message"] == "the server was stopped"
    assert process.ended() == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nobody.flow"], 2, "error: cannot read 'nobody.flow'"),
        (["s2p", "s2p"], 2, "error: two flows are named 's2p'\n  = help: name one of them: other=s2p"),
        (["s2p", "--max-body", "many"], 2, "error: --max-body 'many': expected a size such as 4MiB"),
        (
            ["s2p", "--api-key-env", "NO_SUCH_VARIABLE"],
            2,
            "error: the environment variable NO_SUCH_VARIABLE holds no key",
        ),
        (["s2p", "--api-key-file", "none.txt"], 2, "error: --api-key-file none.txt: cannot be read"),
        (["./=s2p"], 2, "error: s2p cannot be served as './'"),
        (["s2p", "--host", "256.0.0.1"], 3, "error: cannot listen at 256.0.0.1:8000"),
        (
            ["s2p", "--host", "256.0.0.1"],
            3,
            "warning: anybody who reaches 256.0.0.1:8000 can use this server; --api-key",
        ),
    ],
)
def test_what_cannot_be_served_is_told_in_a_line(arguments: list[str], code: int, message: str, tmp_path: Path) -> None:
    done = flowinfer("serve", *arguments, "--zoo", "lab", cwd=tmp_path)
    assert done.returncode == code
    assert message in done.stderr


def test_a_port_that_is_taken_is_told(server: Process, tmp_path: Path) -> None:
    done = flowinfer("serve", "s2p", "--zoo", "lab", "--port", str(server.port), cwd=tmp_path)
    assert done.returncode == 3
    assert f"cannot listen at 127.0.0.1:{server.port}: address already in use" in done.stderr


def test_a_flow_that_asks_for_what_only_a_data_set_has_cannot_be_served(tmp_path: Path) -> None:
    (tmp_path / "odd.flow").write_text('Qwen[prompt="{subject}: {question}"]')
    done = flowinfer("serve", "odd.flow", "--zoo", "lab", cwd=tmp_path)
    assert done.returncode == 2
    assert "'odd' cannot be served: its prompts show {subject}, which only a data set has" in done.stderr
