"""Replicas: whoever answers, and whoever is lost meanwhile, the answers are one process's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from flowinfer.engine.base import Observer
from flowinfer.engine.execute import execute
from flowinfer.errors import DeviceLost, LoadError, MemoryShort, RunError, UsageError
from flowinfer.language.check import check
from flowinfer.machine import Device, Machine
from flowinfer.planning.merge import merge
from flowinfer.planning.placement import ready
from flowinfer.planning.plain import fingerprint
from flowinfer.results import StepResult, Trace
from flowinfer.runs.experiment import majority
from flowinfer.runs.replicas.pool import Gone, Hear, ReplicaLost, ReplicaPool, Setting
from flowinfer.runs.replicas.sharing import divided, shares
from flowinfer.runs.replicas.wire import Ask, Ended, Failed, Ready, Start, plan_data, read_plans
from flowinfer.spec import ModelSpec
from tests.engine.plans import QUESTIONS, chain, member, questions
from tests.runs.threads import ThreadSite

PLAN = chain((member("A"), ()), (member("B", "{question}: {prev}", prev=("s1",)), ("s1",)))
MANY = questions([f"question {number}" * (number % 5 + 1) for number in range(23)])
Say = Callable[["Scripted", Ask], None]


class Scripted:
    """A replica that answers what it is asked by rote, or does what a script says."""

    def __init__(self, hear: Hear, script: Say) -> None:
        self.hear, self.script = hear, script
        self.is_gone = False
        self.num_asked = 0

    def send(self, message: BaseModel) -> None:
        if isinstance(message, Start):
            self.steps = merge(read_plans(message.plans)).steps
            self.hear(Ready())
        elif isinstance(message, Ask) and not self.is_gone:
            self.num_asked += 1
            self.script(self, message)

    def answer(self, ask: Ask, num_steps: int = 2) -> None:
        """Answer as many of a question's steps as are wanted, and as the script lets."""
        for shared in [step for step in self.steps if step.id in ask.wanted][:num_steps]:
            text = f"{shared.step.id} of {ask.text}"
            result = StepResult(
                step=shared.step.id, text=text, passed_on=text, prompts={}, tokens=1, finish_reason="eos", seconds=0.0
            )
            self.hear(Ended(number=ask.number, shared=shared.id, is_fresh=True, result=result))

    def die(self, *last: Failed) -> None:
        for message in (*last, Gone("signal SIGKILL")):
            self.hear(message)
        self.is_gone = True


class ScriptedSite:
    cpu_bytes = 0

    def __init__(self, num_replicas: int, script: Say = Scripted.answer) -> None:
        self.num_replicas, self.script = num_replicas, script
        self.started: list[Scripted] = []
        self.is_closed = False

    def start(self, index: int, hear: Hear) -> Scripted:
        self.started.append(Scripted(hear, self.script))
        return self.started[-1]

    def close(self) -> None:
        self.is_closed = True


class Notes(Observer):
    def __init__(self) -> None:
        self.told: list[str] = []

    def notice(self, message: str) -> None:
        self.told.append(message)


def traces(site: object, observer: Observer | None = None, **setting: object) -> dict[str, Trace]:
    pool = ReplicaPool(site, [PLAN], Setting({}, **setting), observer or Observer())  # type: ignore[arg-type]
    found = list(execute(PLAN, MANY, runner=pool))
    assert len(found) == len(MANY)
    return {trace.question_id: trace for trace in found}


WHOLE = traces(ScriptedSite(1))


@given(st.integers(1, 4), st.lists(st.tuples(st.integers(1, 6), st.integers(0, 1)), max_size=6))
def test_replicas_that_are_lost_at_any_moment_lose_and_double_nothing(
    count: int, deaths: list[tuple[int, int]]
) -> None:
    """The n-th question that a replica is asked ends it, with none or one of that question's two steps answered."""
    left, killed = list(deaths), dict.fromkeys([question.id for question in MANY], 0)

    def script(replica: Scripted, ask: Ask) -> None:
        if left and replica.num_asked == left[0][0] and killed[ask.question.id] < 2:
            killed[ask.question.id] += 1  # a third time, and it would be taken for the cause
            _, num_steps = left.pop(0)
            replica.answer(ask, num_steps)
            replica.die()
        else:
            replica.answer(ask)

    site = ScriptedSite(count, script)
    assert traces(site) == WHOLE and site.is_closed


