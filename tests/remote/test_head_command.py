"""`flowinfer head` as a user meets it: a head in a process of its own, and what is wrong told in a line."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flowinfer.backends.hf import HfModel
from tests.command import flowinfer, hear_signals
from tests.remote.conftest import Serve, holding

KEY = "pewter-lantern-2208-moss"
DATA = ("--dataset", "ceval", "--limit", "4", "--set", "max_tokens=8", "--quiet", "--json")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "decoding"), [((), ""), (("--direct",), "[temperature=0.8]")], ids=["candidates", "beside, by gloo"]
)
def test_a_flow_over_a_head_of_another_process_is_judged_as_one_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], decoding: str
) -> None:
    environment = {**os.environ, "HEAD_KEY": KEY}
    command = [sys.executable, "-m", "flowinfer", "head", "Qwen", "--zoo", "lab", "--listen", "127.0.0.1:0"]
    monkeypatch.setenv("HEAD_KEY", KEY)
    with subprocess.Popen(
        [*command, "--key-env", "HEAD_KEY", *options], stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stderr is not None
        ready = next(found for line in process.stderr if (found := re.match(r"ready: (\S+)", line)))
        block = f'{{ device="{ready[1]}" api_key_env="HEAD_KEY" }}'
        (tmp_path / "far.flow").write_text(
            f'model Qwen = "qwen" {block}\nYi -> (Qwen | Ds){decoding}\n', encoding="utf-8"
        )
        (tmp_path / "here.flow").write_text(f"Yi -> (Qwen | Ds){decoding}\n", encoding="utf-8")
        found = {
            name: flowinfer("exec", f"{name}.flow", "--zoo", "lab", "--out", name, *DATA, cwd=tmp_path)
            for name in ("far", "here")
        }
        process.send_signal(signal.SIGINT)
        told = process.stderr.read()
        assert process.wait() == 0 and "has come" in told and told.endswith("\nstopped\n")
    assert {done.returncode for done in found.values()} == {0}, found
    far, here = (json.loads(found[name].stdout) for name in ("far", "here"))
    assert (far["accuracy"], far["n"]) == (here["accuracy"], here["n"])
    assert texts(tmp_path / "far") == texts(tmp_path / "here")
    written = "".join(path.read_text("utf-8") for path in (tmp_path / "far").rglob("*") if path.is_file())
    assert KEY not in written + told


@pytest.mark.slow
def test_a_server_whose_head_answers_nothing_says_what_it_waits_for_and_ends_at_the_second_signal(
    tmp_path: Path, models: dict[str, HfModel]
) -> None:
    door = holding(models["A"])
    _, port = door.listen("127.0.0.1", 0)
    threading.Thread(target=door.serve, daemon=True).start()
    far_flow(tmp_path, port)
    silent, asked = door._head, threading.Event()
    assert silent is not None
    answer = silent.answer

    def noted(*arguments: Any) -> Any:
        asked.set()
        return answer(*arguments)

    silent.answer = noted  # type: ignore[method-assign]
    command = [sys.executable, "-m", "flowinfer", "serve", "a.flow", "--zoo", "lab", "--port", "0"]
    with (
        silent._turn,
        subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=hear_signals) as process,
    ):
        assert process.stderr is not None
        asked.wait()
        process.send_signal(signal.SIGINT)
        told = next(line for line in process.stderr if line.startswith("stopping as soon as "))
        process.send_signal(signal.SIGINT)
        assert process.wait() == 0, told
    door.close()


@contextmanager
def head(*options: str, port: int = 0) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Yield a head of a process of its own, and its port."""
    command = [sys.executable, "-m", "flowinfer", "head", "Qwen", "--zoo", "lab", "--listen", f"127.0.0.1:{port}"]
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        port = int(next(found[1] for line in process.stderr if (found := re.match(r"ready: .*:(\d+)", line))))
        reading = threading.Thread(target=process.stderr.read)
        reading.start()
        yield process, port
        process.kill()
        reading.join()


