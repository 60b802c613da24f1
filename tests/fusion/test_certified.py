"""Certified top-k against the dense argmax."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flowinfer.fusion.certified import certified_argmax
from flowinfer.fusion.fusers import FuserView, Mean
from flowinfer.fusion.shared import SharedVocabulary
from tests.fusion import toys


def dense(probs: list[Tensor], weights: list[float]) -> Tensor:
    view = FuserView(SharedVocabulary([toys.head([b"a"])]), (), ())
    return Mean()(torch.stack(probs), torch.tensor(weights, dtype=torch.float64).to(probs[0].dtype), view)


@pytest.mark.parametrize("k", [1, 2, 8, 64])
@pytest.mark.parametrize("scale", [0.1, 1.0, 6.0], ids=["flat", "middling", "peaked"])
@pytest.mark.parametrize("weights", [[1 / 3, 1 / 3, 1 / 3], [0.7, 0.2, 0.1], [1.0, 0.0, 0.0]])
def test_certified_choice_is_the_dense_argmax(k: int, scale: float, weights: list[float]) -> None:
    generator = torch.Generator().manual_seed(k)
    probs = [(torch.randn(6, 300, generator=generator) * scale).softmax(-1) for _ in range(3)]
    whole = dense(probs, weights)
    chosen = certified_argmax(probs, weights, k=k)
    assert torch.equal(chosen.slots, whole.argmax(-1))
    top = whole.topk(2, dim=-1).values
    assert bool((chosen.leads <= top[:, 0] - top[:, 1] + 1e-7).all()) and bool((chosen.leads >= 0).all())
    assert torch.equal(chosen.values, whole.amax(-1))


@given(
    st.lists(st.lists(st.sampled_from([0.0, 0.125, 0.25, 0.5]), min_size=6, max_size=6), min_size=2, max_size=4),
    st.integers(1, 6),
)
def test_ties_go_to_the_smallest_slot_as_in_the_dense_argmax(rows: list[list[float]], k: int) -> None:
    """Values of few bits, so that sums tie exactly."""
    probs = [torch.tensor([row]) for row in rows]
    weights = [1 / len(rows)] * len(rows) if len(rows) != 3 else [0.5, 0.25, 0.25]
    assert certified_argmax(probs, weights, k=k).slots.tolist() == dense(probs, weights).argmax(-1).tolist()


def test_a_slot_that_no_head_puts_first_can_win() -> None:
    probs = [torch.tensor([[0.5, 0.0, 0.45, 0.05]]), torch.tensor([[0.0, 0.5, 0.45, 0.05]])]
    assert certified_argmax(probs, [0.5, 0.5], k=1).slots.tolist() == [2]


def test_masked_slots_never_win() -> None:
    probs = [torch.tensor([[-1.0, 0.2, 0.1]]), torch.tensor([[-1.0, 0.1, 0.2]])]
    assert certified_argmax(probs, [0.5, 0.5], k=1).slots.tolist() == [1]


def test_few_numbers_move_where_heads_are_sure() -> None:
    probs = [torch.full((1, 10_000), 1e-6) for _ in range(3)]
    for head in probs:
        head[0, 77] = 0.99
    chosen = certified_argmax(probs, [1 / 3] * 3)
    assert chosen.slots.tolist() == [77]
    assert chosen.numbers_moved < 200


def test_one_row_that_needs_more_candidates_does_not_spoil_the_others() -> None:
    sure, flat = torch.zeros(1, 50), torch.full((1, 50), 0.02)
    sure[0, 9] = 1.0
    flat[0, 31] += 1e-3
    probs = [torch.cat([sure, flat])] * 2
    assert certified_argmax(probs, [0.5, 0.5], k=1).slots.tolist() == [9, 31]
