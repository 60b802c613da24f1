"""Replicas: whoever answers, and whoever is lost meanwhile, the answers are one process's."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from flowinfer.engine.base import Observer
from flowinfer.engine.decoders import Decoders
from flowinfer.engine.models import ModelPool
from flowinfer.errors import DeviceLost, LoadError, MemoryShort, RunError, UsageError
from flowinfer.language.check import check
from flowinfer.machine import Device, Machine
from flowinfer.planning.merge import merge
from flowinfer.planning.needs import mapped_bytes
from flowinfer.planning.placement import ready
from flowinfer.planning.plain import fingerprint
from flowinfer.planning.plan import Plan
from flowinfer.results import Question, Record, StepResult, Trace
from flowinfer.runs.answering import Answered, Answerer, Answering, Owners, Stepped, Task
from flowinfer.runs.cache import DiskStepCache
from flowinfer.runs.replicas import pool
from flowinfer.runs.replicas import site as where
from flowinfer.runs.replicas.local import Outbox
from flowinfer.runs.replicas.pool import ReplicaPool, Setting
from flowinfer.runs.replicas.sharing import divided, shares
from flowinfer.runs.replicas.site import Gone, Hear, ReplicaLost
from flowinfer.runs.replicas.wire import Ask, Done, Failed, Notice, Ready, Reply, Start, line_of, plan_data, read_plans
from flowinfer.runs.store import record_line
from flowinfer.spec import ModelSpec
from flowinfer.stores.gguf import read_gguf
from tests.engine.plans import QUESTIONS, chain, member, questions
from tests.ggufs import write as write_gguf
from tests.routed import table, write
from tests.runs.threads import ThreadSite

PLAN = chain((member("A"), ()), (member("B", "{question}: {prev}", prev=("s1",)), ("s1",)))
OTHER = chain((member("A"), ()), (member("C", "{question}: {prev}", prev=("s1",)), ("s1",)))
MANY = questions([f"question {number}" * (number % 5 + 1) for number in range(23)])
TASKS = [Task(question, (0, 1)) for question in MANY]
Say = Callable[["Scripted", Ask], object]


class Scripted:
    """A replica that answers what it is asked by rote, or does what a script says."""

    def __init__(self, hear: Hear, script: Say) -> None:
        self.hear, self.script = hear, script
        self.is_gone = False
        self.num_asked = 0

    def send(self, message: BaseModel) -> None:
        if isinstance(message, Start):
            self.merged = merge(read_plans(message.plans))
            self.hear(line_of(Ready()))
        elif isinstance(message, Ask) and not self.is_gone:
            self.num_asked += 1
            self.script(self, message)

    def answer(self, ask: Ask, num_plans: int = 2, *, tells_early: bool = False) -> None:
        """Answer a question under as many of its plans as the script lets; perhaps all steps have ended first."""
        first = ask.plans[0]
        for plan in ask.plans[:num_plans]:
            uses = self.merged.uses[plan].values()
            steps = [step(f"{plan}: {use.shared} of {ask.question.question}") for use in uses]
            trace = Trace(
                question_id=ask.question.id, answer=steps[-1].text, finish_reason="eos", seconds=0.0, steps=tuple(steps)
            )
            told = tuple((use.shared, True) for use in uses)
            if tells_early:
                told = tuple((shared.id, True) for shared in self.merged.steps) if plan == first else ()
            done = Done(number=ask.number, plan=plan, steps=told, broken={})
            record = Record(question=ask.question, trace=trace)
            self.hear(line_of(Reply(done, record_line(record), record)))

    def kill(self) -> None:
        self.die()

    def die(self, *last: Failed) -> None:
        for message in last:
            self.hear(line_of(message))
        self.hear(Gone("signal SIGKILL"))
        self.is_gone = True


class ScriptedSite:
    cpu_bytes = 0

    def __init__(self, num_replicas: int, script: Say = Scripted.answer, *, hosts: Sequence[str] = ()) -> None:
        self.num_replicas, self.script = num_replicas, script
        self.hosts = tuple(hosts) or ("",) * num_replicas
        self.started: list[Scripted] = []
        self.is_closed = False

    def begin(self, index: int, program: str, hear: Hear) -> Scripted:
        self.started.append(Scripted(hear, self.script))
        return self.started[-1]

    def close(self) -> None:
        self.is_closed = True


class Notes(Observer):
    def __init__(self) -> None:
        self.told: list[str] = []

    def notice(self, message: str) -> None:
        self.told.append(message)


def step(text: str) -> StepResult:
    return StepResult(step="s", text=text, passed_on=text, prompts={}, tokens=1, finish_reason="eos", seconds=0.0)


def records(site: object, observer: Observer | None = None) -> dict[tuple[str, int], Record]:
    """Return what comes of every question under both plans; every step of it is told of once."""
    found = list(ReplicaPool(site, [PLAN, OTHER], Setting({}), observer or Observer()).run(TASKS))  # type: ignore[arg-type]
    steps = [(event.task, event.shared) for event in found if isinstance(event, Stepped)]
    assert len(steps) == len(set(steps)) == 3 * len(MANY)
    answers = [event for event in found if isinstance(event, Answered)]
    assert len(answers) == 2 * len(MANY)
    return {(answer.record.question.id, answer.plan): answer.record for answer in answers}


WHOLE = records(ScriptedSite(1))


@given(st.integers(1, 4), st.lists(st.tuples(st.integers(1, 6), st.integers(0, 1)), max_size=6))
def test_replicas_that_are_lost_at_any_moment_lose_and_double_nothing(
    count: int, deaths: list[tuple[int, int]]
) -> None:
    """The n-th question that a replica is asked ends it, with none or one of that question's two answers given."""
    left, killed = list(deaths), dict.fromkeys([question.id for question in MANY], 0)

    def script(replica: Scripted, ask: Ask) -> None:
        if left and replica.num_asked == left[0][0] and killed[ask.question.id] < 2:
            killed[ask.question.id] += 1  # a third time, and it would be taken for the cause
            _, num_plans = left.pop(0)
            replica.answer(ask, num_plans)
            replica.die()
        else:
            replica.answer(ask)

    site = ScriptedSite(count, script)
    assert records(site) == WHOLE and site.is_closed


