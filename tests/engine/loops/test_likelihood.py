"""Likelihoods of given texts: what decoding would have said, summed up, and the choice by them."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import flowinfer
from flowinfer.backends.hf import HfModel
from flowinfer.engine.execute import execute
from flowinfer.engine.loops.drafting import keys_of
from flowinfer.engine.loops.heads import Heads
from flowinfer.errors import UsageError
from flowinfer.fusion.advance import NativeContext
from flowinfer.planning.plan import Plan, Source
from flowinfer.results import Question
from flowinfer.spec import Decoding
from tests.backends import tiny
from tests.engine import plans
from tests.engine.plans import Ready, group, last_step, member, mix, one_step, run
from tests.fusion import toys

TEXTS = ("hello", "B", "小明 answers", "hello hello", "é")


@pytest.fixture(scope="module")
def models() -> dict[str, HfModel]:
    """Return heads of all kinds; W's layers see eight tokens, the tokens of Y and Z are the bytes."""
    bytes_only = toys.byte_level(259)
    return {
        "A": tiny.model("qwen2", "A"),
        "B": tiny.model("llama", "B", seed=1),
        "W": tiny.model("mistral", "W", seed=3),
        "Y": tiny.model("qwen2", "Y", seed=5, tokenizer=bytes_only),
        "Z": tiny.model("llama", "Z", seed=6, tokenizer=bytes_only),
    }


def likelihoods(
    plan: Plan,
    models: Mapping[str, HfModel],
    texts: Sequence[str] = TEXTS,
    questions: Sequence[str] = ("hello",),
    **how: object,
) -> list[Mapping[str, float]]:
    asked = plans.questions(questions)
    traces = list(execute(plan, asked, models=Ready(models), candidates=texts, **{"batch": 4} | how))  # type: ignore[arg-type]
    found = {trace.question_id: last_step(trace).likelihoods for trace in traces}
    return [found[question.id] or {} for question in asked]


def summed(plan: Plan, models: Mapping[str, HfModel], text: str) -> float:
    """Return the sum over the distributions of plain decoding: a whole forward of every head for each key."""
    step = plan.steps[0]
    heads = Heads(step, [models[one.model] for one in plans.members(step.source)], observer=plans.Listener())
    prompts = [model.prompt("hello").ids for model in heads.models]
    contexts, total = [NativeContext() for _ in prompts], 0.0
    for key in keys_of(heads, text):
        logits = []
        for model, prompt, context in zip(heads.models, prompts, contexts, strict=True):
            session = model.open()
            logits.append(session.logits(session.add([[*prompt, *context.ids]])))
        total += math.log(heads.mixer.fused(logits)[0, key])
        for k, context in enumerate(contexts):
            context.append(heads.vocabulary.keys[key], heads.vocabulary.ids(k, key))
    return total


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("names", ["A", "B", "W", "AB", "ABW"])
def test_a_likelihood_is_the_sum_over_the_distributions_of_plain_decoding(
    models: dict[str, HfModel], names: str, engine: str
) -> None:
    source = member(names) if len(names) == 1 else mix(*names)
    plan = one_step(source, by="likelihood")
    (found,) = likelihoods(plan, models, engine=engine)
    assert found == pytest.approx({text: summed(plan, models, text) for text in TEXTS}, abs=1e-4)


FUSERS = ({"fuse": "mean"}, {"fuse": "geometric"}, {"fuse": "power", "a": 0.5}, {"fuse": "entropy", "k": 8})


def some_source(rng: random.Random, names: str, depth: int, weight: float = 1.0, **fuser: object) -> Source:
    """Return a model or a group, in which there may be groups, of uneven weights."""
    if not depth or rng.random() < 0.3:
        return member(rng.choice(names), node=f"n{rng.random()}", weight=weight)
    shares = [rng.random() + 0.1 for _ in range(rng.randint(1, 3))]
    inner = [some_source(rng, names, depth - 1, share / sum(shares), **fuser) for share in shares]
    return group(*inner, weight=weight, **fuser)  # type: ignore[arg-type]  # its fuser's own options


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_likelihood_of_a_greedy_text_is_the_sum_of_its_tokens_logs(models: dict[str, HfModel], seed: int) -> None:
    """Of heads of one tokenizer with any fuser, and byte by byte of heads of any: else a text has several ways."""
    rng = random.Random(seed)
    is_bytes = rng.random() < 0.3
    shares = [rng.random() + 0.1 for _ in range(2)]
    fuser = {"fuse": "byte"} if is_bytes else rng.choice(FUSERS)
    names = "ABY" if is_bytes else "YZ"
    inner = [some_source(rng, names, 1, share / sum(shares), **fuser) for share in shares]
    source = group(*inner, **fuser) if is_bytes or rng.random() < 0.8 else member("Y")  # type: ignore[arg-type]
    listener = plans.Listener()
    (trace,) = run(one_step(source, max_tokens=8), models, ["hello"], observer=listener).values()
    assume(trace.answer)
    chosen = listener.events["q0"][: len(trace.answer.encode())]
    (found,) = likelihoods(one_step(source, by="likelihood"), models, [trace.answer, "else"])
    assert found[trace.answer] == pytest.approx(sum(math.log(event.probability) for event in chosen), abs=1e-4)


