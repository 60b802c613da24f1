"""Sampling: its own law, its independence of the batch, and greedy choice with ties."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from scipy.stats import chisquare

from flowinfer.backends.hf import HfModel
from flowinfer.engine.loops.sampling import choose_slots, draws_of, greedy, row_key
from flowinfer.spec import Decoding
from tests.backends import tiny
from tests.engine import plans
from tests.engine.plans import answers, member, mix, one_step, run

EVERYTHING = torch.ones(1, 5, dtype=torch.bool)
PROBS = torch.tensor([[0.4, 0.3, 0.2, 0.08, 0.02]])


def draw(probs: torch.Tensor, allowed: torch.Tensor, decoding: Decoding, count: int) -> Counter[int]:
    """Draw so many tokens of one row, all at once."""
    drawn = draws_of([decoding] * count, [row_key(decoding, "q0", "s1")] * count, range(count), torch.device("cpu"))
    return Counter(choose_slots(probs.expand(count, -1), allowed.expand(count, -1), drawn).slots.tolist())


def draws(decoding: Decoding, allowed: torch.Tensor = EVERYTHING, *, count: int = 4000) -> Counter[int]:
    return draw(PROBS, allowed, decoding, count)


@pytest.fixture(scope="module")
def models() -> dict[str, HfModel]:
    return {"A": tiny.model("qwen2", "A"), "B": tiny.model("llama", "B", seed=1)}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_tempered_distribution(temperature: float) -> None:
    wanted = (PROBS[0].double().log() / temperature).softmax(-1)
    seen = draws(Decoding(temperature=temperature))
    assert chisquare([seen[slot] for slot in range(5)], (wanted * 4000).tolist()).pvalue > 1e-3


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.39, {0}), (0.41, {0, 1}), (0.7, {0, 1}), (0.75, {0, 1, 2}), (1.0, set(range(5)))]
)
def test_nucleus_keeps_the_fewest_slots_that_reach_top_p(top_p: float, kept: set[int]) -> None:
    assert set(draws(Decoding(temperature=1.0, top_p=top_p), count=1000)) == kept


def test_forbidden_slots_are_never_drawn() -> None:
    allowed = torch.tensor([[False, True, False, True, False]])
    assert set(draws(Decoding(temperature=1.0), allowed, count=300)) == {1, 3}


@pytest.mark.parametrize("temperature", [1.0, 1e6])
def test_slots_without_mass_are_never_drawn(temperature: float) -> None:
    probs = torch.tensor([[0.0, 0.6, 0.0, 0.4]])
    assert set(draw(probs, EVERYTHING[:, :4], Decoding(temperature=temperature), 300)) == {1, 3}


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_sampling_takes_the_smallest_allowed_slot_where_none_has_mass(top_p: float) -> None:
    probs, allowed = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[False, True, True]])
    assert set(draw(probs, allowed, Decoding(temperature=1.0, top_p=top_p), 100)) == {1}


def test_distributions_are_left_alone_by_sampling() -> None:
    probs = PROBS.double()
    draw(probs, EVERYTHING, Decoding(temperature=0.7, top_p=0.9), 1)
    assert torch.equal(probs, PROBS.double())


@pytest.mark.parametrize(("temperature", "top_p"), [(0.01, 1.0), (1e-300, 1.0), (1e-310, 0.5)])
def test_cold_sampling_is_greedy(temperature: float, top_p: float) -> None:
    assert set(draws(Decoding(temperature=temperature, top_p=top_p), count=200)) == {0}


def test_hot_sampling_is_uniform() -> None:
    seen = draws(Decoding(temperature=1e6))
    assert chisquare([seen[slot] for slot in range(5)]).pvalue > 1e-3


def test_each_row_chooses_by_its_own_options_and_stream() -> None:
    mixed = [{}, {"temperature": 1.0}, {"temperature": 0.5, "top_p": 0.8}, {"top_p": 0.5}, {"temperature": 3.0}]
    decodings = [Decoding(**mixed[k % len(mixed)]) for k in range(50)]
    keys = [row_key(decoding, f"q{k}", "s1") for k, decoding in enumerate(decodings)]

    def chosen(rows: range) -> list[tuple[int, float]]:
        own = [decodings[k] for k in rows], [keys[k] for k in rows], [k % 7 for k in rows]
        probs = PROBS.expand(len(rows), -1), EVERYTHING.expand(len(rows), -1)
        best = choose_slots(*probs, draws_of(*own, torch.device("cpu")))
        return list(zip(best.slots.tolist(), best.leads.tolist(), strict=True))

    assert chosen(range(50)) == [chosen(range(k, k + 1))[0] for k in range(50)]


@pytest.mark.parametrize(
    ("left", "right"),
    [((42, "q0", "s1"), (43, "q0", "s1")), ((42, "q0", "s1"), (42, "q1", "s1")), ((42, "q0", "s1"), (42, "q0", "s2"))],
    ids=["seed", "question", "step"],
)
def test_streams_differ_by_seed_question_and_step(left: tuple[int, str, str], right: tuple[int, str, str]) -> None:
    one, two = (row_key(Decoding(seed=seed), question, step) for seed, question, step in (left, right))
    assert one != two


def test_keys_are_odd_and_fit_int64() -> None:
    keys = [row_key(Decoding(), f"q{k}", "s1") for k in range(100)]
    assert all(key % 2 for key in keys)
    assert torch.tensor(keys).tolist() == keys


def test_greedy_takes_the_smallest_of_equal_slots() -> None:
    fused = torch.tensor([[0.1, 0.4, 0.4, 0.1], [0.25, 0.25, 0.25, 0.25]])
    assert greedy(fused, torch.ones(2, 4, dtype=torch.bool)).tolist() == [1, 0]


def test_leads_are_over_the_second_best_allowed_slot() -> None:
    fused = torch.tensor([[0.5, 0.1, 0.4], [0.5, 0.1, 0.4], [0.25, 0.5, 0.25], [1.0, 0.0, 0.0]])
    allowed = torch.tensor([[True, True, True], [True, True, False], [True, False, True], [True, False, False]])
    best = choose_slots(fused, allowed, None)
    assert best.slots.tolist() == [0, 0, 0, 0]
    assert best.leads.tolist() == pytest.approx([0.1, 0.4, 0.0, 1.0])
    assert bool((fused == torch.tensor([[0.5, 0.1, 0.4]])).any())  # the distributions themselves are left alone


def test_greedy_takes_an_allowed_slot_even_without_mass() -> None:
    assert greedy(torch.tensor([[1.0, 0.0]]), torch.tensor([[False, True]])).tolist() == [1]


def test_sampled_texts_are_reproducible(models: dict[str, HfModel]) -> None:
    plan = one_step(mix("A", "B"), temperature=0.8, top_p=0.9)
    assert answers(plan, models) == answers(plan, models)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_sampled_texts_do_not_depend_on_the_batch(models: dict[str, HfModel], batch: int) -> None:
    plan = one_step(mix("A", "B"), temperature=0.8)
    assert answers(plan, models, batch=batch) == answers(plan, models, batch=4)


def test_sampled_texts_do_not_depend_on_the_other_questions(models: dict[str, HfModel]) -> None:
    plan = one_step(member("A"), temperature=0.8)
    assert answers(plan, models)[:2] == answers(plan, models, plans.QUESTIONS[:2])


def test_another_seed_gives_other_texts(models: dict[str, HfModel]) -> None:
    one, two = (answers(one_step(member("A"), temperature=1.0, seed=seed), models) for seed in (1, 2))
    assert one != two


def test_the_same_question_in_two_rows_of_one_batch_is_sampled_by_its_id(models: dict[str, HfModel]) -> None:
    traces = run(one_step(member("A"), temperature=1.0), models, ["hello", "hello"])
    assert traces["q0"].answer != traces["q1"].answer


def test_sampled_text_is_valid_utf8(models: dict[str, HfModel]) -> None:
    texts = answers(one_step(mix("A", "B"), temperature=1.5, max_tokens=40), models)
    assert not any("\ufffd" in text for text in texts)
