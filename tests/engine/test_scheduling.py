"""Laws of the scheduler, over random plans and loops that only pretend to decode."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain as joined
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowinfer.backends.hf import HfModel
from flowinfer.engine.base import Completion, Observer, Row
from flowinfer.engine.caching import Caching
from flowinfer.engine.decoders import Decoders
from flowinfer.engine.decoding import DecodingLoop
from flowinfer.engine.execute import execute
from flowinfer.engine.models import ModelPool
from flowinfer.engine.patience import Patience
from flowinfer.engine.scheduler import Scheduler
from flowinfer.engine.work import Asked, Finished, render_prompts, trace_of
from flowinfer.planning.merge import Merged, beside, loops_in_turn, merge
from flowinfer.planning.plan import Answer, Placement, Plan, Step, members
from flowinfer.results import Question, StepResult, Trace
from flowinfer.runs.cache import member_order, step_key
from tests.backends import tiny
from tests.engine import plans
from tests.engine.plans import chain, group, member


def text_of(step: Step, prompts: Any) -> str:
    """Return what pretended models write: by their names and prompts, whatever the order."""
    said = sorted((one.model, prompts[one.node]) for one in members(step.source))
    return hashlib.sha256(repr(said).encode()).hexdigest()[:8]


@dataclass
class World:
    """What loops do, and what was seen of them."""

    rng: random.Random
    batch: int = 3
    ill: str = ""
    """The text at which every batch breaks in which it would be written."""
    busy: float = 0.5
    """Share of decoders that keep the host busy."""
    faults: int = 0
    """How many more batches break, or are too large, for no row's sake."""
    decoded: list[str] = field(default_factory=list)
    turns: list[tuple[str, int]] = field(default_factory=list)
    """Step and rows, by turn."""
    streams: list[Stream] = field(default_factory=list)


class Stream:
    """Pretends to decode."""

    is_waiting = False

    def __init__(self, world: World, loop: DecodingLoop) -> None:
        self._world, self._step, self._batch = world, loop.step, loop.batch or 1
        self._rows: list[Row] = []
        world.streams.append(self)

    @property
    def num_rows(self) -> int:
        return len(self._rows)

    def add(self, row: Row) -> None:
        self._rows.append(row)

    def end(self, row: Row) -> None:
        assert any(one is row for one in self._rows)
        self._rows = [one for one in self._rows if one is not row]

    def turn(self) -> list[Completion]:
        world, live = self._world, self._rows[: self._batch]
        world.turns.append((self._step.id, len(live)))
        if any(text_of(self._step, row.prompts) == world.ill for row in live):
            raise ValueError("ill")
        if len(live) > 1 and world.faults and world.rng.random() < 0.3:
            world.faults -= 1
            raise world.rng.choice([ValueError("once"), torch.OutOfMemoryError("out of memory")])
        ended = [row for row in live if world.rng.random() < 0.5]
        self.is_waiting = not ended and world.rng.random() < 0.5
        self._rows = [row for row in self._rows if not any(row is one for one in ended)]
        return [Completion(row, self._result(row)) for row in ended]

    def _result(self, row: Row) -> StepResult:
        text = text_of(self._step, row.prompts)
        self._world.decoded.append(text)
        prompts = {row.member(one).node: row.prompts[one.node] for one in members(self._step.source)}
        return StepResult(
            step=row.step, text=text, passed_on=text, prompts=prompts, tokens=1, finish_reason="eos", seconds=0.0
        )

    def wait(self) -> None: ...

    def close(self) -> None:
        self._rows = []


class Pretended:
    """A decoder whose streams pretend."""

    def __init__(self, world: World, loop: DecodingLoop) -> None:
        self._world, self._loop = world, loop
        self.keeps_host_busy = world.rng.random() < world.busy

    def stream(self) -> Stream:
        return Stream(self._world, self._loop)


class Pretending(Decoders):
    """Loops that pretend."""

    def __init__(self, world: World) -> None:
        super().__init__(ModelPool(), Observer(), world.batch)
        self._world = world

    def loop(self, name: str, plan: Plan, step: Step) -> DecodingLoop:
        def make(loop: DecodingLoop) -> Pretended:
            loop.batch = loop.batch or self._world.batch
            return Pretended(self._world, loop)

        if name not in self._loops:
            self._loops[name] = DecodingLoop(plan, step, make, lambda batch: None)
        return self._loops[name]

    def may_begin(self, loop: DecodingLoop) -> bool:
        return loop.decoder is not None or self._world.rng.random() < 0.7