@pytest.mark.slow
def test_a_head_that_is_stopped_while_it_sends_whole_distributions_ends_well(tmp_path: Path) -> None:
    flow = 'model Q = "qwen" {{ device="127.0.0.1:{}" }}\n(Q | Ds)[fuse=geometric, max_tokens=64]\n'
    with head("--direct") as (process, port):
        (tmp_path / "far.flow").write_text(flow.format(port), encoding="utf-8")
        command = [sys.executable, "-m", "flowinfer", "exec", "far.flow", "--zoo", "lab", "--out", "far", *DATA[:2]]
        with subprocess.Popen([*command, "--batch", "1", "--no-cache", "--quiet"], cwd=tmp_path) as client:
            while not any(path.stat().st_size for path in (tmp_path / "far").rglob("samples.jsonl")):
                assert client.poll() is None
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            assert process.wait() == 0
            client.kill()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "decoding"), [((), ""), (("--direct",), "[temperature=0.8]")], ids=["candidates", "beside, by gloo"]
)
def test_a_run_whose_head_is_killed_goes_on_later_and_is_a_whole_one(
    tmp_path: Path, options: tuple[str, ...], decoding: str
) -> None:
    data = ("--dataset", "ceval", "--limit", "16", "--set", "max_tokens=24", "--quiet")
    command = [sys.executable, "-m", "flowinfer", "exec", "far.flow", "--zoo", "lab", "--out", "far", *data]
    command += ["--batch", "1"]
    flow = f"Yi -> (Qwen | Ds){decoding}\n"
    with head(*options) as (process, port):
        block = f'{{ device="127.0.0.1:{port}" }}'
        (tmp_path / "far.flow").write_text(f'model Qwen = "qwen" {block}\n{flow}', encoding="utf-8")
        with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as running:
            while not any(path.stat().st_size for path in tmp_path.glob("far/*/samples.jsonl")):
                assert running.poll() is None
                threading.Event().wait(0.01)
            process.kill()
            _, told = running.communicate()
    assert running.returncode == 3 and f"head 'Qwen' at 127.0.0.1:{port} is lost" in told
    found = re.search(r"--resume (\S+)", told)
    assert found and 0 < len(texts(tmp_path / "far")) < 16
    with head(*options, port=port):
        resumed = flowinfer("exec", "--out", "far", "--resume", found[1], "--quiet", cwd=tmp_path)
    (tmp_path / "here.flow").write_text(flow, encoding="utf-8")
    here = flowinfer("exec", "here.flow", "--zoo", "lab", "--out", "here", *data, cwd=tmp_path)
    assert (resumed.returncode, here.returncode) == (0, 0), resumed.stderr
    assert texts(tmp_path / "far") == texts(tmp_path / "here") and len(texts(tmp_path / "far")) == 16


def texts(out: Path) -> dict[str, list[str]]:
    (run,) = (path for path in out.iterdir() if path.is_dir())
    traces = [json.loads(line)["trace"] for line in (run / "samples.jsonl").read_text("utf-8").splitlines()]
    return {trace["question_id"]: [step["text"] for step in trace["steps"]] for trace in traces}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("Qwenn", "--zoo", "lab"), "no model 'Qwenn'"),
        (("Qwen", "--zoo", "lab", "--listen", "7070"), "--listen 7070: expected HOST:PORT"),
        (("Qwen", "--zoo", "lab", "--listen", "::1:7070"), "an IPv6 address stands in brackets: [::1]:7070"),
        (("./a.flow",), "'./a.flow' is a flow's file; a head is one model"),
        (("a.json",), "'a.json' is a file, and no model's"),
        (("Qwen", "--zoo", "lab", "--listen", "0.0.0.0:7070"), "nobody would have to show a key"),
        (("Qwen", "--zoo", "lab", "--key-env", "NO_SUCH_KEY"), "the environment variable NO_SUCH_KEY holds no key"),
        (("./nothing/here",), "no file or folder './nothing/here'"),
        (("nothing.gguf",), "no file or folder 'nothing.gguf'"),
        (("hf:nothing",), "names no model of the hub"),
        (("Qwen", "--zoo", "lab", "--dtype", "float16"), "'Qwen' is a name of the zoo's"),
    ],
)
def test_wrong_input_is_told_before_anything_is_loaded(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    for name in ("a.flow", "a.json"):
        (tmp_path / name).write_text("Qwen\n", encoding="utf-8")
    done = flowinfer("head", *arguments, cwd=tmp_path)
    assert done.returncode in (2, 3) and words in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ('{ device="gpu2" }', "auto, cpu, cuda, cuda:N, or HOST:PORT of a head elsewhere"),
        ("{ backend=remote }", "needs the HOST:PORT of a head"),
        ('{ backend=remote base_url="http://gpu2:7070" }', "needs the HOST:PORT of a head"),
        ('{ backend=remote base_url="gpu2:7070" dtype=float32 }', "dtype"),
        ('{ device="gpu2:7070" backend=gguf }', "device"),
    ],
)
def test_flows_that_name_heads_wrongly_are_refused(tmp_path: Path, block: str, words: str) -> None:
    (tmp_path / "a.flow").write_text(f'model Far = "owner/name" {block}\n(Far | Qwen)\n', encoding="utf-8")
    done = flowinfer("check", "a.flow", "--zoo", "lab", cwd=tmp_path)
    assert done.returncode == 1 and words in done.stdout + done.stderr and "Traceback" not in done.stderr


