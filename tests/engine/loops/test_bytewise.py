"""Decoding byte by byte: `fuse=byte` from questions to texts, on tiny random models and on the lab's trained ones."""

from __future__ import annotations

from itertools import permutations

import pytest

import flowinfer
from flowinfer.backends.hf import HfModel
from tests.backends import tiny
from tests.engine import plans
from tests.engine.plans import answers, group, last_step, member, mix, one_step, run
from tests.fusion import toys

FEW = ("hello", "小明有3个苹果")


@pytest.fixture(scope="module")
def models() -> dict[str, HfModel]:
    """Return heads of all kinds of tokenizers and caches; W's layers see eight tokens, Y's tokens are the bytes."""
    return {
        "A": tiny.model("qwen2", "A"),
        "B": tiny.model("llama", "B", seed=1),
        "W": tiny.model("mistral", "W", seed=3),
        "Y": tiny.model("qwen2", "Y", seed=5, tokenizer=toys.byte_level(259)),
    }


def test_copies_of_a_head_write_what_it_writes_alone(models: dict[str, HfModel]) -> None:
    alone = answers(one_step(group(member("A"), fuse="byte")), models, FEW)
    assert answers(one_step(mix("A", "A", "A", fuse="byte")), models, FEW) == alone
    assert answers(one_step(mix("A", "A", fuse="byte", mix="product")), models, FEW) == alone


def test_a_head_whose_tokens_are_bytes_writes_what_it_writes_without(models: dict[str, HfModel]) -> None:
    assert answers(one_step(mix("Y", "Y", fuse="byte")), models) == answers(one_step(member("Y")), models)


def test_permuted_branches_write_the_same(models: dict[str, HfModel]) -> None:
    texts = [answers(one_step(mix(*order, fuse="byte")), models, FEW) for order in permutations("ABY")]
    assert all(text == texts[0] for text in texts)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0}], ids=["greedy", "sampled"])
def test_batches_and_engines_write_what_single_rows_write(
    models: dict[str, HfModel], sampling: dict[str, float]
) -> None:
    plan = one_step(mix("A", "B", "W", fuse="byte"), **sampling)
    texts = plans.QUESTIONS[:4]
    single = answers(plan, models, texts, batch=1, engine="reference")
    assert answers(plan, models, texts, batch=3) == single
    assert len(set(single)) > 1


def test_all_weight_on_one_head_writes_what_it_writes_alone(models: dict[str, HfModel]) -> None:
    pair = group(member("A", weight=1.0), member("B", weight=1e-12), fuse="byte")
    assert answers(one_step(pair), models, FEW) == answers(one_step(group(member("A"), fuse="byte")), models, FEW)


def test_max_tokens_counts_bytes_and_texts_are_whole_characters(models: dict[str, HfModel]) -> None:
    for trace in run(one_step(mix("A", "B", fuse="byte"), max_tokens=9, temperature=1.0), models, FEW).values():
        result = last_step(trace)
        assert (result.tokens, result.finish_reason) == (9, "length")
        assert 6 <= len(result.text.encode()) <= 9
        assert "\ufffd" not in result.text


def test_stop_texts_end_a_row_in_the_middle_of_a_token(models: dict[str, HfModel]) -> None:
    pair = mix("A", "B", fuse="byte")
    (whole,) = answers(one_step(pair, max_tokens=12), models, ["hello"])
    stop = whole[3:5]
    (trace,) = run(one_step(pair, max_tokens=12, stop=(stop,)), models, ["hello"]).values()
    assert (trace.answer, last_step(trace).finish_reason) == (whole[: whole.index(stop)], "stop")


def test_every_byte_is_told_with_what_each_head_gave_it(models: dict[str, HfModel]) -> None:
    listener = plans.Listener()
    listener.num_tops = 3
    (trace,) = run(one_step(mix("A", "B", fuse="byte")), models, ["hello"], observer=listener).values()
    events = listener.events["q0"]
    assert b"".join(event.piece or b"" for event in events).decode(errors="ignore").startswith(trace.answer)
    for event in events:
        assert event.piece is not None and len(event.piece) == 1
        mean = sum(wish.probability_of_emitted for wish in event.heads) / 2
        assert event.probability == pytest.approx(mean) == event.tops[0].probability


def test_a_row_ends_where_a_head_can_hold_no_more() -> None:
    models = {"A": tiny.model("qwen2", "A", max_positions=24), "B": tiny.model("llama", "B", seed=1)}
    (trace,) = run(one_step(mix("A", "B", fuse="byte"), max_tokens=500), models, ["hello"]).values()
    assert last_step(trace).finish_reason == "context"


def test_a_head_reads_only_what_is_new_to_it(models: dict[str, HfModel]) -> None:
    watched = plans.Watched(models["A"])
    (trace,) = run(one_step(mix("A", "A", fuse="byte"), max_tokens=30), {"A": watched}, ["hello"]).values()
    session = watched.sessions[0]
    assert session.fed == last_step(trace).heads[0].fed_tokens
    assert session.fed - session.rollbacks == len(session.ids[0]) <= 30


def test_a_head_that_begins_with_a_space_and_one_that_does_not_write_one_text(models: dict[str, HfModel]) -> None:
    plan = one_step(group(member("A", "{question}\n", node="n0"), member("A", "{question}:", node="n1"), fuse="byte"))
    (trace,) = run(plan, models, ["hello"]).values()
    assert last_step(trace).lstripped == 1


@pytest.mark.parametrize("covers", [0, 1])
def test_a_trained_head_alone_writes_its_own_text(covers: int) -> None:
    """Where it is sure of each of its tokens: more than half of all covers of the text go on with them."""
    question = "小红有12个苹果，又买了7个。小红现在有几个苹果？"
    alone = flowinfer.parse("Qwen[max_tokens=80]", zoo="lab").run(question).text
    bytewise = flowinfer.parse(f"(Qwen)[fuse=byte, covers={covers}, max_tokens=300]", zoo="lab").run(question).text
    assert bytewise == alone != ""
