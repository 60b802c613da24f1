"""A question can fail, a run cannot: faults at each call that is made, one question's and a whole batch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flowinfer.backends.base import TextCompletion
from flowinfer.backends.hf import HfModel
from flowinfer.engine.execute import execute
from flowinfer.errors import DeviceLost, MemoryShort
from flowinfer.results import Question
from tests.backends import tiny
from tests.engine import plans
from tests.engine.faults import ERRORS, Fault, Panic, run
from tests.engine.loops.test_stages import after, told, voted
from tests.engine.plans import chain, member, mix, one_step

ENGINES = (pytest.param("rounds", marks=pytest.mark.slow), "packed")
FORMS = {
    "chain": chain(after("A"), after("B", "s1"), max_tokens=4),
    "fused": chain((mix("A", "B"), ()), max_tokens=4),
    "vote": voted(),
    "nested": chain((plans.group(mix("A", "B"), member("C")), ()), after("A", "s1"), max_tokens=4),
}


@pytest.fixture(scope="module")
def models() -> dict[str, HfModel]:
    return {
        "A": tiny.model("qwen2", "A"),
        "B": tiny.model("llama", "B", seed=1),
        "C": tiny.model("llama", "C", seed=2),
    }


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("form", FORMS)
def test_a_fault_at_any_call_fails_one_question_at_most_and_changes_no_other(
    models: dict[str, HfModel], form: str, engine: str
) -> None:
    """A fault that passes, in what a whole batch does, costs nothing: its rows are decoded again."""
    counting = Fault()
    asked = plans.questions(plans.QUESTIONS[:4])
    expected = told(run(FORMS[form], models, asked, counting, engine=engine))
    for share, error in enumerate(ERRORS, 1):
        fault = Fault(1 + counting.num_calls * share // (1 + len(ERRORS)), error)
        traces = run(FORMS[form], models, asked, fault, engine=engine)
        failed = {name: trace.error for name, trace in traces.items() if trace.error is not None}
        assert len(failed) <= 1, failed
        assert all(str(fault.error) in str(error) for error in failed.values())
        assert {name: one for name, one in told(traces).items() if name not in failed} == {
            name: one for name, one in expected.items() if name not in failed
        }


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("seam", ["prompt", "admitted", "finished", "key", "order", "text", "vote"])
@pytest.mark.parametrize(
    "error",
    [ERRORS[0], *(pytest.param(error, marks=pytest.mark.slow) for error in ERRORS[1:])],
    ids=lambda error: type(error).__name__,
)
def test_a_fault_of_one_question_fails_it_and_no_other(
    models: dict[str, HfModel], engine: str, seam: str, error: BaseException
) -> None:
    asked = [Question(id=f"[{text}]", question=f"[{text}]", reference="") for text in ("one", "two", "three", "four")]
    plan = FORMS["vote"]
    expected = told(run(plan, models, asked, Fault(), engine=engine))
    traces = run(plan, models, asked, Fault(error=error, seam=seam, mark="[three]"), engine=engine)
    assert [name for name, trace in traces.items() if trace.error is not None] == ["[three]"]
    assert str(error) in str(traces["[three]"].error) and traces["[three]"].answer == ""
    del traces["[three]"], expected["[three]"]
    assert told(traces) == expected


class Choking:
    """A session that cannot read one prompt, whoever else is in the batch."""

    def __init__(self, inner: Any, ids: tuple[int, ...], error: BaseException) -> None:
        self._inner, self._ids, self._error = inner, ids, error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def add(self, prompts: Any) -> Any:
        """Read prompts, or choke."""
        if any(tuple(prompt) == self._ids for prompt in prompts):
            raise self._error
        return self._inner.add(prompts)


class ChokingModel(plans.Watched):
    """A model whose sessions choke on a text."""

    def __init__(self, model: HfModel, text: str, error: BaseException) -> None:
        super().__init__(model)
        self._ids, self._error = model.prompt(text).ids, error

    def open(self) -> Any:
        """Return a session that chokes."""
        return Choking(super().open(), self._ids, self._error)


@pytest.mark.parametrize(("batch", "index"), [(1, 4), (3, 0), (3, 6), (7, 4)])
def test_what_breaks_a_whole_batch_is_traced_to_its_question(
    models: dict[str, HfModel], batch: int, index: int
) -> None:
    plan, text = one_step(mix("A", "B"), max_tokens=5), plans.QUESTIONS[index]
    expected = told(plans.run(plan, models))
    broken: dict[str, Any] = {**models, "B": ChokingModel(models["B"], text, IndexError("index out of range in self"))}
    traces = plans.run(plan, broken, batch=batch)
    failed = traces.pop(f"q{index}")
    assert str(failed.error).startswith("IndexError: index out of range in self (at engine/")
    del expected[f"q{index}"]
    assert told(traces) == expected


def test_a_question_too_large_for_memory_fails_where_others_fit(models: dict[str, HfModel]) -> None:
    """The batch is halved to look for it, and is as wide as before when it has been found."""
    listener, plan = plans.Listener(), one_step(member("A"), max_tokens=4)
    large = ChokingModel(models["A"], plans.QUESTIONS[4], torch.OutOfMemoryError("out of memory"))
    traces = plans.run(plan, {"A": large}, batch=4, observer=listener)
    assert {name: trace.error for name, trace in traces.items() if trace.error} == {
        "q4": "step s1 step 1 does not fit into memory even for one question"
    }
    assert listener.halved == [2, 1]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), MemoryShort("memory is short")])
@pytest.mark.parametrize("seam", ["prompt", "finished", "put", "text"])
def test_what_is_the_runs_is_no_questions_fault(models: dict[str, HfModel], seam: str, error: BaseException) -> None:
    with pytest.raises(type(error)):
        run(FORMS["chain"], models, plans.questions(), Fault(error=error, seam=seam))


def test_a_device_that_is_lost_ends_the_run(models: dict[str, HfModel]) -> None:
    lost = RuntimeError("CUDA error: device-side assert triggered\nCompile with TORCH_USE_CUDA_DSA")
    with pytest.raises(DeviceLost, match="has failed in step s1 step 1: CUDA error: device-side assert") as caught:
        run(FORMS["chain"], models, plans.questions(), Fault(error=lost, seam="prompt"))
    assert str(caught.value.help).startswith("what was answered is kept: --resume goes on")


@pytest.mark.parametrize("text", ["half \ud800 a pair", "\udcff"])
def test_half_of_a_surrogate_pair_fails_its_question_and_may_stand_in_an_id(
    models: dict[str, HfModel], text: str
) -> None:
    asked = [Question(id="a\ud800", question="hello", reference=""), Question(id="b", question=text, reference="")]
    first, second = sorted(
        execute(one_step(member("A"), temperature=1.0), asked, models=plans.Ready(models)),
        key=lambda one: one.question_id,
    )
    assert first.error is None and first.question_id == "a\ud800"
    assert "half of a surrogate pair" in str(second.error)


class Endpoint:
    """A text-only model that does as each prompt says."""

    name, notes = "E", ()

    def complete(self, prompt: str, decoding: object, *, seed: int) -> TextCompletion:
        """Answer, or fail."""
        if prompt == "panic":
            raise Panic("no")
        if prompt == "deep":
            raise RecursionError("maximum recursion depth exceeded")
        return TextCompletion("half \ud83d and \ud83d\ude00", 3, "eos", 0.1)

    def close(self) -> None:
        """Do nothing."""


def test_an_endpoint_may_fail_in_any_way_and_write_any_text() -> None:
    traces = plans.run(one_step(member("E")), {"E": Endpoint()}, ["panic", "deep", "hello"])
    assert str(traces["q0"].error).startswith("Panic: no")
    assert str(traces["q1"].error).startswith("RecursionError: maximum recursion depth exceeded")
    assert traces["q2"].answer == "half \ufffd and \U0001f600"
