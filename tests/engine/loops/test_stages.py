"""Steps side by side write what step after step writes, whatever ends when, and nobody waits without need."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowinfer.backends.hf import HfModel
from flowinfer.engine import decoders
from flowinfer.engine.base import Completion, Decoder, Row, RowStream
from flowinfer.engine.execute import execute
from flowinfer.engine.loops.choice import Loop
from flowinfer.engine.loops.decoder import PackedDecoder
from flowinfer.engine.loops.fusing import fused_choice
from flowinfer.engine.loops.heads import Heads
from flowinfer.engine.loops.lockstep import LockStep, StepForm
from flowinfer.engine.loops.outcome import Outcome
from flowinfer.engine.loops.stream import PackedStream
from flowinfer.engine.network.runner import runner_of
from flowinfer.errors import MemoryShort, RunError
from flowinfer.planning.plan import Answer, Plan, Step
from flowinfer.results import Ballot, StepResult, Trace
from tests.engine import plans
from tests.engine.plans import chain, member, mix, questions, run

Models = dict[str, HfModel]
Make = Callable[[Loop], Decoder]


def packed(loop: Loop, kind: type[PackedDecoder] = PackedDecoder) -> PackedDecoder:
    """Return the packed decoder of a loop, on the CPU."""
    heads = Heads(loop.step, loop.models, observer=loop.observer, keeps_thinking=loop.keeps_thinking)
    runners: Any = [runner_of(model.transformers_model) for model in loop.models]
    choose = fused_choice(heads.mixer, loop.batch, torch.float32)
    return kind(heads, runners, choose, batch=loop.batch, num_pages=[40] * len(runners))


class Whole:
    """A decoder that keeps the host busy."""

    keeps_host_busy = True

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    def stream(self) -> RowStream:
        return self._decoder.stream()


def serve(patch: pytest.MonkeyPatch, make: Make = packed) -> None:
    """Let steps be decoded by what a function makes."""
    patch.setattr(decoders, "make_decoder", lambda loop, engine: make(loop))


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch)


def after(name: str, *reads: str, node: str = "") -> tuple[Any, tuple[str, ...]]:
    """Return a step of one model that reads others."""
    fields = {f"f{k}": (read,) for k, read in enumerate(reads)}
    template = "{question} " + " ".join(f"{{{field}}}" for field in fields)
    return member(name, template, node=node or f"n_{name}_{'_'.join(reads)}", **fields), reads


def fused(*names: str, reads: Sequence[str]) -> tuple[Any, tuple[str, ...]]:
    """Return a step of several models that read others."""
    members = [replace(after(name, *reads)[0], weight=1 / len(names)) for name in names]
    return plans.group(*members), tuple(reads)


def voted() -> Plan:
    plan = chain(after("A"), after("B"), after("C"), max_tokens=6)
    return replace(plan, answer=Answer("vote", ("s1", "s2", "s3")))


PLANS = {
    "one": chain((mix("A", "B"), ()), max_tokens=6),
    "SI": chain(after("A"), after("B", "s1"), after("C", "s2"), max_tokens=6),
    "S2P": chain(after("A"), after("B", "s1"), fused("A", "C", reads=["s1", "s2"]), max_tokens=6),
    "P2S": chain((mix("A", "B"), ()), after("C", "s1"), max_tokens=6),
    "answers": chain(after("A"), after("B"), after("C", "s1", "s2"), after("B", "s2", "s3"), max_tokens=5),
    "vote": voted(),
}


def longest(question: object, texts: Sequence[str]) -> Ballot:
    return Ballot(answers=tuple(texts), winner=max(range(len(texts)), key=lambda k: len(texts[k])))


def told(traces: Mapping[str, Trace]) -> dict[str, object]:
    """Return what no engine and no order may change."""
    return {
        key: (
            trace.answer,
            trace.finish_reason,
            trace.error,
            [(step.step, step.text, step.tokens, step.finish_reason, step.prompts) for step in trace.steps],
        )
        for key, trace in traces.items()
    }


def by_reference(plan: Plan, models: Models, texts: Sequence[str] = plans.QUESTIONS) -> dict[str, object]:
    return told(run(plan, models, texts, vote=longest))


@pytest.mark.parametrize(
    ("kind", "batch"), [*((kind, 3) for kind in PLANS), pytest.param("answers", 1, marks=pytest.mark.slow)]
)
def test_texts_are_those_of_step_after_step(
    models: Models, monkeypatch: pytest.MonkeyPatch, kind: str, batch: int
) -> None:
    expected = by_reference(PLANS[kind], models)
    serve(monkeypatch)
    assert told(run(PLANS[kind], models, batch=batch, vote=longest)) == expected
    serve(monkeypatch, lambda loop: Whole(packed(loop)))
    assert told(run(PLANS[kind], models, batch=batch, vote=longest)) == expected


def test_streamed_steps_beside_one_that_cannot_be_streamed(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = PLANS["answers"]
    expected = by_reference(plan, models)
    serve(monkeypatch, lambda loop: Whole(packed(loop)) if loop.step.id == "s2" else packed(loop))
    assert told(run(plan, models, batch=2)) == expected


@settings(max_examples=2, deadline=None)
@given(seed=st.integers(0, 1000), batch=st.integers(2, 5), kind=st.sampled_from(["S2P", "answers"]))
def test_the_order_of_questions_changes_no_text(models: Models, seed: int, batch: int, kind: str) -> None:
    texts = list(plans.QUESTIONS)
    random.Random(seed).shuffle(texts)
    with pytest.MonkeyPatch.context() as patch:
        serve(patch)
        usual, shuffled = run(PLANS[kind], models), run(PLANS[kind], models, texts, batch=batch)
    answers = {text: usual[f"q{k}"].answer for k, text in enumerate(plans.QUESTIONS)}
    assert {text: shuffled[f"q{k}"].answer for k, text in enumerate(texts)} == answers


# Overlap


def began(listener: plans.Listener, step: str) -> list[int]:
    return [index for index, (_, own) in enumerate(listener.order) if own == step]


@pytest.mark.usefixtures("streamed")
def test_a_later_step_begins_before_the_earlier_one_has_ended(models: Models) -> None:
    listener = plans.Listener()
    listener.wants_tokens = False
    run(PLANS["SI"], models, batch=2, observer=listener)
    assert began(listener, "s2")[0] < began(listener, "s1")[-1]
    assert began(listener, "s3")[0] < began(listener, "s1")[-1]


@pytest.mark.usefixtures("streamed")
def test_independent_branches_of_a_question_run_at_once(models: Models) -> None:
    listener = plans.Listener()
    run(PLANS["vote"], models, ["hello"], batch=1, observer=listener)
    assert [step for _, step in listener.order] == ["s1", "s2", "s3"]


@pytest.mark.usefixtures("streamed")
def test_a_question_is_taken_when_another_has_its_answer(models: Models) -> None:
    """Places do not stand empty until the last question of a window has ended."""
    taken = []

    def ask() -> Iterator[Any]:
        for question in questions([f"{k} hello" for k in range(30)]):
            taken.append(question.id)
            yield question

    traces = execute(PLANS["P2S"], ask(), models=plans.Ready(models), batch=3)
    seen = [len(taken) for _ in traces]
    assert seen[0] == 12
    assert 12 < seen[8] < 30


class Late:
    """An outcome that the device still works on while it is looked at a few times."""

    def __init__(self, outcome: Outcome, looks: int) -> None:
        self._outcome, self._looks = outcome, looks
        self.num_waits = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._outcome, name)

    @property
    def is_there(self) -> bool:
        self._looks -= 1
        return self._looks < 0

    def wait(self) -> None:
        self._looks = 0
        self.num_waits += 1


@pytest.mark.parametrize(("kind", "seed"), [("S2P", 1), ("answers", 2)])
def test_devices_of_any_speed(models: Models, monkeypatch: pytest.MonkeyPatch, kind: str, seed: int) -> None:
    """Outcomes come late, some much later than others; the host waits for none of them."""
    rng, outcomes = random.Random(seed), []

    def late(lock: LockStep, count: int, form: StepForm) -> Late:
        outcomes.append(Late(in_time(lock, count, form), rng.choice([0, 0, 1, 5, 20])))
        return outcomes[-1]

    in_time = LockStep.last_outcome
    expected = by_reference(PLANS[kind], models)
    monkeypatch.setattr(LockStep, "last_outcome", late)
    serve(monkeypatch)
    assert told(run(PLANS[kind], models, batch=2)) == expected
    assert not any(outcome.num_waits for outcome in outcomes)


# Cache, failures, interruption, memory


class Shelf:
    """A cache of steps."""

    def __init__(self, stored: Mapping[str, StepResult] | None = None) -> None:
        self.stored = dict(stored or {})

    def get(self, key: str) -> StepResult | None:
        return self.stored.get(key)

    def put(self, key: str, result: StepResult) -> None:
        assert key not in self.stored
        self.stored[key] = result

    def texts(self) -> dict[str, str]:
        return {key: result.text for key, result in self.stored.items()}


def key_of(plan: Plan, step: Step, prompts: Mapping[str, str], question_id: str) -> str:
    return f"{step.id} {sorted(prompts.items())}"


@pytest.mark.parametrize(
    ("kind", "kept"), [("S2P", "s2"), ("answers", "s1"), ("answers", "s3"), ("answers", "every second")]
)
def test_cached_steps_in_the_middle(models: Models, monkeypatch: pytest.MonkeyPatch, kind: str, kept: str) -> None:
    whole = Shelf()
    expected = told(run(PLANS[kind], models, cache=whole, step_key=key_of))
    serve(monkeypatch)
    names = sorted(whole.stored)
    wanted = names[::2] if kept == "every second" else [name for name in names if name.startswith(kept)]
    shelf = Shelf({name: whole.stored[name] for name in wanted})
    assert told(run(PLANS[kind], models, batch=2, cache=shelf, step_key=key_of)) == expected
    assert shelf.texts() == whole.texts()


@pytest.mark.usefixtures("streamed")
def test_nothing_is_made_where_all_is_cached(models: Models) -> None:
    shelf = Shelf()
    expected = told(run(PLANS["S2P"], models, cache=shelf, step_key=key_of))
    assert told(run(PLANS["S2P"], {}, cache=shelf, step_key=key_of)) == expected


@pytest.mark.parametrize("kind", ["one", "answers", "vote"])
def test_a_question_that_fails_stops_no_other(models: Models, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    texts = ["hello", "x " * 300, "小明", "", "the answer"]
    expected = by_reference(PLANS[kind], models, texts)
    serve(monkeypatch)
    assert told(run(PLANS[kind], models, texts, batch=2, vote=longest)) == expected


@pytest.mark.parametrize("failing", ["s1", "s2", "s3"])
def test_a_failed_question_keeps_the_steps_before_the_one_that_failed(
    models: Models, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """As step after step would: what is written beside it, but stands after it, does not count."""

    class FailingStream(PackedStream):
        def turn(self) -> list[Completion]:
            return [Completion(done.row, None, "no") if is_ill(done.row) else done for done in super().turn()]

    class FailingPacked(PackedDecoder):
        def stream(self) -> PackedStream:
            return FailingStream(self._heads, self._readers, self._caches, self._lock, self._side)

    def is_ill(row: Row) -> bool:
        return (row.question_id, row.step) == ("q2", failing)

    serve(monkeypatch, lambda loop: Whole(packed(loop, FailingPacked)))
    expected = told(run(PLANS["answers"], models, batch=2))
    serve(monkeypatch, lambda loop: packed(loop, FailingPacked))
    assert told(run(PLANS["answers"], models, batch=2)) == expected
    assert expected["q2"][2] == "no"  # type: ignore[index]  # the error of what `told` returns


def test_an_interrupted_run_leaves_nothing_behind(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[PackedDecoder] = []
    expected = by_reference(PLANS["answers"], models)

    def watch(loop: Loop) -> PackedDecoder:
        made.append(packed(loop))
        return made[-1]

    serve(monkeypatch, watch)
    shelf = Shelf()
    options: dict[str, Any] = {"models": plans.Ready(models), "cache": shelf, "step_key": key_of, "batch": 2}
    running = execute(PLANS["answers"], questions(), **options)
    first = next(running)
    running.close()
    assert len(made) == 3, "s2 and s4 are one loop"
    for decoder in made:
        assert all(cache.pages.num_free == cache.pages.num_pages for cache in decoder._caches)
        assert not decoder._lock.states.live.any()
    rest = {trace.question_id: trace for trace in execute(PLANS["answers"], questions(), **options)}
    assert told(rest) == expected
    assert first.question_id in rest


@pytest.mark.parametrize("short", ["s1", "s2", "s3"])
def test_short_memory_halves_one_steps_batch_and_loses_nothing(
    models: Models, monkeypatch: pytest.MonkeyPatch, short: str
) -> None:
    class ShortStream(PackedStream):
        num_turns = 0

        def turn(self) -> list[Completion]:
            self.num_turns += 1
            if self.num_turns == 4 and self._lock.rows > 1:
                raise torch.OutOfMemoryError("out of memory")
            return super().turn()

    class ShortPacked(PackedDecoder):
        def stream(self) -> PackedStream:
            return ShortStream(self._heads, self._readers, self._caches, self._lock, self._side)

    expected = by_reference(PLANS["answers"], models)
    serve(monkeypatch, lambda loop: packed(loop, ShortPacked if loop.step.id == short else PackedDecoder))
    listener, shelf = plans.Listener(), Shelf()
    found = run(PLANS["answers"], models, batch=4, observer=listener, cache=shelf, step_key=key_of)
    assert told(found) == expected
    assert listener.halved == [2, 1]
    ended = [(question, result.step) for question, result in listener.results]
    assert len(ended) == len(set(ended)) == 4 * len(plans.QUESTIONS)


def test_memory_too_short_to_make_a_decoder(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(loop: Loop) -> Decoder:
        if loop.step.id == "s2" and loop.batch > most:
            raise torch.OutOfMemoryError("out of memory")
        return packed(loop)

    serve(monkeypatch, make)
    most, listener = 2, plans.Listener()
    found = told(run(PLANS["SI"], models, batch=5, observer=listener))
    assert listener.halved == [2]
    assert len(found) == len(plans.QUESTIONS)
    most = 0
    with pytest.raises(MemoryShort, match="step s2 step 2 does not fit into memory even for one question"):
        run(PLANS["SI"], models, batch=5)


def test_other_errors_are_not_taken_for_short_memory(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(PackedDecoder):
        def stream(self) -> PackedStream:
            raise RuntimeError("a bug")

    serve(monkeypatch, lambda loop: packed(loop, Broken))
    with pytest.raises(RunError, match="fails for every question: RuntimeError: a bug"):
        run(PLANS["SI"], models)