class Shelf:
    """A cache of steps in which nothing is kept twice."""

    def __init__(self) -> None:
        self._kept: dict[str, StepResult] = {}

    def get(self, key: str) -> StepResult | None:
        return self._kept.get(key)

    def put(self, key: str, result: StepResult) -> None:
        assert key not in self._kept
        self._kept[key] = result


def some_plan(rng: random.Random) -> Plan:
    """Return a plan of up to five steps, some of them equal, that read one another at random."""
    steps = []
    for number in range(rng.randint(1, 5)):
        reads = tuple(f"s{k + 1}" for k in range(number) if rng.random() < 0.5)
        fields = {f"f{k}": (read,) for k, read in enumerate(reads)}
        template = rng.choice("xy") + "{question}" + "".join(f"{{{name}}}" for name in fields)
        names = rng.sample("ABC", rng.choice([1, 1, 2]))
        found = [member(name, template, node=f"n{number}{name}", weight=1 / len(names), **fields) for name in names]
        steps.append((found[0] if len(found) == 1 else group(*found), reads))
    made = chain(*steps)
    return replace(made, answer=Answer("vote", tuple(step.id for step in made.steps)))


def expected(plan: Plan, question: Question, ill: str) -> list[str]:
    """Return the texts of a plan's steps, one after another, up to the first that cannot be written."""
    texts: dict[str, str] = {}
    for step in plan.steps:
        text = text_of(
            step,
            render_prompts(plan, step, question, question.question, {name: [said] for name, said in texts.items()}),
        )
        if text == ill:
            break
        texts[step.id] = text
    return list(texts.values())


class Run:
    """A random run: some plans, each asked some of the questions."""

    def __init__(
        self, seed: int, *, is_ill: bool = False, faults: int = 0, num_plans: int = 3, serves: bool = False
    ) -> None:
        self.rng = rng = random.Random(seed)
        self.world = World(rng, batch=rng.randint(1, 4), faults=faults)
        places = {name: Placement(rng.choice(["cpu", "cuda:0", "cuda:1"]), "auto", "") for name in "ABC"}
        self.plans = [replace(some_plan(rng), placements=places) for _ in range(rng.randint(1, num_plans))]
        self.merged: Merged = beside(self.plans) if serves else merge(self.plans)
        self.asked = []
        for number in range(rng.randint(1, 6)):
            text = str(number if is_ill else rng.randrange(3))
            one = Asked(Question(id=f"q{number}", question=text, reference=""), lambda question: question.question)
            for plan in range(len(self.plans)):
                if rng.random() < 0.8:
                    one.of(self.merged.uses[plan])
            self.asked.append(one)
        if is_ill:
            plan, one = rng.choice(self.plans), rng.choice(self.asked)
            self.world.ill = rng.choice(expected(plan, one.question, ""))
        self.wanted = {(one.question.id, shared) for one in self.asked for shared in one.wanted}
        self.paths = {one.question.id: [*one.paths] for one in self.asked}
        shelf = Shelf()
        self.scheduler = Scheduler(
            self.merged.steps,
            Pretending(self.world),
            Caching(lambda *_: shelf, lambda *_: "", step_key, member_order),
            Observer(),
            serves=serves,
        )
        self.is_in_turn = not serves and rng.random() < 0.3
        self.most = rng.choice([None, 1, 2])

    def events(self) -> Iterator[Finished]:
        """Yield what ends, from a source that has nothing at times."""
        source = joined.from_iterable([one] if self.rng.random() < 0.9 else [None, one] for one in self.asked)
        waves = loops_in_turn(self.merged.steps) if self.is_in_turn else ()
        yield from self.scheduler.run(source, most=self.most, waves=waves)

    def check(self, without: Sequence[Asked] = ()) -> None:
        """Compare all questions' texts with those of steps one after another."""
        assert not any(stream.num_rows for stream in self.world.streams)
        for one in self.asked:
            for plan, uses in zip(self.plans, self.merged.uses, strict=True):
                if one not in without and tuple(use.shared for use in uses.values()) in one.paths:
                    trace = trace_of(plan, uses, one)
                    texts = expected(plan, one.question, self.world.ill)
                    assert [step.text for step in trace.steps] == texts
                    assert (trace.error is None) == (len(texts) == len(plan.steps))