def test_a_question_that_ends_every_process_fails_alone_and_the_others_are_answered() -> None:
    def script(replica: Scripted, ask: Ask) -> None:
        replica.die() if ask.question.id == "q7" else replica.answer(ask)

    found = traces(ScriptedSite(3, script))
    assert found.pop("q7").error == "the process that was asked it has ended 3 times: signal SIGKILL"
    assert found == {name: trace for name, trace in WHOLE.items() if name != "q7"}


def test_what_no_replica_can_load_is_told_once_and_ends_all() -> None:
    def script(replica: Scripted, ask: Ask) -> None:
        replica.die(Failed(error="LoadError", message="model 'A' cannot be loaded", help="check ref"))

    site = ScriptedSite(3, script)
    with pytest.raises(LoadError, match=r"replica \d: model 'A' cannot be loaded") as error:
        traces(site)
    assert error.value.help == "check ref" and site.is_closed


def test_a_bug_in_a_replica_is_shown_with_its_traceback() -> None:
    def script(replica: Scripted, ask: Ask) -> None:
        replica.die(Failed(error="", message="Traceback (most recent call last): ..."))

    with pytest.raises(ReplicaLost, match="met a bug:\nTraceback"):
        traces(ScriptedSite(2, script))


def test_a_replica_whose_device_is_lost_is_given_up_and_the_others_go_on() -> None:
    def script(replica: Scripted, ask: Ask) -> None:
        if replica is site.started[0]:
            replica.die(Failed(error="DeviceLost", message="cuda:0 has failed"))
        else:
            replica.answer(ask)

    site, notes = ScriptedSite(2, script), Notes()
    assert traces(site, notes) == WHOLE
    assert len(site.started) == 2 and notes.told == ["replica 1 is given up: cuda:0 has failed"]


def test_the_run_ends_where_no_device_is_left() -> None:
    with pytest.raises(DeviceLost, match="replica 1: cuda:0 has failed"):
        traces(
            ScriptedSite(1, lambda replica, ask: replica.die(Failed(error="DeviceLost", message="cuda:0 has failed")))
        )


def test_a_process_that_cannot_even_start_is_tried_twice() -> None:
    class Dead(Scripted):
        def send(self, message: BaseModel) -> None:
            if isinstance(message, Start):
                self.die()

    class DeadSite(ScriptedSite):
        def start(self, index: int, hear: Hear) -> Scripted:
            self.started.append(Dead(hear, self.script))
            return self.started[-1]

    site = DeadSite(2)
    with pytest.raises(RunError, match="no replica is left: the last has ended: signal SIGKILL"):
        traces(site)
    assert len(site.started) == 4


def test_questions_are_shared_out_so_that_all_have_as_much_to_do() -> None:
    """In batch 1 each has one under way: whoever has answered is asked the next, the longest first."""
    asked: list[tuple[Scripted, Ask]] = []

    def script(replica: Scripted, ask: Ask) -> None:
        asked.append((replica, ask))
        replica.answer(ask)

    site = ScriptedSite(2, script)
    list(execute(PLAN, MANY, batch=1, runner=ReplicaPool(site, [PLAN], Setting({}), Observer())))
    assert {sum(one is replica for one, _ in asked) for replica in site.started} == {11, 12}
    lengths = [len(ask.question.question) for _, ask in asked]
    assert lengths == sorted(lengths, reverse=True)


@pytest.mark.slow
def test_real_replicas_answer_as_one_process_does(tmp_path: Path) -> None:
    """Steps in series and in parallel, drafts and sampling; a second run takes all steps from the cache."""
    text = "defaults { max_tokens = 4 }\nQwen -> (Yi | Ds)[temperature=0.8]"
    flow = check(text, zoo="lab")
    machine = Machine((Device("cpu", "", 1 << 30, 1 << 30),))
    plan, asked = ready(flow, machine), questions(QUESTIONS[:4])
    alone = {trace.question_id: trace for trace in execute(plan, asked)}
    for cached_from in (None, "first"):
        setting = Setting({(0, 0): cached_from or "first"}, cache=tmp_path)
        pool = ReplicaPool(ThreadSite(2), [plan], setting, Observer())
        found = {trace.question_id: trace for trace in execute(plan, asked, runner=pool)}
        assert {name: said(trace) for name, trace in found.items()} == {
            name: said(trace) for name, trace in alone.items()
        }


