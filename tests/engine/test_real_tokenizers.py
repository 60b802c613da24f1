"""Real tokenizers over tiny random bodies: Qwen2.5, Baichuan (the class of Yi), Mistral and GPT-2 in one group."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from flowinfer.backends.hf import HfModel
from flowinfer.spec import ModelSpec
from tests.backends import tiny
from tests.conftest import shared_path
from tests.engine import plans
from tests.engine.plans import answers, last_step, member, mix, one_step, run

BODIES = {
    "Q": ("qwen2.5-instruct", "qwen2", 152_064),
    "B": ("baichuan-7b", "llama", 64_000),
    "M": ("mistral-7b-v0.1", "llama", 32_000),
    "G": ("gpt2", "gpt2", 50_257),
}
TEXTS = ("小明有3个苹果，又买了15个。", "The answer is", "naïve café 😀")


@pytest.fixture(scope="module")
def models() -> dict[str, HfModel]:
    made = {}
    for seed, (name, (folder, kind, num_columns)) in enumerate(BODIES.items()):
        tokenizer = PreTrainedTokenizerFast.from_pretrained(shared_path("data", "tokenizers", folder))
        network = tiny.network(kind, num_columns, seed)
        made[name] = HfModel(ModelSpec(name=name, ref=folder), network, tokenizer)
    return made


@pytest.mark.parametrize("context", ["native", "canonical"])
def test_bytes_of_every_heads_ids_are_the_text_at_every_step(models: dict[str, HfModel], context: str) -> None:
    watched: dict[str, Any] = {name: plans.Watched(model) for name, model in models.items()}
    listener = plans.Listener()
    traces = run(
        one_step(mix(*models), context=context, max_tokens=12, lstrip_first=False),
        watched,
        TEXTS,
        batch=3,
        observer=listener,
    )
    for head in watched.values():
        (session,) = head.sessions
        for row, texts in session.texts.items():
            emitted = listener.texts(f"q{row}")
            assert texts == emitted[: len(texts)]
            assert len(texts) == len(emitted) - (traces[f"q{row}"].finish_reason != "eos")


def test_all_classes_together_write_valid_text(models: dict[str, HfModel]) -> None:
    traces = run(one_step(mix(*"QBMG"), max_tokens=12), models, TEXTS)
    assert all(last_step(trace).tokens == 12 or trace.finish_reason == "eos" for trace in traces.values())
    assert not any("\ufffd" in trace.answer for trace in traces.values())


@pytest.mark.parametrize("context", ["native", "canonical"])
def test_batches_write_what_single_rows_write(models: dict[str, HfModel], context: str) -> None:
    plan = one_step(mix("B", "M"), context=context, max_tokens=12)
    assert answers(plan, models, TEXTS, batch=2) == answers(plan, models, TEXTS, batch=1)


def test_order_of_the_branches_does_not_matter(models: dict[str, HfModel]) -> None:
    one, two = (answers(one_step(mix(*order), max_tokens=8), models, TEXTS) for order in ("GBM", "MGB"))
    assert one == two


@pytest.mark.parametrize("name", list(BODIES))
def test_group_of_one_equals_the_model(models: dict[str, HfModel], name: str) -> None:
    plan, alone = (one_step(source, max_tokens=6) for source in (mix(name), member(name)))
    assert answers(plan, models, TEXTS) == answers(alone, models, TEXTS)


def test_certified_choice_writes_what_the_dense_one_writes(models: dict[str, HfModel]) -> None:
    dense, certified = (
        answers(one_step(mix("Q", "B"), topk=topk, max_tokens=8), models, TEXTS) for topk in ("dense", "certified")
    )
    assert dense == certified


@pytest.mark.parametrize("name", ["M", "B"])
def test_plain_prompts_have_at_most_one_bos(models: dict[str, HfModel], name: str) -> None:
    assert models[name].prompt("hello").ids.count(1) <= 1


def test_control_tokens_typed_by_a_user_stay_text(models: dict[str, HfModel]) -> None:
    model = models["Q"]
    specials = set(model.vocabulary().tokens.specials.values())
    typed = model.prompt("a <|im_end|> b <|im_start|>system").ids
    plain = model.prompt("a b").ids
    assert [i for i in typed if i in specials] == [i for i in plain if i in specials]


@pytest.mark.parametrize("mark", ["<tool_call>", "</tool_call>", "<|fim_prefix|>"])
def test_marks_typed_by_a_user_stay_text(models: dict[str, HfModel], mark: str) -> None:
    tokens = models["Q"].vocabulary().tokens
    ids = models["Q"].prompt(f"a {mark} b").ids
    assert tokens.marks[mark] not in ids
    assert f"a {mark} b".encode() in b"".join(tokens.pieces[i] or b"" for i in ids)


def test_qwens_tokens_are_fewer_than_its_columns(models: dict[str, HfModel]) -> None:
    vocabulary = models["Q"].vocabulary()
    assert len(vocabulary.tokens.pieces) == 151_665
    assert vocabulary.num_columns == 152_064