def test_a_question_that_ends_every_process_fails_alone_and_the_others_are_answered() -> None:
    def script(replica: Scripted, ask: Ask) -> None:
        replica.die() if ask.question.id == "q7" else replica.answer(ask)

    found = records(ScriptedSite(3, script))
    problem = "the process that was asked it has ended 3 times: signal SIGKILL"
    assert [found.pop(("q7", plan)).trace.error for plan in (0, 1)] == [problem, problem]
    assert found == {name: record for name, record in WHOLE.items() if name[0] != "q7"}


def test_what_no_replica_can_load_is_told_once_and_ends_all() -> None:
    def script(replica: Scripted, ask: Ask) -> None:
        replica.die(Failed(error="LoadError", message="model 'A' cannot be loaded", help="check ref"))

    site = ScriptedSite(3, script)
    with pytest.raises(LoadError, match=r"replica \d: model 'A' cannot be loaded") as error:
        records(site)
    assert error.value.help == "check ref" and site.is_closed


def test_a_bug_in_a_replica_is_shown_with_its_traceback() -> None:
    def script(replica: Scripted, ask: Ask) -> None:
        replica.die(Failed(error="", message="Traceback (most recent call last): ..."))

    with pytest.raises(ReplicaLost, match="met a bug:\nTraceback"):
        records(ScriptedSite(2, script))


def test_a_replica_whose_device_is_lost_is_given_up_and_the_others_go_on() -> None:
    def script(replica: Scripted, ask: Ask) -> None:
        if replica is site.started[0]:
            replica.die(Failed(error="DeviceLost", message="cuda:0 has failed"))
        else:
            replica.answer(ask)

    site, notes = ScriptedSite(2, script), Notes()
    assert records(site, notes) == WHOLE
    assert len(site.started) == 2 and notes.told == ["replica 1 is given up: cuda:0 has failed"]


def test_the_run_ends_where_no_device_is_left() -> None:
    with pytest.raises(DeviceLost, match="replica 1: cuda:0 has failed"):
        records(
            ScriptedSite(1, lambda replica, ask: replica.die(Failed(error="DeviceLost", message="cuda:0 has failed")))
        )


