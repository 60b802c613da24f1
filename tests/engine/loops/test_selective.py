"""Decoding by one head that the others verify: `fuse=safe` from questions to texts, on tiny random models.

Their distributions are flat, so thresholds at which heads disagree at some places only are small.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flowinfer.backends.hf import HfModel
from flowinfer.engine.loops.selective import ahead_of
from flowinfer.fusion.advance import new_context
from flowinfer.fusion.shared import SharedVocabulary
from flowinfer.fusion.utf8 import BOUNDARY
from tests.backends import tiny
from tests.engine import plans
from tests.engine.plans import answers, group, last_step, member, mix, one_step, run
from tests.fusion import toys

SOME = 0.004
"""A threshold at which heads of flat distributions disagree at some places."""
TEXTS = plans.QUESTIONS[:4]


@pytest.fixture(scope="module")
def models() -> dict[str, HfModel]:
    """Return heads of all kinds of tokenizers; W's layers see eight tokens, A2 has A's tokens, Y's are the bytes."""
    return {
        "A": tiny.model("qwen2", "A"),
        "A2": tiny.model("qwen2", "A2", seed=4),
        "B": tiny.model("llama", "B", seed=1),
        "W": tiny.model("mistral", "W", seed=3),
        "Y": tiny.model("qwen2", "Y", seed=5, tokenizer=toys.byte_level(259)),
    }


def by_hand(heads: list[HfModel], tau: float, text: str, max_tokens: int) -> tuple[str, int]:
    """Return what the first head writes while the others verify, token by token with a forward each, and the fused."""
    shared = SharedVocabulary([model.vocabulary() for model in heads])

    def ids(k: int, data: bytes) -> list[int]:
        own = heads[k].vocabulary().tokens
        context = new_context("canonical" if k else "native", heads[k].tokenizer, own)
        context.append(data, own.cover(data))
        return context.ids

    def probs(k: int, own: list[int]) -> torch.Tensor:
        session = heads[k].open()
        rows = session.add([[*heads[k].prompt(text).ids, *own]])
        return shared.lift(k, session.logits(rows))[0]

    def beginning_with(own: torch.Tensor, data: bytes) -> float:
        return float(own[[slot for slot, key in enumerate(shared.keys) if key.startswith(data)]].sum())

    def agreement(k: int, before: list[int], after: list[int], key: bytes | None) -> float:
        first = probs(k, before)
        if key is None:
            return float(first[shared.eos_slot])
        pieces = [heads[k].vocabulary().tokens.pieces[i] or b"" for i in after[len(before) :]]
        chance = 1.0
        for at, piece in enumerate(pieces[:-1]):
            chance *= float(probs(k, after[: len(before) + at])[shared.slot_of_key[piece]])
        whole = beginning_with(first, key)
        if len(pieces) == 1:
            return whole
        return whole + chance * beginning_with(probs(k, after[:-1]), pieces[-1])

    data, native, state, fused = b"", list[int](), BOUNDARY, 0
    for _ in range(max_tokens):
        allowed = shared.guard.mask(torch.tensor([state]))[0]
        own = probs(0, native)
        slot = int(own.masked_fill(~allowed, -1).argmax())
        key = None if slot == shared.eos_slot else shared.keys[slot]
        befores = [ids(k, data) for k in range(1, len(heads))]
        afters = [ids(k, data + (key or b"")) for k in range(1, len(heads))]
        nested = all(after[: len(before)] == before for before, after in zip(befores, afters, strict=True))
        if state == BOUNDARY and nested:
            agreed = [agreement(k, *pair, key) for k, pair in enumerate(zip(befores, afters, strict=True), 1)]
            if min(agreed) < tau:
                fused += 1
                others = [probs(k, before) for k, before in enumerate(befores, 1)]
                slot = int((sum(others, own) / len(heads)).masked_fill(~allowed, -1).argmax())
        if slot == shared.eos_slot:
            break
        data += shared.keys[slot]
        native += shared.ids(0, slot)
        state = shared.guard.advance(state, slot)
    return data.decode(errors="ignore"), fused


@pytest.mark.parametrize("tau", [0.0, SOME, 2.0])
def test_texts_are_those_of_one_token_at_a_time_by_hand(models: dict[str, HfModel], tau: float) -> None:
    """Many forwards: behind every token, and behind every token of each head."""
    plan = one_step(mix("A", "B", "Y", fuse="safe", tau=tau, writer="A"), max_tokens=12)
    traces = run(plan, models, TEXTS[1:3])
    for k, text in enumerate(TEXTS[1:3]):
        expected = by_hand([models[name] for name in "ABY"], tau, text, 12)
        assert (traces[f"q{k}"].answer, last_step(traces[f"q{k}"]).fused_tokens) == expected


def test_where_nobody_disagrees_the_writer_writes_its_own_text(models: dict[str, HfModel]) -> None:
    for writer in "AY":
        plan = one_step(mix("A", "B", "Y", fuse="safe", tau=0.0, writer=writer))
        assert answers(plan, models, TEXTS) == answers(one_step(member(writer)), models, TEXTS)


def test_where_all_disagree_everywhere_heads_of_one_tokenizer_write_the_plain_mean(models: dict[str, HfModel]) -> None:
    """Heads of several tokenizers are still fused at boundaries only, as the texts by hand are."""
    plain = one_step(group(member("A", weight=0.3), member("A2", weight=0.7)))
    safe = one_step(group(member("A", weight=0.3), member("A2", weight=0.7), fuse="safe", tau=2.0))
    traces = run(safe, models, TEXTS)
    assert [traces[f"q{k}"].answer for k in range(len(TEXTS))] == answers(plain, models, TEXTS)
    for result in map(last_step, traces.values()):
        assert result.fused_tokens == result.tokens + (result.finish_reason == "eos")


