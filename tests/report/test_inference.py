"""Tests and intervals of reports against published values, scipy and their laws."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as oracle

from flowinfer.report.inference import cochran_q, mean_interval, paired_difference
from flowinfer.runs.stats import Interval

_KUNCHEVA = {(1, 1, 1): 80, (1, 1, 0): 2, (1, 0, 0): 2, (0, 1, 1): 9, (0, 1, 0): 1, (0, 0, 1): 3, (0, 0, 0): 3}


def test_cochran_gives_the_published_value_for_three_classifiers() -> None:
    """Kuncheva 2004, Combining Pattern Classifiers, section 1.4: Q = 7.5294, p = 0.0232."""
    rows = [[bool(value) for value in row] for row, times in _KUNCHEVA.items() for _ in range(times)]
    found = cochran_q(rows)
    assert (round(found.q, 4), found.degrees, found.num_telling) == (7.5294, 2, 17)
    assert found.p_value == pytest.approx(0.0232, abs=5e-5)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_cochran_of_two_paths_is_mcnemars_chi_square(rows: list[tuple[bool, bool]]) -> None:
    first, second = sum(a and not b for a, b in rows), sum(b and not a for a, b in rows)
    found = cochran_q(rows)
    expected = (first - second) ** 2 / (first + second) if first + second else 0.0
    assert found.q == pytest.approx(expected)


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=30))
def test_cochran_does_not_know_the_order_of_paths(rows: list[list[bool]]) -> None:
    assert cochran_q(rows).q == pytest.approx(cochran_q([row[::-1] for row in rows]).q)


def test_cochran_of_nothing_tells_nothing() -> None:
    assert cochran_q([]).p_value == cochran_q([[True, True], [False, False]]).p_value == 1.0


@given(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0]), min_size=2, max_size=40))
def test_paired_difference_is_scipys_t_test(values: list[float]) -> None:
    found = paired_difference(values)
    assert found is not None
    if len(set(values)) == 1:
        assert found.low == found.high == found.mean
        return
    expected = oracle.ttest_1samp(values, 0.0)
    interval = expected.confidence_interval(0.95)
    assert found.p_value == pytest.approx(expected.pvalue, abs=1e-9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_one_question_has_no_spread() -> None:
    assert paired_difference([0.5]) is None


def test_interval_of_a_mean_of_one_is_its_own_and_of_equals_is_narrower() -> None:
    one = Interval(0.4, 0.9)
    alone, four = mean_interval([0.7], [one]), mean_interval([0.7] * 4, [one] * 4)
    assert (alone.low, alone.high) == pytest.approx((0.4, 0.9))
    assert (four.low, four.high) == pytest.approx((0.55, 0.8))  # half as far, as for four times the questions
