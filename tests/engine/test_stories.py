"""Trained models: two story writers of different vocabularies, and a zoo with known accuracies."""

from __future__ import annotations

import json
import re
import warnings
from functools import cache
from itertools import permutations
from typing import Any

import pytest
import torch

from flowinfer.backends import hf
from flowinfer.backends.hf import HfModel
from flowinfer.backends.known import whole
from flowinfer.engine.execute import execute
from flowinfer.fusion.shared import SharedVocabularyWarning
from flowinfer.language import prompts
from flowinfer.planning.plan import Answer, Member, Mixture, Plan, Step
from flowinfer.results import Question, Trace
from flowinfer.spec import Decoding, ModelSpec
from tests.conftest import shared_path
from tests.engine import plans
from tests.engine.plans import group, last_step, member, mix, one_step, run

BEGINNING = "Once upon a time"


@pytest.fixture(scope="module")
def writers() -> dict[str, HfModel]:
    folders = {"S": "stories260K", "C": "babyllama105"}
    return {
        name: hf.load(ModelSpec(name=name, ref=str(shared_path("data", "models", folder))), "cpu")
        for name, folder in folders.items()
    }


def story(source: Any, writers: dict[str, HfModel], **options: Any) -> Trace:
    decoding = {"max_tokens": 60} | {key: options.pop(key) for key in list(options) if key != "observer"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SharedVocabularyWarning)
        return run(one_step(source, **decoding), writers, [BEGINNING], **options)["q0"]


@pytest.mark.parametrize("name", ["S", "C"])
def test_a_story_model_alone_writes_what_generate_writes(writers: dict[str, HfModel], name: str) -> None:
    model = writers[name]
    vocabulary = model.vocabulary()
    ids = torch.tensor([model.prompt(BEGINNING).ids])
    writing = {*vocabulary.text_ids(), *vocabulary.eos_ids}
    found = (
        whole(model._model)
        .generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=120,
            do_sample=False,
            suppress_tokens=[i for i in range(vocabulary.num_columns) if i not in writing],
            pad_token_id=0,
        )[0, ids.shape[1] :]
        .tolist()
    )
    pieces = [vocabulary.tokens.pieces[i] or b"" for i in found if i not in vocabulary.eos_ids]
    assert story(member(name), writers, max_tokens=120).answer == b"".join(pieces).decode()


@pytest.mark.parametrize("context", ["native", "canonical"])
def test_a_group_of_story_models_writes_fluent_english(writers: dict[str, HfModel], context: str) -> None:
    """512 pieces with byte fallback beside 105 characters without: every key is written by both."""
    text = story(mix("S", "C"), writers, context=context, max_tokens=120).answer
    words = re.findall(r"[a-z']+", text.lower())
    common = {"a", "the", "and", "to", "was", "she", "he", "it", "her", "his", "they", "in", "of", "had", "little"}
    assert len(text) >= 100
    assert text.isascii()
    assert sum(word in common for word in words) / len(words) > 0.2
    assert max(map(len, words)) <= 14


def test_a_story_is_the_same_every_time(writers: dict[str, HfModel]) -> None:
    first, second = (story(mix("S", "C"), writers, context="canonical", max_tokens=40).answer for _ in range(2))
    assert first == second


@pytest.mark.parametrize("context", ["native", "canonical"])
def test_a_story_does_not_depend_on_the_order_of_its_writers(writers: dict[str, HfModel], context: str) -> None:
    one, two = (story(mix(*order), writers, context=context, max_tokens=40).answer for order in permutations("SC"))
    assert one == two


def test_both_writers_have_a_say(writers: dict[str, HfModel]) -> None:
    text = story(mix("S", "C"), writers, max_tokens=100).answer
    assert text not in {story(member(name), writers, max_tokens=100).answer for name in "SC"}


def test_a_story_ends_where_its_model_ends_it(writers: dict[str, HfModel]) -> None:
    """With <s>, which only the generation config names; </s> never comes."""
    trace = story(member("S"), writers, max_tokens=500)
    assert trace.finish_reason == "eos"
    assert len(trace.answer) > 200


def test_the_shorter_context_ends_a_group(writers: dict[str, HfModel]) -> None:
    """512 positions beside 256, and characters use them up sooner."""
    never = group(member("S", weight=0.5), member("C", weight=0.5))
    trace = story(never, writers, max_tokens=400)
    assert trace.finish_reason == "context"
    used = {head.model: head.prompt_tokens + head.fed_tokens for head in last_step(trace).heads}
    assert used["C"] <= 256
    assert used["S"] < 512


