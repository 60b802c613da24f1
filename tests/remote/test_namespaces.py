"""A head in a network of its own, behind a cable whose packets are late, lost, and vanish while it is cut."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from flowinfer.engine.base import Observer
from flowinfer.engine.execute import execute
from flowinfer.engine.models import ModelPool
from flowinfer.language.check import check
from flowinfer.machine import this_machine
from flowinfer.planning.placement import ready
from flowinfer.remote.client import RemoteModel
from flowinfer.results import Question
from tests.remote.cable import Cable

pytestmark = pytest.mark.slow
SPACE, HERE, THERE, HOST = "flowinfer-head", "fi-here", "fi-there", "10.231.77.2"
KEY = "pewter-lantern-2208-moss"
QUESTIONS = [Question(id=f"q{k}", question=f"{k} + 4 = ?", reference="") for k in range(6)]


def ip(*arguments: str, program: str = "ip") -> bool:
    """Return whether a command of the network's tools could be done."""
    return subprocess.run([program, *arguments], capture_output=True).returncode == 0


@pytest.fixture
def cable() -> Iterator[Cable]:
    """Yield a cable to another network on this machine."""
    if not (shutil.which("ip") and os.geteuid() == 0 and ip("netns", "add", SPACE)):
        pytest.skip("two networks on one machine need `ip netns`, as root")
    try:
        made = Cable((HERE, THERE))
    except OSError as error:
        ip("netns", "delete", SPACE)
        pytest.skip(f"this machine makes no TUN devices: {error}")
    try:
        assert all(
            ip(*step)
            for step in (
                ("link", "set", THERE, "netns", SPACE),
                ("address", "add", "10.231.77.1/30", "dev", HERE),
                ("link", "set", HERE, "up"),
                ("-n", SPACE, "address", "add", f"{HOST}/30", "dev", THERE),
                ("-n", SPACE, "link", "set", THERE, "up"),
            )
        )
        yield made
    finally:
        made.close()
        ip("netns", "delete", SPACE)


@pytest.fixture
def address(cable: Cable) -> Iterator[str]:
    """Yield where a head of that network listens."""
    command = ["ip", "netns", "exec", SPACE, sys.executable, "-m", "flowinfer", "head", "Qwen", "--zoo", "lab"]
    command += ["--listen", f"{HOST}:0", "--key-env", "HEAD_KEY"]
    environment = os.environ | {"HEAD_KEY": KEY}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        found = next((line for line in process.stderr if line.startswith("ready: ")), "")
        reading = threading.Thread(target=process.stderr.read)
        reading.start()
        try:
            told = re.match(r"ready: (\S+)", found)
            assert told, "the head did not start"
            yield told[1]
        finally:
            process.terminate()
            reading.join()


def answers(pool: ModelPool, block: str = "", **options: str) -> dict[str, str]:
    declared = f'model Qwen = "qwen" {block}\n' if block else ""
    plan = ready(check(f"{declared}(Qwen | Ds)", zoo="lab", overrides={"max_tokens": "12"} | options), this_machine())
    if block:
        pool.get(plan, "Qwen", Observer())
    return {trace.question_id: trace.answer for trace in execute(plan, QUESTIONS, batch=4, models=pool)}


def compared(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Assert that the head writes what it writes here."""
    monkeypatch.setenv("HEAD_KEY", KEY)
    far, near = ModelPool(), ModelPool()
    for options in ({}, {"temperature": "0.8"}):  # candidates, and whole distributions
        block = f'{{ device="{address}" api_key_env="HEAD_KEY" }}'
        assert answers(far, block, **options) == answers(near, **options)
    far.close()
    near.close()


def test_a_late_and_lossy_network_changes_no_text(cable: Cable, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """20 ms there and back, and one packet in fifty is lost."""
    cable.seconds, cable.loss = 0.01, 0.02
    compared(address, monkeypatch)
    assert cable.num_lost and cable.num_passed > 100


def test_a_network_that_is_cut_and_mended_changes_no_text(
    cable: Cable, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Late and lossy too; all packets vanish in the middle until the client has given its connection up."""
    cable.seconds, cable.loss = 0.01, 0.01
    ask, asked = RemoteModel._ask, [0]
    connect, cuts = RemoteModel._connect, list[int]()

    def mended(model: RemoteModel) -> Any:
        cable.is_cut = False
        return connect(model)

    def cut(model: RemoteModel, question: Any) -> Any:
        asked[0] += question.ask == "work"
        if asked[0] == 7 and not cuts:
            cuts.append(cable.num_lost)
            cable.is_cut = True
        return ask(model, question)

    monkeypatch.setattr(RemoteModel, "_ask", cut)
    monkeypatch.setattr(RemoteModel, "_connect", mended)
    compared(address, monkeypatch)
    assert cuts and cable.num_lost > cuts[0]
