"""Replicas as processes, as a user meets them: one process's answers, whoever is killed; each imports torch."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from flowinfer.runs.store import info
from tests.command import flowinfer
from tests.endpoint import Stub, stub
from tests.runs.processes import FLOW, answers, begun, num_answers, said, wait_for

__all__ = ["stub"]
pytestmark = pytest.mark.slow
RUN = ("exec", *FLOW, "--no-cache", "--replicas", "2")
SWEEP = ("sweep", "--models", "Yi,Qwen", "--zoo", "lab", "--datasets", "ceval", "--limit", "12", "--replicas", "2")


def replicas_of(process: subprocess.Popen[str]) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_two_replicas_answer_as_one_process_and_the_folder_says_that_there_were_two(
    work: Path, alone: dict[str, object]
) -> None:
    done = flowinfer(*RUN, cwd=work)
    assert done.returncode == 0, done.stderr
    assert said(work) == alone
    assert info(next((work / "runs").iterdir())).said("replicas") == 2
    assert "replica 1: " in done.stderr and "loading Yi on cpu of replica 2" in done.stderr


def test_a_replica_that_is_killed_is_started_again_and_nothing_is_lost(work: Path, alone: dict[str, object]) -> None:
    process = begun(work, *RUN, "--batch", "2")
    wait_for(lambda: num_answers(work) >= 3, process)
    os.kill(replicas_of(process)[0], signal.SIGKILL)
    _, told = process.communicate()
    assert process.returncode == 0, told
    assert said(work) == alone and num_answers(work) == len(alone)
    assert "has ended: signal SIGKILL" in told and "it is started again, and nothing is lost" in told


@pytest.mark.parametrize(("how", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_run_that_is_ended_leaves_no_process_and_goes_on(
    work: Path, alone: dict[str, object], how: signal.Signals, code: int
) -> None:
    process = begun(work, *RUN, "--batch", "2")
    wait_for(lambda: num_answers(work) >= 3, process)
    replicas = replicas_of(process)
    process.send_signal(how)
    process.communicate()
    assert process.returncode == code and len(replicas) == 2
    wait_for(lambda: not any(map(is_alive, replicas)))
    assert 3 <= num_answers(work) < len(alone)
    done = flowinfer("exec", "--resume", cwd=work)
    assert done.returncode == 0, done.stderr
    assert said(work) == alone and num_answers(work) == len(alone)


def test_what_no_replica_can_load_is_told_in_one_line(work: Path, toy_zoo: Path) -> None:
    broken = shutil.copytree(toy_zoo.parent / "qwen", work / "broken")
    (broken / "tokenizer.json").write_text("{}", encoding="utf-8")
    (work / "zoo.toml").write_text('[models.Broken]\nref = "broken"\n', encoding="utf-8")
    items = [json.dumps({"id": f"q{number}", "question": "?", "answer": "4", "kind": "exact"}) for number in range(4)]
    (work / "items.jsonl").write_text("\n".join(items), encoding="utf-8")
    done = flowinfer(
        *("exec", "-e", "Broken", "--zoo", "zoo.toml", "--dataset", "items.jsonl", "--replicas", "2"), cwd=work
    )
    assert done.returncode == 3
    (told,) = [line for line in done.stderr.split("\n") if line.startswith("error: ")]
    assert re.match("error: replica [12]: model 'Broken'", told)
    assert "Traceback" not in done.stderr and "the folder needs config.json" in done.stderr


def test_an_endpoint_answers_replicas_and_what_it_tells_of_its_key_is_in_no_file(
    work: Path, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the replicas read the key, and they write the answers."""
    monkeypatch.setenv("FAR_KEY", "t0ken-of-far-away")
    model = f'[models.A]\nref = "m"\nbackend = "openai"\nbase_url = "{stub.url}"\napi_key_env = "FAR_KEY"\n'
    (work / "zoo.toml").write_text(model, encoding="utf-8")
    items = [json.dumps({"question": f"q{number}", "answer": "7", "kind": "gsm8k"}) for number in range(5)]
    (work / "items.jsonl").write_text("\n".join(items), encoding="utf-8")
    stub.replies = [(200, json.dumps({"choices": [{"message": {"content": "t0ken-of-far-away #### 7"}}]}))]
    asks = ("-e", 'A[prompt="{question}"]', "--zoo", "zoo.toml", "--dataset", "items.jsonl", "--no-cache")
    done = flowinfer("exec", *asks, "--replicas", "2", "--json", cwd=work)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["correct"] == 5 == len(stub.asked)
    assert {one["Authorization"] for one in stub.headers} == {"Bearer t0ken-of-far-away"}
    assert not any(b"t0ken" in path.read_bytes() for path in (work / "runs").rglob("*") if path.is_file())


def test_a_sweep_of_which_a_replica_is_killed_answers_as_one_process(work: Path) -> None:
    whole = json.loads(flowinfer(*SWEEP[:-2], "--no-cache", "--json", cwd=work).stdout)
    process = begun(work, *SWEEP, "--out", "killed")
    wait_for(lambda: len(list((work / "cache" / "steps").rglob("*.json"))) >= 5, process)
    os.kill(replicas_of(process)[1], signal.SIGKILL)
    _, told = process.communicate()
    assert process.returncode == 0, told
    (folder,) = (work / "killed").iterdir()
    assert answers(folder) == answers(work / whole["folder"])