@pytest.mark.parametrize("fuse", ["mean", "byte"])
def test_rows_of_a_batch_choose_what_they_choose_alone(models: dict[str, HfModel], fuse: str) -> None:
    plan = one_step(mix("A", "B", fuse=fuse), by="likelihood")
    texts = plans.QUESTIONS[:3]
    together = likelihoods(plan, models, questions=texts)
    alone = likelihoods(plan, models, questions=texts, batch=1, engine="reference")
    assert [pytest.approx(one, abs=1e-4) for one in alone] == together
    assert together[0] != pytest.approx(together[1], abs=1e-2)


def test_contexts_that_are_tokenized_again_give_what_their_ids_say(models: dict[str, HfModel]) -> None:
    native, canonical = (
        likelihoods(one_step(member("A"), by="likelihood", context=context), models)[0]
        for context in ("native", "canonical")
    )
    assert canonical == pytest.approx(native, abs=1e-4)  # a head's own ids are canonical
    (pair,) = likelihoods(one_step(mix("A", "B"), by="likelihood", context="canonical"), models)
    assert all(value < 0 for value in pair.values())


def test_a_prompt_is_read_once_for_all_texts_and_letters_cost_no_forward(models: dict[str, HfModel]) -> None:
    watched = plans.Watched(models["A"])
    likelihoods(one_step(member("A"), by="likelihood"), {"A": watched}, ["A", "B", "C", "D"])  # type: ignore[dict-item]
    assert [session.num_forwards for session in watched.sessions] == [1]
    likelihoods(one_step(member("A"), by="likelihood"), {"A": watched}, TEXTS)  # type: ignore[dict-item]
    assert sum(session.num_forwards for session in watched.sessions[1:]) <= 1 + len(TEXTS)


def test_a_question_is_answered_by_the_letter_of_its_likeliest_choice(models: dict[str, HfModel]) -> None:
    asked = Question(id="q", question="答案：", reference="A", choices={"A": "one", "B": "two", "C": "three"})
    plan = one_step(mix("A", "B"), by="likelihood")
    (trace,) = execute(plan, [asked], models=Ready(models))
    result = last_step(trace)
    assert result.likelihoods and set(result.likelihoods) == {"A", "B", "C"}
    assert trace.answer == max(result.likelihoods, key=result.likelihoods.__getitem__)
    assert (trace.finish_reason, result.tokens) == ("likelihood", 1)
    assert {head.agreement for head in result.heads} == {None}  # nobody asked for favourites
    assert result.confidence == pytest.approx(math.exp(max(result.likelihoods.values())))


def test_a_question_without_choices_fails_with_the_reason(models: dict[str, HfModel]) -> None:
    (trace,) = run(one_step(member("A"), by="likelihood"), models, ["hello"]).values()
    assert trace.error == "the question has no choices, so by=likelihood has nothing to choose from"


def test_a_text_that_does_not_fit_fails_its_question() -> None:
    models = {"A": tiny.model("qwen2", "A", max_positions=24), "B": tiny.model("llama", "B", seed=1)}
    for fuse in ("mean", "byte"):
        plan = one_step(mix("A", "B", fuse=fuse), by="likelihood")
        (trace,) = execute(plan, plans.questions(["hello"]), models=Ready(models), candidates=["B", "no " * 40])
        assert trace.error == "a text to choose from does not fit behind the prompt"


def test_results_of_before_keep_their_names() -> None:
    assert "by" not in Decoding().decisive()
    assert Decoding(by="likelihood").decisive()["by"] == "likelihood"


def test_python_asks_the_last_stage_and_lets_earlier_ones_write() -> None:
    with flowinfer.parse("Yi -> (Qwen | Ds)", zoo="lab") as flow:
        wrote = flow.run("3*x + 5 = 20").text
        found = flow.likelihood("3*x + 5 = 20", ["x=7", wrote])
        assert found[wrote] > found["x=7"]
        with pytest.raises(UsageError, match="a list of texts"):
            flow.likelihood("3*x + 5 = 20", "x=5")
        with pytest.raises(TypeError, match="question must be a text, not NoneType"):
            flow.likelihood(None, ["x=5"])  # type: ignore[arg-type]


def test_a_flow_that_takes_one_of_several_texts_has_no_likelihood() -> None:
    """It was told that its local model gives no probabilities."""
    for text in ("(Qwen / Ds)[accept=confidence, at=0.5]", "Qwen[samples=3, temperature=1]", "(Qwen & Ds)"):
        with pytest.raises(UsageError, match="the flow answers with one of several texts"):
            flowinfer.parse(text, zoo="lab").likelihood("1 + 1?", ["1", "2"])