def ended(events: Sequence[Finished]) -> list[tuple[str, str]]:
    return [(event.asked.question.id, event.shared.id) for event in events]


seeds = given(seed=st.integers(0, 10**6))


@settings(max_examples=30, deadline=None)
@seeds
def test_a_server_gives_every_plan_its_steps_and_every_question_its_texts(seed: int) -> None:
    run = Run(seed, serves=True)
    assert len(run.merged.steps) == sum(len(plan.steps) for plan in run.plans)
    assert Counter(ended(list(run.events()))) == Counter(run.wanted)
    run.check()


@settings(max_examples=40, deadline=None)
@seeds
def test_every_wanted_step_ends_once_and_equal_steps_are_decoded_once(seed: int) -> None:
    run = Run(seed)
    events = list(run.events())
    assert Counter(ended(events)) == Counter(run.wanted)
    assert len(set(run.world.decoded)) == len(run.world.decoded) == sum(event.is_fresh for event in events)
    run.check()


@settings(max_examples=6, deadline=None)
@seeds
def test_what_breaks_loops_loses_nothing_but_the_row_whose_fault_it_is(seed: int) -> None:
    run = Run(seed, is_ill=True, faults=3, num_plans=1)
    assert Counter(ended(list(run.events()))) == Counter(run.wanted)
    run.check()


@settings(max_examples=30, deadline=None)
@seeds
def test_a_question_that_is_withdrawn_leaves_all_others_as_they_are(seed: int) -> None:
    run = Run(seed, faults=1)
    gone, at, events = run.rng.choice(run.asked), run.rng.randint(0, 12), []
    if at == 0:
        run.scheduler.withdraw(gone)
    for event in run.events():
        assert len(events) < at or event.asked is not gone or not at
        events.append(event)
        if len(events) == at:
            run.scheduler.withdraw(gone)
    others = {(question, shared) for question, shared in run.wanted if question != gone.question.id}
    assert Counter(ended([event for event in events if event.asked is not gone])) == Counter(others)
    run.check(without=[gone])


@settings(max_examples=20, deadline=None)
@seeds
def test_the_order_of_ends_is_steady(seed: int) -> None:
    assert ended(list(Run(seed).events())) == ended(list(Run(seed).events()))


def test_a_loop_that_breaks_ends_its_steps_and_no_others_where_there_is_patience() -> None:
    class Missing(Pretending):
        def loop(self, name: str, plan: Plan, step: Step) -> DecodingLoop:
            def fail(loop: DecodingLoop) -> Pretended:
                raise OSError("no such file")

            is_bad = {one.model for one in members(step.source)} == {"B"}
            return DecodingLoop(plan, step, fail, print) if is_bad else super().loop(name, plan, step)

    merged = merge([chain((member("A"), ())), chain((member("B"), ()), (member("A", "{f}", f=("s1",)), ("s1",)))])
    caching = Caching(lambda *_: Shelf(), lambda *_: "", step_key, member_order)
    decoders = Missing(World(random.Random(0)))
    scheduler = Scheduler(
        merged.steps, decoders, caching, Observer(), patience=lambda shared: Patience(has_answer=False)
    )
    asked = Asked(Question(id="q", question="?", reference=""), lambda one: one.question)
    for uses in merged.uses:
        asked.of(uses)
    events = list(scheduler.run([asked]))
    assert sorted(ended(events)) == [("q", "u1"), ("q", "u2"), ("q", "u3")]
    assert scheduler.broken == {"u2": "OSError: no such file"}
    assert asked.errors == {"u2": "OSError: no such file", "u3": "OSError: no such file"}