def test_a_process_that_cannot_even_start_is_tried_twice() -> None:
    class Dead(Scripted):
        def send(self, message: BaseModel) -> None:
            if isinstance(message, Start):
                self.die()

    class DeadSite(ScriptedSite):
        def begin(self, index: int, program: str, hear: Hear) -> Scripted:
            self.started.append(Dead(hear, self.script))
            return self.started[-1]

    site = DeadSite(2)
    with pytest.raises(RunError, match="no replica is left: the last has ended: signal SIGKILL"):
        records(site)
    assert len(site.started) == 4


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"rubbish\n", "it has said what is no message: 'rubbish\\n'"),
        (b'{"kind":"done"}\t{}\n', 'it has said what is no message: \'{"kind":"done"}\\t{}\\n\''),
        (b'{"kind":"done","number":1,"plan":0,"steps":[],"broken":{}}\t{"qu', "it has said what is no message"),
    ],
)
def test_a_replica_that_cannot_be_understood_is_ended_and_its_questions_are_asked_again(line: bytes, why: str) -> None:
    def script(replica: Scripted, ask: Ask) -> None:
        replica.hear(line) if replica is site.started[0] else replica.answer(ask)

    site, notes = ScriptedSite(2, script), Notes()
    assert records(site, notes) == WHOLE
    assert any(f"replica 1 has ended: {why}" in told for told in notes.told), notes.told


def test_what_was_not_asked_is_no_answer() -> None:
    """A number or a plan of nobody's would count as somebody's."""

    def script(replica: Scripted, ask: Ask) -> None:
        wrong = ask.model_copy(update={"number": ask.number + 1000})
        replica.answer(wrong if replica is site.started[0] else ask)

    site, notes = ScriptedSite(2, script), Notes()
    assert records(site, notes) == WHOLE
    assert any("replica 1 has ended: it has answered what it was not asked" in told for told in notes.told)


def test_what_several_replicas_say_is_told_once_and_again_when_one_says_it_again() -> None:
    def script(replica: Scripted, ask: Ask) -> None:
        if replica.num_asked <= (2 if replica is site.started[0] else 1):
            replica.hear(line_of(Notice(text="memory is short")))
        replica.answer(ask)

    site, notes = ScriptedSite(2, script), Notes()
    assert records(site, notes) == WHOLE
    assert notes.told == ["memory is short", "memory is short"]


def test_a_replica_that_stands_still_is_ended_and_its_questions_are_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (pool, where):
        monkeypatch.setattr(module, "LOOK_SECONDS", 0.0)
    site, notes = ScriptedSite(2, lambda replica, ask: replica is site.started[0] or replica.answer(ask)), Notes()
    assert records(site, notes) == WHOLE
    assert "replica 1 has ended: it said nothing for 0 s; it is started again, and nothing is lost" in notes.told