@pytest.mark.parametrize("tau", [SOME, 2.0])
def test_copies_of_a_head_write_what_it_writes_alone(models: dict[str, HfModel], tau: float) -> None:
    for sampling in ({}, {"temperature": 1.0}):
        alone = answers(one_step(member("A"), **sampling), models, TEXTS)
        assert answers(one_step(mix("A", "A", "A", fuse="safe", tau=tau), **sampling), models, TEXTS) == alone


def test_a_group_of_one_writes_what_its_head_writes(models: dict[str, HfModel]) -> None:
    (alone,) = run(one_step(group(member("B"), fuse="safe", tau=2.0)), models, TEXTS[:1]).values()
    assert [alone.answer] == answers(one_step(member("B")), models, TEXTS[:1])
    assert last_step(alone).fused_tokens == 0


def test_permuted_branches_write_the_same(models: dict[str, HfModel]) -> None:
    orders = ("ABY", "YAB", "BYA")
    texts = [answers(one_step(mix(*order, fuse="safe", tau=SOME)), models, TEXTS[:2]) for order in orders]
    assert all(text == texts[0] for text in texts)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "top_p": 0.9}], ids=["greedy", "sampled"])
def test_neither_batches_nor_engines_nor_how_far_it_writes_ahead_nor_drafts_change_a_text(
    models: dict[str, HfModel], sampling: dict[str, float]
) -> None:
    def plan(ahead: int, **options: Any) -> Any:
        return one_step(mix("A", "B", "W", fuse="safe", tau=SOME, ahead=ahead), **sampling, **options)

    texts = TEXTS[:3]
    single = answers(plan(1), models, texts, batch=1, engine="reference")
    assert answers(plan(16), models, texts, batch=3) == single
    assert answers(plan(5, speculate="ngram"), models, texts, batch=2) == single
    assert len(set(single)) > 1


def test_told_tokens_say_which_were_fused_and_whom_nobody_asked(models: dict[str, HfModel]) -> None:
    listener = plans.Listener()
    listener.num_tops = 2
    plan = one_step(mix("A", "B", "Y", fuse="safe", tau=SOME, writer="Y"), max_tokens=30)
    (trace,) = run(plan, models, TEXTS[1:2], observer=listener).values()
    events = listener.events["q0"]
    assert sum(bool(event.is_fused) for event in events) == last_step(trace).fused_tokens
    assert {len(event.heads) for event in events} == {1, 3}
    for event in events:
        own = event.heads[-1]
        stands = own.probability_of_emitted if not event.is_fused else None
        mean = sum(wish.probability_of_emitted for wish in event.heads) / 3
        assert event.probability == pytest.approx(mean if stands is None else stands) == event.tops[0].probability


def test_heads_that_verify_have_fewer_forwards_than_tokens(models: dict[str, HfModel]) -> None:
    watched = {name: plans.Watched(models[name]) for name in ("A", "A2")}
    plan = one_step(mix("A", "A2", fuse="safe", tau=0.0, writer="A"), max_tokens=24)
    (trace,) = run(plan, watched, TEXTS[:1]).values()
    result = last_step(trace)
    assert (result.tokens, result.rounds, result.fused_tokens) == (24, 5, 0)
    assert [head.forwards for head in result.heads] == [23, 5]
    assert [watched[name].sessions[0].num_forwards - 1 for name in watched] == [23, 5]


def test_the_writer_writes_as_far_as_brings_most_tokens_a_forward() -> None:
    assert [ahead_of([share], 1, 16) for share in (0.0, 0.5, 0.9, 0.97, 1.0)] == [1, 2, 4, 8, 16]
    assert ahead_of([0.9], 2, 16) == 6, "the more have to verify, the further"
    assert ahead_of([0.0, 1.0], 1, 16) == 16 and ahead_of([0.9], 1, 2) == 2


def test_a_row_ends_where_a_head_can_hold_no_more() -> None:
    models = {"A": tiny.model("qwen2", "A", max_positions=24), "B": tiny.model("llama", "B", seed=1)}
    for writer in "AB":
        plan = one_step(mix("A", "B", fuse="safe", tau=SOME, writer=writer), max_tokens=500)
        (trace,) = run(plan, models, ["hello"]).values()
        assert last_step(trace).finish_reason == "context"


def test_texts_are_whole_characters_and_end_at_stop_texts(models: dict[str, HfModel]) -> None:
    pair = mix("Y", "B", fuse="safe", tau=SOME, writer="Y")
    for trace in run(one_step(pair, max_tokens=30, temperature=1.0), models, TEXTS).values():
        assert "\ufffd" not in trace.answer
    (whole,) = answers(one_step(pair), models, ["hello"])
    (trace,) = run(one_step(pair, stop=(whole[3:5],)), models, ["hello"]).values()
    assert (trace.answer, last_step(trace).finish_reason) == (whole[: whole.index(whole[3:5])], "stop")


def test_a_head_that_begins_with_a_space_and_one_that_does_not_write_one_text(models: dict[str, HfModel]) -> None:
    ends = (member("A", "{question}\n", node="n0"), member("A", "{question}:", node="n1"))
    (trace,) = run(one_step(group(*ends, fuse="safe", tau=SOME)), models, ["hello"]).values()
    assert last_step(trace).lstripped == 1