@pytest.mark.parametrize("context", ["native", "canonical"])
def test_both_writers_ids_are_the_text_at_every_step(writers: dict[str, HfModel], context: str) -> None:
    watched: dict[str, Any] = {name: plans.Watched(model) for name, model in writers.items()}
    listener = plans.Listener()
    story(mix("S", "C"), watched, context=context, max_tokens=60, observer=listener)
    for head in watched.values():
        (session,) = head.sessions
        (texts,) = session.texts.values()
        assert len(texts) >= 59
        assert texts == listener.texts("q0")[: len(texts)]


def test_keys_left_out_of_the_group_are_told(writers: dict[str, HfModel]) -> None:
    listener = plans.Listener()
    run(one_step(mix("S", "C"), max_tokens=2), writers, [BEGINNING], observer=listener)
    (notice,) = listener.notices
    assert re.search(r"head 2 of the group has no byte fallback: \d+ of \d+ shared", notice)


# The trial zoo

ZOO = ("Qwen", "Ds", "Yi")
FINAL = re.compile(r"(?:####|答案：|Answer:)\s*(.+?)\s*$")


@cache
def expected() -> dict[str, dict[str, float]]:
    return json.loads(shared_path("trial_zoo", "expected.json").read_text())


@cache
def items(data: str) -> tuple[dict[str, Any], ...]:
    lines = shared_path("trial_zoo", f"{data}.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(json.loads(line) for line in lines)


def zoo_member(name: str, role: str = "draft", preceding: int = 0, weight: float = 1.0, **fields: Any) -> Member:
    template = prompts.template_for("paper", role, preceding)
    return Member(f"n_{name}", name, role, template, fields, weight)


def zoo_plan(*steps: tuple[str, ...]) -> Plan:
    """Return a flow of stages, each a tuple of names: one model, or a group."""
    decoding, made = Decoding(max_tokens=64), []
    for number, names in enumerate(steps):
        role = prompts.role_for(number, is_last=number == len(steps) - 1)
        fields = {"prev": (f"s{number}",)} if number else {}
        members = tuple(zoo_member(name, role, number, 1 / len(names), **fields) for name in names)
        source = members[0] if len(members) == 1 else Mixture(f"g{number}", "mean", {}, members)
        made.append(Step(f"s{number + 1}", " | ".join(names), source, decoding, fields.get("prev", ())))
    specs = {name: ModelSpec(name=name, ref=str(shared_path("trial_zoo", name.lower())), think="keep") for name in ZOO}
    return Plan("zoo", tuple(made), Answer("text", (made[-1].id,)), specs, "paper")


def shown(question: Question) -> str:
    choices = "".join(f"\n{letter}. {text}" for letter, text in question.choices.items())
    return question.question + choices


def accuracy(plan: Plan, data: str, count: int) -> float:
    """Return the share of right answers in percent, by the plain rule: what stands after the mark at the end."""
    chosen = items(data)[:count]
    asked = [
        Question(
            id=str(item["id"]), question=item["question"], reference=item["answer"], choices=item.get("choices", {})
        )
        for item in chosen
    ]
    reference = {question.id: question.reference for question in asked}
    right = 0
    for trace in execute(plan, asked, question_text=shown, batch=20):
        found = FINAL.search(trace.answer)
        right += found is not None and found[1].strip().rstrip("。.") == reference[trace.question_id]
    return 100 * right / len(chosen)


def test_a_trained_model_solves_word_problems_as_recorded() -> None:
    """Twenty items of the hundred behind the recorded 69 percent."""
    recorded = expected()["Qwen"]["gsm8k"]
    assert accuracy(zoo_plan(("Qwen",)), "gsm8k", 20) == pytest.approx(recorded, abs=20)


FLOWS = {
    "Qwen": (("Qwen",),),
    "Ds": (("Ds",),),
    "Yi": (("Yi",),),
    "SI Qwen -> Ds -> Yi": (("Qwen",), ("Ds",), ("Yi",)),
    "PI Qwen | Ds | Yi": (("Qwen", "Ds", "Yi"),),
    "S2P Yi -> (Qwen | Ds)": (("Yi",), ("Qwen", "Ds")),
    "P2S (Qwen | Ds) -> Yi": (("Qwen", "Ds"), ("Yi",)),
    "S2P3 Yi -> Qwen -> (Ds | Yi)": (("Yi",), ("Qwen",), ("Ds", "Yi")),
}


@pytest.mark.slow
@pytest.mark.parametrize("data", ["gsm8k", "ceval", "mathematics"])
@pytest.mark.parametrize("flow", FLOWS)
def test_flows_of_the_zoo_reach_their_recorded_accuracy(flow: str, data: str) -> None:
    assert accuracy(zoo_plan(*FLOWS[flow]), data, 100) == pytest.approx(expected()[flow][data], abs=3)