def test_replicas_choose_as_one_process_does(toy_zoo: Path) -> None:
    """A choice, a repeat in a quorum and samples: what was skipped, taken and voted on comes back whole."""
    votes = "(Qwen & Yi[samples=3, temperature=1, enough=0.8] & Ds)[min=2]"
    text = f"defaults {{ max_tokens=4 }}\n(Qwen / (Yi)*2[until=unchanged] / {votes})[accept=lead, at=0.9]"
    plan = ready(check(text, zoo=str(toy_zoo)), Machine((Device("cpu", "", 1 << 30, 1 << 30),)))
    asked = questions(["hello", "x + 1", "naïve café"])
    alone, shared = (
        {trace.question_id: trace for trace in execute(plan, asked, vote=majority, runner=runner)}
        for runner in (None, ReplicaPool(ThreadSite(2), [plan], Setting({}), Observer()))
    )
    assert {name: said(trace) for name, trace in shared.items()} == {name: said(trace) for name, trace in alone.items()}
    taken = {
        name: [(one.selection, one.taken, one.lost, len(one.values)) for one in trace.selections]
        for name, trace in shared.items()
    }
    assert taken == {
        name: [(one.selection, one.taken, one.lost, len(one.values)) for one in trace.selections]
        for name, trace in alone.items()
    }
    assert all(len(one) == 4 for one in taken.values()) and all(trace.ballot for trace in shared.values())


def said(trace: Trace) -> object:
    """Return what of a trace does not depend on the clock or the batch."""
    steps = [(step.step, step.text, step.prompts, step.tokens, step.finish_reason) for step in trace.steps]
    return trace.answer, trace.finish_reason, trace.error, steps


def test_a_plan_arrives_whole_with_the_address_that_nothing_else_shows() -> None:
    spec = ModelSpec(name="E", ref="gpt", backend="openai", base_url="https://me:geheim99@host/v1", parallel=8)
    plan = chain((member("E"), ()), specs={"E": spec})
    (there,) = read_plans(json.loads(json.dumps([plan_data(plan, 3)])))
    assert fingerprint(there) == fingerprint(plan) and there.steps == plan.steps
    assert there.models["E"].address == "https://me:geheim99@host/v1" and there.models["E"].parallel == 2
    assert "geheim99" not in repr(there)


def gpus(count: int, free: int = 10) -> tuple[Device, ...]:
    return tuple(Device(f"cuda:{index}", "H100", free - index, 10) for index in range(count))


CPU = Device("cpu", "8 cores", 80, 100)


@pytest.mark.parametrize(
    ("machine", "count", "visible", "names", "own"),
    [
        (Machine((*gpus(4), CPU)), 2, "", ["0,1", "2,3"], ["cuda:0", "cuda:1", "cpu"]),
        (Machine((*gpus(3), CPU)), 2, "7,5,GPU-abc", ["7", "5"], ["cuda:0", "cpu"]),
        (Machine((CPU,)), 2, "", [None, None], ["cpu"]),
    ],
)
def test_each_replica_gets_as_many_devices_as_every_other(
    machine: Machine, count: int, visible: str, names: list[str | None], own: list[str]
) -> None:
    """GPUs in groups, numbered from 0 in each; the least of what the groups have free; cores and memory in parts."""
    found = shares(machine, count, {"CUDA_VISIBLE_DEVICES": visible}, range(8))
    assert (list(found.gpus), [device.name for device in found.machine.devices]) == (names, own)
    assert found.cores == ((0, 1, 2, 3), (4, 5, 6, 7)) and found.machine.devices[-1].free_bytes == 40
    if len(own) == 3:
        assert [device.free_bytes for device in found.machine.devices[:-1]] == [8, 7]


@pytest.mark.parametrize(
    ("machine", "problem"),
    [
        (Machine((*gpus(2), CPU)), "--replicas 3: this machine has 2 GPUs"),
        (Machine((CPU,)), "--replicas 3: this machine has 2 CPU cores"),
    ],
)
def test_more_replicas_than_devices_are_refused(machine: Machine, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        shares(machine, 3, {}, range(2))


def test_as_many_replicas_as_have_room_run_where_that_is_asked() -> None:
    """Three GPUs of which a copy needs one and a half: one replica, here."""

    def place(machine: Machine) -> int:
        if len(machine.devices) - 1 < 2:
            raise MemoryShort("too small")
        return len(machine.devices)

    machine = Machine((*gpus(3), CPU))
    assert divided("auto", machine, place, lambda placed: True) == (None, 4)
    with pytest.raises(MemoryShort, match="--replicas 2, each with cuda:0, cpu: too small") as error:
        divided(2, machine, place, lambda placed: True)
    assert error.value.help == "fewer replicas, or auto"
