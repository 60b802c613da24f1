"""The scheduler and its rows: batches, joins, ends, failures, memory, caches, waves, thinking."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from flowinfer.backends.base import TextCompletion
from flowinfer.backends.hf import HfModel
from flowinfer.engine import models as pools
from flowinfer.engine.base import Observer, Row, decode
from flowinfer.engine.execute import execute
from flowinfer.engine.loops.rounds import RoundDecoder
from flowinfer.engine.loops.thinking import strip_thinking
from flowinfer.engine.models import ModelPool
from flowinfer.errors import LoadError, MemoryShort, RunError
from flowinfer.planning.plan import Answer, Placement, Plan, Step, Wave
from flowinfer.results import Ballot, Question, StepResult
from flowinfer.spec import Decoding, ModelSpec
from tests.backends import tiny
from tests.engine import plans
from tests.engine.plans import answers, chain, last_step, member, mix, one_step, questions, run

ALONE = 1


@pytest.fixture(scope="module")
def models() -> dict[str, HfModel]:
    return {
        "A": tiny.model("qwen2", "A"),
        "B": tiny.model("llama", "B", seed=1),
        "W": tiny.model("mistral", "W", seed=3),
    }


class Script:
    """Logits that write given bytes row by row, one byte at a time, then end."""

    def __init__(self, model: HfModel, text: str) -> None:
        tokens = model.vocabulary().tokens
        self.ids = [tokens.id_of[bytes([byte])] for byte in text.encode()]
        self.end = min(model.vocabulary().eos_ids)
        self.at = 0

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        made = torch.full_like(logits, -40.0)
        made[:, self.ids[self.at] if self.at < len(self.ids) else self.end] = 0.0
        self.at += 1
        return made


def writing(model: HfModel, text: str) -> plans.Watched:
    return plans.Watched(model, logits=Script(model, text))


@pytest.mark.parametrize("source", [member("A"), mix("A", "B"), mix("A", "W")], ids=["A", "A|B", "A|W"])
@pytest.mark.parametrize("context", ["native", "canonical"])
@pytest.mark.parametrize("batch", [2, 7])
def test_batches_write_what_single_rows_write(
    models: dict[str, HfModel], source: Any, context: str, batch: int
) -> None:
    """Prompts of unequal length; with a batch below seven, rows end and others take their places."""
    plan = one_step(source, context=context, max_tokens=10)
    assert answers(plan, models, batch=batch) == answers(plan, models, batch=ALONE)


def test_rows_that_end_early_leave_their_place_to_waiting_ones(models: dict[str, HfModel]) -> None:
    watched = {"A": plans.Watched(models["A"])}
    run(one_step(member("A")), watched, batch=2)
    (session,) = watched["A"].sessions
    assert session.most_live == 2
    assert len(session.prompts) == len(plans.QUESTIONS)
    assert not session.live


@pytest.mark.parametrize("batch", [1, 2, 4, "auto"])
def test_every_question_gets_one_trace(models: dict[str, HfModel], batch: Any) -> None:
    assert sorted(run(one_step(member("A"), max_tokens=4), models, batch=batch)) == [f"q{k}" for k in range(7)]


def test_no_questions_give_no_traces(models: dict[str, HfModel]) -> None:
    assert run(one_step(member("A")), models, []) == {}


@pytest.mark.parametrize("batch", [1, 4])
def test_questions_are_taken_as_they_are_needed(models: dict[str, HfModel], batch: int) -> None:
    taken = []

    def endless() -> Any:
        number = 0
        while True:
            taken.append(number)
            yield Question(id=f"q{number}", question="hello", reference="")
            number += 1

    traces = execute(one_step(member("A"), max_tokens=2), endless(), models=plans.Ready(models), batch=batch)
    next(iter(traces))
    assert len(taken) <= 4 * batch


@pytest.mark.parametrize("context", ["native", "canonical"])
def test_two_runs_are_equal_to_the_bit(models: dict[str, HfModel], context: str) -> None:
    heard = []
    for _ in range(2):
        listener = plans.Listener()
        run(one_step(mix("A", "B"), context=context), models, observer=listener)
        heard.append(listener.events)
    assert heard[0] == heard[1]


# Ends of rows


@pytest.mark.parametrize(
    ("written", "stop", "answer"),
    [
        ("abcSTOPdef", ("STOP",), "abc"),
        ("abcSTOPdef", ("OPd",), "abcST"),
        ("答案是：B。\n\n再见", ("\n\n",), "答案是：B。"),
        ("小明，再见", ("，",), "小明"),
        ("one two one", ("two", "one"), ""),
        ("xaab", ("ab",), "xa"),
        ("nothing", ("STOP", ""), "nothing"),
    ],
)
def test_stop_texts_straddle_tokens_and_are_cut(
    models: dict[str, HfModel], written: str, stop: tuple[str, ...], answer: str
) -> None:
    """The script writes one byte a token, so every stop text is cut by token ends, and characters too."""
    heads = {"A": writing(models["A"], written)}
    trace = run(one_step(member("A"), stop=stop, max_tokens=64), heads, ["hello"])["q0"]
    assert trace.answer == answer
    assert trace.finish_reason == ("eos" if answer == written else "stop")


def test_a_stop_text_in_the_middle_of_a_token_is_cut_there(models: dict[str, HfModel]) -> None:
    token_id = models["A"].vocabulary().tokens.id_of[b" answer"]

    def speak(logits: torch.Tensor) -> torch.Tensor:
        made = torch.full_like(logits, -40.0)
        made[:, token_id] = 0.0
        return made

    heads = {"A": plans.Watched(models["A"], logits=speak)}
    assert answers(one_step(member("A"), stop=("swer ans",)), heads, ["hello"]) == [" an"]


def test_a_stop_text_in_the_prefill_or_prompt_does_not_count(models: dict[str, HfModel]) -> None:
    heads = {"A": writing(models["A"], "abc")}
    plan = one_step(member("A", "STOP {question}"), stop=("STOP",), prefill="STOP ")
    assert answers(plan, heads, ["hello"]) == ["STOP abc"]


@pytest.mark.parametrize("max_tokens", [1, 5, 16])
def test_max_tokens_counts_emitted_tokens(models: dict[str, HfModel], max_tokens: int) -> None:
    heads = {"A": writing(models["A"], "a" * 40)}
    trace = run(one_step(member("A"), max_tokens=max_tokens), heads, ["hello"])["q0"]
    assert (trace.answer, trace.finish_reason) == ("a" * max_tokens, "length")
    assert last_step(trace).tokens == max_tokens


@pytest.mark.parametrize(
    ("written", "max_tokens", "answer"), [("好😀", 5, "好"), ("好😀", 2, ""), ("é", 1, ""), ("好😀", 7, "好😀")]
)
def test_a_character_cut_by_max_tokens_is_left_out(
    models: dict[str, HfModel], written: str, max_tokens: int, answer: str
) -> None:
    heads = {"A": writing(models["A"], written)}
    assert answers(one_step(member("A"), max_tokens=max_tokens), heads, ["hello"]) == [answer]


@pytest.mark.parametrize("context", ["native", "canonical"])
def test_a_row_ends_where_a_heads_positions_end(context: str) -> None:
    short = {"A": tiny.model("qwen2", "A"), "B": plans.Watched(tiny.model("llama", "B", max_positions=20))}
    trace = run(one_step(mix("A", "B"), context=context, max_tokens=100), short, ["hello"])["q0"]
    assert trace.finish_reason == "context"
    (session,) = short["B"].sessions
    assert 17 <= len(session.prompts[0]) + len(session.ids[0]) <= 20


def test_prefill_starts_the_answer_and_is_read_by_every_head(models: dict[str, HfModel]) -> None:
    watched = {name: plans.Watched(models[name]) for name in "AB"}
    trace = run(one_step(mix("A", "B"), prefill="The answer is"), watched, ["hello"])["q0"]
    assert trace.answer.startswith("The answer is")
    for name, head in watched.items():
        assert head.sessions[0].prompts[0] == list(models[name].prompt("hello", "The answer is").ids)


# Failures


def test_a_too_long_prompt_is_a_failed_question_that_stops_nothing(models: dict[str, HfModel]) -> None:
    texts = ["x " * 300, "hello", "y " * 300, "z " * 300, "the answer"]
    traces = run(one_step(mix("A", "B"), max_tokens=4), models, texts, batch=2)
    assert [traces[f"q{k}"].finish_reason == "error" for k in range(5)] == [True, False, True, True, False]
    count = len(models["A"].prompt(texts[0]).ids)
    assert traces["q0"].error == (f"the prompt has {count} tokens for 'A', which reads at most 256 with its answer")
    assert (traces["q0"].answer, traces["q0"].steps) == ("", ())
    healthy = answers(one_step(mix("A", "B"), max_tokens=4), models, ["hello", "the answer"])
    assert [traces["q1"].answer, traces["q4"].answer] == healthy


@pytest.mark.parametrize("batch", [1, 2])
def test_a_decoder_goes_on_after_a_batch_of_misfits(models: dict[str, HfModel], batch: int) -> None:
    """It used to stop where all admitted rows failed and none was live."""
    plan = one_step(member("A"), max_tokens=2)
    decoder = RoundDecoder(plan.steps[0], [models["A"]], batch=batch, observer=Observer())
    rows = [Row(f"q{k}", "s1", {"n_A": text}) for k, text in enumerate(["x " * 300, "y " * 300, "hello"])]
    assert [completion.error is None for completion in decode(decoder, rows)] == [False, False, True]


def test_an_empty_prompt_is_a_failed_question(models: dict[str, HfModel]) -> None:
    trace = run(one_step(member("A")), models, [""])["q0"]
    assert trace.error == "the prompt is empty for 'A'"


def test_a_failed_step_ends_its_question_and_no_later_step_runs(models: dict[str, HfModel]) -> None:
    plan = chain((member("A"), ()), (member("B", "{prev}", prev=("s1",)), ("s1",)), max_tokens=4)
    traces = run(plan, models, ["x " * 300, "hello"])
    assert [len(traces[q].steps) for q in ("q0", "q1")] == [0, 2]


def test_short_memory_halves_the_batch_and_loses_nothing(models: dict[str, HfModel]) -> None:
    listener = plans.Listener()
    narrow = {"A": plans.Watched(models["A"], most_rows=2), "B": plans.Watched(models["B"])}
    plan = one_step(mix("A", "B"))
    assert answers(plan, narrow, batch=7, observer=listener) == answers(plan, models)
    assert listener.halved == [3, 1]


def test_short_memory_in_the_middle_keeps_what_is_done(models: dict[str, HfModel]) -> None:
    """Rows that ended before are not decoded again."""

    class Failing(plans.Watched):
        def open(self) -> Any:
            session = super().open()
            if len(self.sessions) == 1:
                calls = iter(range(100))
                verify = session.verify

                def verify_or_fail(segments: Mapping[int, Sequence[Sequence[int]]]) -> torch.Tensor:
                    if next(calls) == 5:
                        raise torch.OutOfMemoryError("out of memory")
                    return verify(segments)

                session.verify = verify_or_fail
            return session

    listener = plans.Listener()
    plan = one_step(member("A"), max_tokens=4)
    assert answers(plan, {"A": Failing(models["A"])}, batch=2, observer=listener) == answers(plan, models)
    assert listener.halved == [1]
    assert [question for question, _ in listener.results] == [f"q{k}" for k in range(7)]


def test_memory_too_short_for_one_row_is_an_error_with_its_cure(models: dict[str, HfModel]) -> None:
    none = {"A": plans.Watched(models["A"], most_rows=0)}
    with pytest.raises(MemoryShort) as caught:
        run(one_step(member("A")), none)
    assert caught.value.message == "step s1 step 1 does not fit into memory even for one question"
    assert caught.value.help == "lower max_tokens, use dtype=bfloat16, or place its models on other devices"


def test_other_runtime_errors_are_not_taken_for_short_memory(models: dict[str, HfModel]) -> None:
    def fail(logits: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("a bug")

    with pytest.raises(RunError, match="step s1 step 1 fails for every question: RuntimeError: a bug") as caught:
        run(one_step(member("A")), {"A": plans.Watched(models["A"], logits=fail)})
    assert isinstance(caught.value.__cause__, RuntimeError)


# Steps, cache, waves


class Shelf:
    """A cache of steps that counts."""

    def __init__(self) -> None:
        self.stored: dict[str, StepResult] = {}
        self.hits = 0

    def get(self, key: str) -> StepResult | None:
        found = self.stored.get(key)
        self.hits += found is not None
        return found

    def put(self, key: str, result: StepResult) -> None:
        assert key not in self.stored
        self.stored[key] = result


def key_of(plan: Plan, step: Step, prompts: Mapping[str, str], question_id: str) -> str:
    return f"{step.source} {sorted(prompts.items())}"


def two_steps(**options: Any) -> Plan:
    return chain(
        (mix("A", "B"), ()),
        (member("B", "{question} {prev}", prev=("s1",)), ("s1",)),
        **({"max_tokens": 6} | options),
    )


def test_later_steps_read_what_earlier_ones_passed_on(models: dict[str, HfModel]) -> None:
    for trace in run(two_steps(), models).values():
        first, second = trace.steps
        assert second.prompts["n_B"].endswith(" " + first.passed_on)
        assert trace.answer == second.passed_on


def test_cached_steps_are_taken_instead_of_running(models: dict[str, HfModel]) -> None:
    shelf = Shelf()
    first = run(two_steps(), models, cache=shelf, step_key=key_of)
    watched = {name: plans.Watched(models[name]) for name in "AB"}
    second = run(two_steps(), watched, cache=shelf, step_key=key_of)
    assert shelf.hits == 14
    assert not watched["A"].sessions
    assert {q: trace.answer for q, trace in first.items()} == {q: trace.answer for q, trace in second.items()}


def test_only_missing_steps_run(models: dict[str, HfModel]) -> None:
    """As after an interruption: the first step of three questions is known."""
    shelf = Shelf()
    run(one_step(mix("A", "B"), max_tokens=6), models, plans.QUESTIONS[:3], cache=shelf, step_key=key_of)
    watched = {name: plans.Watched(models[name]) for name in "AB"}
    whole = run(two_steps(), watched, cache=shelf, step_key=key_of)
    assert sum(len(session.prompts) for session in watched["A"].sessions) == 4
    assert {q: trace.answer for q, trace in whole.items()} == {
        q: trace.answer for q, trace in run(two_steps(), models).items()
    }


def test_cache_without_a_key_is_not_used(models: dict[str, HfModel]) -> None:
    shelf = Shelf()
    run(two_steps(), models, cache=shelf)
    assert not shelf.stored


def test_failed_questions_are_not_cached(models: dict[str, HfModel]) -> None:
    shelf = Shelf()
    run(one_step(member("A")), models, ["x " * 300], cache=shelf, step_key=key_of)
    assert not shelf.stored


def placed(plan: Plan) -> Plan:
    where = {name: Placement("cpu", "float32", "test") for name in plan.models}
    return replace(plan, placements=where, waves=(Wave(("s1",), ("A", "B")), Wave(("s2",), ("B",))))


def test_waves_write_what_one_wave_writes(models: dict[str, HfModel]) -> None:
    assert answers(placed(two_steps()), models) == answers(two_steps(), models)


def test_waves_run_one_step_over_all_questions_before_the_next(models: dict[str, HfModel]) -> None:
    listener = plans.Listener()
    run(placed(two_steps()), models, batch=1, observer=listener)
    assert [step for _, step in listener.order] == ["s1"] * 7 + ["s2"] * 7


def test_one_wave_finishes_a_window_before_the_next_one_starts(models: dict[str, HfModel]) -> None:
    listener = plans.Listener()
    run(two_steps(), models, batch=1, observer=listener)
    assert [step for _, step in listener.order] == ["s1", "s2"] * 7


class Closable:
    """A model that only knows whether it was closed."""

    notes = ()

    def __init__(self) -> None:
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True


def test_a_wave_frees_the_models_that_it_does_not_need() -> None:
    pool, plan = ModelPool(), placed(two_steps())
    loaded = {name: Closable() for name in "AB"}

    for name in "AB":
        key = pools._weights_key(plan.models[name], plan.placements[name])
        pool._loaded[key] = loaded[name]
    pool.keep_only(plan, ["B"])
    assert (loaded["A"].is_closed, loaded["B"].is_closed) == (True, False)
    assert pool.get(plan, "B", Observer()) is loaded["B"]
    pool.close()
    assert loaded["B"].is_closed


def test_names_for_the_same_weights_share_one_model() -> None:
    specs = {name: ModelSpec(name=name, ref="x", think=think) for name, think in (("P", "keep"), ("Q", "strip"))}
    plan = replace(chain((member("P"), ()), (member("Q"), ()), specs=specs), placements={})
    pool = ModelPool()
    where = Placement("cpu", "auto", "not placed")
    pool._loaded[pools._weights_key(specs["P"], where)] = Closable()
    assert pool.get(plan, "P", Observer()) is pool.get(plan, "Q", Observer())


def test_unknown_backend_is_a_load_error() -> None:
    plan = one_step(member("A"))
    plan = replace(plan, models={"A": ModelSpec(name="A", ref="x", backend="vllm")})
    with pytest.raises(LoadError, match="unknown backend 'vllm'"):
        list(execute(plan, questions(["hello"])))


def test_majority_is_asked_for_where_several_steps_end_the_flow(models: dict[str, HfModel]) -> None:
    plan = chain((member("A"), ()), (member("B"), ()), max_tokens=4)
    plan = replace(plan, answer=Answer("vote", ("s1", "s2")))
    trace = run(plan, models, ["hello"], vote=lambda question, texts: Ballot(answers=("7", "7"), winner=1))["q0"]
    assert trace.ballot and trace.ballot.votes == 2
    assert (trace.answer, trace.finish_reason) == (trace.steps[1].passed_on, "vote")


def test_several_answers_are_joined_for_the_stage_that_reads_them(models: dict[str, HfModel]) -> None:
    reader = member("A", "{answers}", answers=("s1", "s2"), node="n3")
    plan = chain((member("A"), ()), (member("B"), ()), (reader, ("s1", "s2")), max_tokens=4)
    trace = run(plan, models, ["hello"])["q0"]
    one, two, three = trace.steps
    assert three.prompts["n3"] == f"回答1:{one.passed_on}\n\n回答2:{two.passed_on}"


def test_question_text_fills_the_question_field(models: dict[str, HfModel]) -> None:
    plan = one_step(member("A", "Q: {question}"), max_tokens=2)
    trace = run(plan, models, ["hello"], question_text=lambda question: question.question.upper())["q0"]
    assert last_step(trace).prompts == {"n_A": "Q: HELLO"}


def test_seconds_follow_the_longest_chain_of_steps(models: dict[str, HfModel]) -> None:
    plan = chain((member("A"), ()), (member("B"), ()), (member("A", "{prev}", prev=("s1",)), ("s1",)), max_tokens=4)
    trace = run(plan, models, ["hello"])["q0"]
    one, two, three = (step.seconds for step in trace.steps)
    assert trace.seconds == pytest.approx(max(one + three, two))


def test_what_a_model_says_of_itself_is_told_once(models: dict[str, HfModel], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "_load", lambda spec, placement: models["W"])
    listener, pool = plans.Listener(), ModelPool()
    for _ in range(2):
        pool.get(one_step(member("W")), "W", listener)
    assert listener.notices == ["'W' has layers that do not attend to every token: its rows run one by one"]


# Thinking


@pytest.mark.parametrize(
    ("text", "opened", "kept"),
    [
        ("<think>hm</think>\n\n42", False, "42"),
        ("hm</think>\n\n42", False, "42"),
        ("hm</think>42", True, "42"),
        ("no tags", False, "no tags"),
        ("never closed", True, ""),
        ("before <think>hm", False, "before"),
        ("before <think>hm</think> after", False, "before  after"),
        ("<think>a</think><think>b</think>42", False, "42"),
        ("a<think>b</think>42", True, "42"),
        ("<think></think>", False, ""),
        ("", False, ""),
        ("", True, ""),
    ],
)
def test_thinking_is_stripped(text: str, opened: bool, kept: str) -> None:
    assert strip_thinking(text, opened=opened) == kept


def thinking(models: dict[str, HfModel], think: str, text: str, **options: Any) -> StepResult:
    specs = {"A": ModelSpec(name="A", ref="A", think=think)}
    heads = {"A": writing(models["A"], text)}
    plan = chain((member("A"), ()), specs=specs, max_tokens=64, **options)
    return last_step(run(plan, heads, ["hello"])["q0"])


@pytest.mark.parametrize(("think", "passed_on"), [("strip", "42"), ("keep", "<think>hm</think>42")])
def test_later_stages_read_thinking_only_where_it_is_kept(
    models: dict[str, HfModel], think: str, passed_on: str
) -> None:
    result = thinking(models, think, "<think>hm</think>42")
    assert result.text == "<think>hm</think>42"
    assert result.passed_on == passed_on


def test_a_lone_closing_tag_ends_the_thinking(models: dict[str, HfModel]) -> None:
    assert thinking(models, "strip", "hm</think>\n42").passed_on == "42"


def test_a_prefill_that_opens_thinking_counts(models: dict[str, HfModel]) -> None:
    result = thinking(models, "strip", "hm</think>42", prefill="<think>\n")
    assert (result.text, result.passed_on) == ("<think>\nhm</think>42", "42")


# Text-only models


class Endpoint:
    """A text-only model of three lines."""

    name, notes = "E", ()

    def __init__(self) -> None:
        self.seeds: list[int] = []

    def complete(self, prompt: str, decoding: Decoding, *, seed: int) -> TextCompletion:
        self.seeds.append(seed)
        if "fail" in prompt:
            raise RunError("the endpoint failed")
        return TextCompletion(f"<think>hm</think>{prompt}!", 3, "eos", 0.1)

    def close(self) -> None:
        """Do nothing."""


def endpoint_plan(think: str = "strip") -> Plan:
    return chain((member("E"), ()), specs={"E": ModelSpec(name="E", ref="E", think=think)})


@pytest.mark.parametrize(("think", "answer"), [("strip", "hello!"), ("keep", "<think>hm</think>hello!")])
def test_text_only_models_complete_prompts(think: str, answer: str) -> None:
    trace = run(endpoint_plan(think), {"E": Endpoint()}, ["hello"])["q0"]
    assert (trace.answer, last_step(trace).tokens) == (answer, 3)


def test_a_failing_endpoint_fails_its_question_only() -> None:
    traces = run(endpoint_plan(), {"E": Endpoint()}, ["hello", "fail", "again"])
    assert [traces[f"q{k}"].error for k in range(3)] == [None, "the endpoint failed", None]


def test_a_slow_request_holds_no_other_answer_up() -> None:
    """What has been answered is on disk before a slow endpoint answers the first question."""
    released = threading.Event()

    class Slow(Endpoint):
        def complete(self, prompt: str, decoding: Decoding, *, seed: int) -> TextCompletion:
            if prompt == "slow":
                assert released.wait(30)
            return super().complete(prompt, decoding, seed=seed)

    asked = plans.questions(["slow", *"abcdefghijkl"])
    traces = execute(endpoint_plan(), asked, models=plans.Ready({"E": Slow()}))
    first = [next(traces).question_id for _ in range(12)]
    assert "q0" not in first and len(set(first)) == 12
    released.set()
    assert [trace.question_id for trace in traces] == ["q0"]


def test_endpoint_seeds_differ_by_question_and_not_by_run() -> None:
    first, second = Endpoint(), Endpoint()
    for endpoint in (first, second):
        run(endpoint_plan(), {"E": endpoint}, ["a", "b", "c"])
    assert sorted(first.seeds) == sorted(second.seeds)
    assert len(set(first.seeds)) == 3


def test_text_of_an_endpoint_reaches_a_local_model(models: dict[str, HfModel]) -> None:
    specs = {"E": ModelSpec(name="E", ref="E")}
    plan = chain((member("E"), ()), (member("A", "{prev}", prev=("s1",)), ("s1",)), specs=specs, max_tokens=4)
    trace = run(plan, {**models, "E": Endpoint()}, ["hello"])["q0"]
    assert trace.steps[1].prompts["n_A"] == "hello!"
