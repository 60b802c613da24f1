"""A head in a network of its own: a way that can be cut, and late and lossy where the kernel can do that."""

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

pytestmark = pytest.mark.slow
SPACE, HERE, THERE = "flowinfer-head", "fi-here", "fi-there"
KEY = "pewter-lantern-2208-moss"
QUESTIONS = [Question(id=f"q{k}", question=f"{k} + 4 = ?", reference="") for k in range(6)]


def ip(*arguments: str, program: str = "ip") -> bool:
    """Return whether a command of the network's tools could be done."""
    return subprocess.run([program, *arguments], capture_output=True).returncode == 0


@pytest.fixture
def network() -> Iterator[str]:
    """Yield the address of another network on this machine."""
    if not (shutil.which("ip") and os.geteuid() == 0 and ip("netns", "add", SPACE)):
        pytest.skip("two networks on one machine need `ip netns`, as root")
    try:
        steps = [
            ("link", "add", HERE, "type", "veth", "peer", "name", THERE),
            ("link", "set", THERE, "netns", SPACE),
            ("address", "add", "10.231.77.1/30", "dev", HERE),
            ("link", "set", HERE, "up"),
            ("-n", SPACE, "address", "add", "10.231.77.2/30", "dev", THERE),
            ("-n", SPACE, "link", "set", THERE, "up"),
        ]
        if not all(ip(*step) for step in steps):
            pytest.skip("this machine makes no pair of virtual devices")
        yield "10.231.77.2"
    finally:
        ip("link", "delete", HERE)
        ip("netns", "delete", SPACE)


@pytest.fixture
def address(network: str) -> Iterator[str]:
    """Yield where a head of that network listens."""
    command = ["ip", "netns", "exec", SPACE, sys.executable, "-m", "flowinfer", "head", "Qwen", "--zoo", "lab"]
    command += ["--listen", f"{network}:0", "--key-env", "HEAD_KEY"]
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


def answers(pool: ModelPool, block: str = "") -> dict[str, str]:
    declared = f'model Qwen = "qwen" {block}\n' if block else ""
    plan = ready(check(f"{declared}(Qwen | Ds)", zoo="lab", overrides={"max_tokens": "12"}), this_machine())
    if block:
        pool.get(plan, "Qwen", Observer())
    return {trace.question_id: trace.answer for trace in execute(plan, QUESTIONS, batch=4, models=pool)}


def compared(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Assert that the head writes what it writes here."""
    monkeypatch.setenv("HEAD_KEY", KEY)
    far, near = ModelPool(), ModelPool()
    assert answers(far, f'{{ device="{address}" api_key_env="HEAD_KEY" }}') == answers(near)
    far.close()
    near.close()


def test_a_late_and_lossy_network_changes_no_text(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = ("root", "netem", "delay", "10ms", "loss", "1%")
    if not ip("qdisc", "add", "dev", HERE, *bad, program="tc"):
        pytest.skip("this kernel has no netem, which delays and loses packets (test_ways.py has a relay that is late)")
    assert ip("netns", "exec", SPACE, "tc", "qdisc", "add", "dev", THERE, *bad)
    compared(address, monkeypatch)


def test_a_network_that_is_cut_and_mended_changes_no_text(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packets vanish in the middle until the client has given its connection up; then the way is there again."""
    ask, asked, menders = RemoteModel._ask, [0], list[threading.Thread]()

    def mend(model: RemoteModel) -> None:
        while model._wire is not None:
            threading.Event().wait(0.1)
        ip("link", "set", HERE, "up")

    def cut(model: RemoteModel, question: Any) -> Any:
        asked[0] += question.ask == "work"
        if asked[0] == 7 and not menders:
            ip("link", "set", HERE, "down")
            menders.append(threading.Thread(target=mend, args=(model,)))
            menders[0].start()
        return ask(model, question)

    monkeypatch.setattr(RemoteModel, "_ask", cut)
    compared(address, monkeypatch)
    assert menders
    menders[0].join()