def stages_over(first: str, second: str, *, batch: int = 3) -> list[tuple[str, int]]:
    """Run `A -> B`, placed so, over sixty questions; return step and rows by turn."""
    plan = chain((member("A"), ()), (member("B", "{f}", f=("s1",)), ("s1",)))
    plan = replace(plan, placements={"A": Placement(first, "auto", ""), "B": Placement(second, "auto", "")})
    merged, world = merge([plan]), World(random.Random(1), batch=batch, busy=0)
    caching = Caching(lambda *_: Shelf(), lambda *_: "", step_key, member_order)
    asked = [Asked(Question(id=f"q{k}", question=str(k), reference=""), lambda one: one.question) for k in range(60)]
    for one in asked:
        one.of(merged.uses[0])
    list(Scheduler(merged.steps, Pretending(world), caching, Observer()).run(asked))
    return world.turns


def test_a_later_stage_on_the_gpu_of_an_earlier_one_waits_until_its_rows_fill_a_batch() -> None:
    turns = stages_over("cuda:0", "cuda:0")
    full = [index for index, turn in enumerate(turns) if turn == ("s1", 3)]
    assert {rows for step, rows in turns[: full[-1]] if step == "s2"} == {3}


def test_a_later_stage_on_the_gpu_of_an_earlier_one_waits_until_that_has_an_eighth_of_its_rows() -> None:
    """Where all questions fit into one batch: its steps would read all weights for a few of them."""

    def left(turns: list[tuple[str, int]]) -> list[float]:
        """Return the rows that the earlier stage still had at each turn of the later one, for each of its own."""
        of_first = [next((rows for step, rows in turns[k:] if step == "s1"), 0) for k in range(len(turns))]
        return [first / rows for first, (step, rows) in zip(of_first, turns, strict=True) if step == "s2"]

    assert 0 < max(left(stages_over("cuda:0", "cuda:0", batch=64))) <= 1 / 8
    assert max(left(stages_over("cuda:0", "cuda:1", batch=64))) > 1 / 8


def test_a_later_stage_on_a_gpu_of_its_own_waits_for_nothing() -> None:
    turns = stages_over("cuda:0", "cuda:1")
    full = [index for index, turn in enumerate(turns) if turn == ("s1", 3)]
    assert min(rows for step, rows in turns[: full[-1]] if step == "s2") < 3


# With models


@pytest.fixture(scope="module")
def models() -> dict[str, HfModel]:
    return {"A": tiny.model("qwen2", "A"), "B": tiny.model("llama", "B", seed=1)}


def test_a_question_may_come_while_others_are_on_their_way(models: dict[str, HfModel]) -> None:
    """A source that has nothing at first, and nothing again until the first answer is there."""
    first, second = plans.questions(["hello", "the answer"])
    answered: list[str] = []

    def source() -> Iterator[Question | None]:
        yield None
        yield first
        while not answered:
            yield None
        yield second

    for trace in execute(plans.one_step(member("A"), max_tokens=3), source(), models=plans.Ready(models)):
        answered.append(trace.question_id)
    assert answered == ["q0", "q1"]


def test_steps_that_differ_in_options_of_rows_share_a_loop_and_write_what_they_write_alone(
    models: dict[str, HfModel],
) -> None:
    plan = chain(*((plans.mix("A", "B"), ()) for _ in range(4)))
    options: list[dict[str, Any]] = [
        {"max_tokens": 3},
        {"max_tokens": 9, "temperature": 0.8, "seed": 1},
        {"max_tokens": 12, "temperature": 1.3, "top_p": 0.7},
        {"max_tokens": 12, "stop": ("e", "a")},
    ]
    steps = tuple(
        replace(step, decoding=step.decoding.model_copy(update=own))
        for step, own in zip(plan.steps, options, strict=True)
    )
    together = replace(plan, steps=steps, answer=Answer("vote", ("s1", "s2", "s3", "s4")))
    assert len({shared.loop for shared in merge([together]).steps}) == 1
    found = plans.run(together, models, batch=3)
    for step in steps:
        alone = plans.run(replace(plan, steps=(step,), answer=Answer("text", (step.id,))), models, batch=3)
        for name, trace in alone.items():
            assert _texts(trace) == [one for one in _texts(found[name]) if one[0] == step.id]


def _texts(trace: Trace) -> list[tuple[str, str, int, str]]:
    return [(step.step, step.text, step.tokens, step.finish_reason) for step in trace.steps]
