"""Near ties in half precision: with `strict` no batch can sway them."""

from __future__ import annotations

import copy

import pytest
import torch

from flowinfer.backends.hf import HfModel
from flowinfer.spec import ModelSpec
from tests.backends import tiny
from tests.engine.plans import answers, last_step, mix, one_step, run
from tests.fusion import toys


def half(kind: str, name: str, seed: int) -> HfModel:
    """Return a tiny model in bfloat16, whose flat distributions are near ties at most steps."""
    tokenizer = toys.sentencepiece() if kind == "llama" else toys.byte_level()
    made = copy.deepcopy(tiny.network(kind, max(tokenizer.get_vocab().values()) + 1, seed)).to(torch.bfloat16)
    return HfModel(ModelSpec(name=name, ref=name), made, tiny.wrapped(tokenizer, eos_token=None))


@pytest.fixture(scope="module")
def models() -> dict[str, HfModel]:
    return {"A": half("qwen2", "A", 1), "B": half("llama", "B", 2)}


@pytest.mark.parametrize("context", ["native", "canonical"])
def test_strict_texts_are_the_same_in_every_batch(models: dict[str, HfModel], context: str) -> None:
    plan = one_step(mix("A", "B"), strict=True, near_tie_eps=0.2, context=context)
    alone = answers(plan, models, batch=1)
    assert answers(plan, models, batch=3) == answers(plan, models, batch=7) == alone


def test_near_ties_are_there_to_be_decided(models: dict[str, HfModel]) -> None:
    traces = run(one_step(mix("A", "B"), strict=True), models).values()
    assert sum(last_step(trace).near_ties for trace in traces) >= 3


def test_strict_leaves_clear_decisions_alone() -> None:
    exact = {"A": tiny.model("qwen2", "A"), "B": tiny.model("llama", "B", seed=1)}
    assert answers(one_step(mix("A", "B"), strict=True), exact) == answers(one_step(mix("A", "B")), exact)