def far_flow(folder: Path, port: int, **options: str) -> None:
    block = " ".join(f'{key}="{value}"' for key, value in ({"device": f"127.0.0.1:{port}"} | options).items())
    (folder / "a.flow").write_text(f'model Far = "A" {{ {block} }}\n(Far | Qwen)\n', encoding="utf-8")


def test_plan_says_of_a_head_that_answers_what_it_is_and_what_a_round_waits_for(
    tmp_path: Path, models: dict[str, HfModel], serve: Serve
) -> None:
    far = serve(models["A"])
    far_flow(tmp_path, far._port)
    done = flowinfer("plan", "a.flow", "--zoo", "lab", cwd=tmp_path)
    assert f"127.0.0.1:{far._port} answers: 'A' on cpu, reads" in done.stdout, done.stdout + done.stderr
    assert re.search(r"s1  a round of 64 rows moves 1.3 KB there, 32.8 KB back .*network [\d.]+ ms, so", done.stdout)
    told = json.loads(flowinfer("plan", "a.flow", "--zoo", "lab", "--json", cwd=tmp_path).stdout)["elsewhere"]["Far"]
    assert told["about"]["ref"] == "A" and 0 < told["round_trip_seconds"] < 60 and told["bytes_per_second"] > 0


def test_plan_says_of_a_head_that_is_not_there_what_usual_ways_would_cost(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    far_flow(tmp_path, port)
    done = flowinfer("plan", "a.flow", "--zoo", "lab", "--set", "temperature=1", cwd=tmp_path)
    assert f"127.0.0.1:{port} cannot be reached: connection refused" in done.stdout, done.stdout + done.stderr
    assert "38.4 MB back (whole distributions)" in done.stdout
    assert "50 ms away: 357 ms, so at most 179 tokens/s where no drafts are accepted" in done.stdout
    far_flow(tmp_path, port, api_key_env="NO_SUCH_KEY")
    assert "the variable NO_SUCH_KEY is not set" in flowinfer("plan", "a.flow", "--zoo", "lab", cwd=tmp_path).stdout
    assert flowinfer("graph", "a.flow", "--zoo", "lab", cwd=tmp_path).returncode == 0


def test_a_key_that_is_not_set_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "a.flow").write_text(
        'model Far = "A" { device="127.0.0.1:1" api_key_env="NO_SUCH_KEY" }\nQwen -> (Ds | Far)\n', encoding="utf-8"
    )
    done = flowinfer("exec", "a.flow", "--zoo", "lab", "--prompt", "3 + 4 = ?", cwd=tmp_path)
    assert done.returncode == 3 and "the variable NO_SUCH_KEY is not set" in done.stderr
    assert "loading Qwen" not in done.stderr and "loading Ds" not in done.stderr


def test_an_address_that_is_taken_is_told_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        done = flowinfer("head", "Qwen", "--zoo", "lab", "--listen", listen, cwd=tmp_path)
    assert done.stderr.endswith(
        f"error: cannot listen at {listen}: address already in use\n  = help: another port, or 0\n"
    )
    assert done.stderr.count(listen) == 1