@pytest.mark.parametrize(
    "who", ["answers late", "answers first", "answers one first", "answers half", "is lost", "never answers"]
)
def test_what_another_host_has_is_asked_twice_in_the_end_and_the_first_answer_counts(
    who: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first host keeps what it is asked; when the second is asked that too, something of the first is heard."""
    monkeypatch.setattr(pool, "LOOK_SECONDS", 0.0)
    for name in ("MOST_SILENT", "MOST_SILENT_FIRST"):
        monkeypatch.setattr(where, name, 1 << 30)
    kept: dict[str, Ask] = {}
    twice = set[str]()

    def script(replica: Scripted, ask: Ask) -> None:
        first, name = site.started[0], ask.question.id
        if replica is first:
            kept[name] = ask
            if who == "answers half":
                replica.answer(ask, 1)
            return
        if name not in kept:
            replica.answer(ask)
            return
        twice.add(name)
        assert len(ask.plans) == (1 if who == "answers half" else 2)
        if who in ("answers first", "answers one first"):
            first.answer(kept[name], 2 if who == "answers first" else 1)
        elif who == "is lost" and not first.is_gone:
            first.die()
        replica.answer(ask, tells_early=who == "answers one first")
        if who == "answers late":
            first.answer(kept[name])

    site = ScriptedSite(2, script, hosts=("one", "other"))
    assert records(site) == WHOLE
    assert twice and len(site.started) == (3 if who == "is lost" else 2)


API = ModelSpec(name="E", ref="gpt", backend="openai", base_url="https://host/v1")


@pytest.mark.parametrize(
    ("plan", "hosts"),
    [(chain((member("A"), ())), ("one", "one")), (chain((member("E"), ()), specs={"E": API}), ("one", "other"))],
    ids=["on the same host", "models elsewhere"],
)
def test_what_a_second_answer_would_cost_others_is_asked_once(
    plan: Plan, hosts: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that stands still is waited for until it is ended."""
    for module in (pool, where):
        monkeypatch.setattr(module, "LOOK_SECONDS", 0.0)
    asked: list[str] = []

    def script(replica: Scripted, ask: Ask) -> None:
        if replica is not site.started[0]:
            asked.append(ask.question.id)
            replica.answer(ask)

    site, notes = ScriptedSite(2, script, hosts=hosts), Notes()
    events = list(ReplicaPool(site, [plan], Setting({}), notes).run([Task(question) for question in MANY]))
    assert sum(isinstance(event, Answered) for event in events) == len(asked) == len(MANY)
    assert any("replica 1 has ended: it said nothing" in told for told in notes.told)


def test_lines_to_a_replica_that_reads_none_hold_nobody_up_and_go_together() -> None:
    reads, sent = threading.Event(), []

    def send(lines: bytes) -> None:
        reads.wait()
        sent.append(lines)

    outbox = Outbox(send, lambda: sent.append(b"closed"))
    for number in range(100):
        outbox.put(b"%d\n" % number)
    outbox.end()
    reads.set()
    outbox.join()
    assert b"".join(sent) == b"".join(b"%d\n" % number for number in range(100)) + b"closed"
    assert len(sent) <= 3


def test_questions_are_shared_out_so_that_all_have_as_much_to_do() -> None:
    """In batch 1 each has one under way: behind a sample, whoever has answered is asked the next, the longest first."""
    asked: list[tuple[Scripted, Ask]] = []

    def script(replica: Scripted, ask: Ask) -> None:
        asked.append((replica, ask))
        replica.answer(ask)

    site = ScriptedSite(2, script)
    list(ReplicaPool(site, [PLAN, OTHER], Setting({}), Observer()).run(TASKS, most=1))
    assert {sum(one is replica for one, _ in asked) for replica in site.started} == {11, 12}
    lengths = [len(ask.question.question) for _, ask in asked]
    assert lengths[2:] == sorted(lengths[2:], reverse=True)


def answered(answerer: Answerer, asked: Sequence[Task]) -> dict[tuple[str, int], object]:
    """Return what of each record does not depend on the clock or the batch."""
    found: dict[tuple[str, int], object] = {}
    for event in answerer.run(asked):
        if isinstance(event, Answered):
            trace, score = event.record.trace, event.record.score
            steps = [(step.step, step.text, step.prompts, step.tokens, step.finish_reason) for step in trace.steps]
            taken = [(one.selection, one.taken, one.lost, len(one.values)) for one in trace.selections]
            marks = [step.cached_from for step in trace.steps]
            ended = trace.answer, trace.finish_reason, trace.error, trace.ballot
            found[trace.question_id, event.plan] = (steps, taken, marks, ended, score)
            assert event.line in (None, record_line(event.record))
    return found


def here(plans: Sequence[Plan], cache: Path | None, owners: Owners) -> Answering:
    kept = None if cache is None else lambda run: DiskStepCache(cache, run)
    return Answering(plans, merge(plans), owners, kept, Decoders(ModelPool(), Observer(), "auto"), Observer())


def elsewhere(plans: Sequence[Plan], cache: Path | None, owners: Owners) -> ReplicaPool:
    return ReplicaPool(ThreadSite(2), plans, Setting(owners, cache=cache), Observer())


def placed(text: str, zoo: str) -> Plan:
    return ready(check(text, zoo=zoo), Machine((Device("cpu", "", 1 << 30, 1 << 30),)))


@pytest.mark.slow
def test_real_replicas_answer_as_one_process_does(tmp_path: Path) -> None:
    """Steps in series and in parallel, drafts and sampling; a second run takes all steps from the cache."""
    plan = placed("defaults { max_tokens = 4 }\nQwen -> (Yi | Ds)[temperature=0.8]", "lab")
    asked = [Task(question) for question in questions(QUESTIONS[:4])]
    for run in ("first", "second"):
        owners = {(0, 0): run}
        alone = answered(here([plan], tmp_path / "here", owners), asked)
        assert answered(elsewhere([plan], tmp_path / "there", owners), asked) == alone


def test_replicas_choose_share_and_judge_as_one_process_does(tmp_path: Path, toy_zoo: Path) -> None:
    """A choice, a repeat in a quorum and samples; plans that share a step and pick a member, a question that fails."""
    votes = "(Qwen & Yi[samples=3, temperature=1, enough=0.8] & Ds)[min=2]"
    text = f"defaults {{ max_tokens=4 }}\n(Qwen / (Yi)*2[until=unchanged] / {votes})[accept=lead, at=0.9]"
    short, right = "defaults { max_tokens=4 }\n", {"hello": "01", "naïve café": "01", "x + 1": "10", "x + 2": "10"}
    picks = write(tmp_path / "routes.json", table(["Qwen", "Yi -> Ds"], right, before=short, zoo=str(toy_zoo)))
    texts = [text, f"{short}Qwen -> Yi", f'{short}(Qwen / Yi -> Ds)[pick="{picks}"]']
    plans = [placed(text, str(toy_zoo)) for text in texts]
    asked = [Task(question, (0, 1, 2)) for question in questions(["hello", "x + 1", "naïve café"])]
    asked.append(Task(Question(id="half", question="half \ud800", reference="4"), (1,)))
    owners = {(0, 0): "one", (1, 0): "two", (2, 0): "three"}
    alone = answered(here(plans, tmp_path / "here", owners), asked)
    assert answered(elsewhere(plans, tmp_path / "there", owners), asked) == alone
    assert sorted(len(record[0]) for (_, plan), record in alone.items() if plan == 2) == [1, 2, 2]  # type: ignore[index]
    assert len(alone) == 10 and {"one"} <= {mark for record in alone.values() for mark in record[2]}  # type: ignore[index]  # a tuple


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


def test_a_file_that_replicas_map_lies_in_memory_once(tmp_path: Path) -> None:
    """Of 80 bytes a file takes 50, whichever of two replicas read it: what is left over is shared by both."""
    found = shares(Machine((CPU,)), 2, {}, range(8), mapped=50)
    assert (found.machine.devices[-1].free_bytes, found.cpu_bytes) == (65, 15)
    path = write_gguf(tmp_path / "m.gguf")
    models = [ModelSpec(name=name, ref=str(path), backend="gguf") for name in "AB"]
    assert mapped_bytes(models, has_gpus=False) == read_gguf(path).shared_bytes == 128
    assert mapped_bytes(models, has_gpus=True) == 0
    apart = [model.model_copy(update={"mmap": False}) for model in models]
    assert mapped_bytes(apart, has_gpus=False) == 0


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


def test_as_many_replicas_as_have_room_run_where_that_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three GPUs of which a copy needs one and a half: one replica, here."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(8), raising=False)

    def place(machine: Machine) -> int:
        if len(machine.devices) - 1 < 2:
            raise MemoryShort("too small")
        return len(machine.devices)

    machine = Machine((*gpus(3), CPU))
    assert divided("auto", machine, place, lambda placed: True) == (None, 4)
    with pytest.raises(MemoryShort, match="--replicas 2, each with cuda:0, cpu: too small") as error:
        divided(2, machine, place, lambda placed: True)
    assert error.value.help == "fewer replicas, or auto"


def test_what_the_whole_machine_cannot_run_is_not_laid_to_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(8), raising=False)

    def place(machine: Machine) -> int:
        raise LoadError("cuda:3 is not here", help="devices here: cpu")

    with pytest.raises(LoadError, match=r"^cuda:3 is not here$") as error:
        divided(2, Machine((CPU,)), place, lambda placed: True)
    assert error.value.help == "devices here: cpu"
