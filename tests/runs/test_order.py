"""In which order questions are asked: whoever is expected to take longest first, as answers tell."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flowinfer.runs.replicas.order import Kinds, Order

Question = tuple[int, int]
"""A data set, and a length in characters."""


def order_of(questions: list[Question], hands: tuple[int, int]) -> Order[Question]:
    kinds = Kinds()
    found = {one: kinds.of(*one) for one in sorted(questions)}
    return Order(sorted(questions, key=lambda one: one[1], reverse=True), found.__getitem__, hands)


def taken(order: Order[Question], count: int = 10**6) -> list[Question]:
    found: list[Question] = []
    while order and len(found) < count:
        found.append(order.take())
    return found


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5000)), unique=True),
    st.tuples(st.integers(1, 4), st.integers(1, 9)),
    st.integers(0, 9),
)
def test_each_question_is_taken_once_and_in_the_end_nothing_is_open(
    questions: list[Question], hands: tuple[int, int], num_back: int
) -> None:
    order = order_of(questions, hands)
    begun = taken(order, num_back)
    order.put_back(begun)
    order.learn()
    found = taken(order)
    assert found[: len(begun)] == begun and sorted(found) == sorted(questions)
    for one in found:
        order.answered(one, 7)
        order.learn()
        order.close(one)
    assert abs(order.open_cost) < 1e-6


def test_each_replica_is_dealt_questions_of_all_lengths_the_longest_first() -> None:
    order = order_of([(0, 100 * number) for number in range(12)], (3, 2))
    sizes = [size // 100 for _, size in taken(order)]
    assert sizes == [11, 5, 9, 3, 7, 1, 10, 8, 6, 4, 2, 0]


def test_a_data_set_whose_short_questions_have_long_answers_comes_first_once_that_is_learnt() -> None:
    order = order_of([(dataset, 900 - 800 * dataset + number) for dataset in (0, 1) for number in range(20)], (1, 4))
    for one in taken(order, 4):
        order.answered(one, 2000 if one[0] else 1)
    order.learn()
    assert [dataset for dataset, _ in taken(order)] == [1] * 18 + [0] * 18


def test_a_kind_without_answers_is_expected_to_take_what_the_next_one_takes() -> None:
    """The shorter the question the longer the answer, and none of the shortest has come."""
    order = order_of([(0, size) for size in (10, 11, 100, 101, 1000, 1001)], (1, 1))
    for size, tokens in ((1000, 10), (100, 1000)):
        for _ in range(20):
            order.answered((0, size), tokens)
    order.learn()
    order.take()  # the sample
    assert [size for _, size in taken(order)] == [101, 100, 11, 10, 1000]
