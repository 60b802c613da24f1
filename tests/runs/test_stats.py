"""Intervals and tests against published values and their laws."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowinfer.runs.stats import Paired, holm, mcnemar_exact, paired, paired_interval, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_newcombes_table_1(successes: int, n: int, low: float, high: float) -> None:
    """Newcombe 1998, table I, method 3 (score, no continuity correction)."""
    interval = wilson(successes, n)
    assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)


def test_wilson_knows_nothing_about_no_questions() -> None:
    assert (wilson(0, 0).low, wilson(0, 0).high) == (0.0, 1.0)


@pytest.mark.parametrize(("successes", "n"), [(-1, 3), (4, 3), (0, -1)])
def test_wilson_refuses_impossible_counts(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="expected 0 <= successes <= n"):
        wilson(successes, n)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_mirrors(counts: tuple[int, int]) -> None:
    successes, n = counts
    interval, mirrored = wilson(successes, n), wilson(n - successes, n)
    assert 0.0 <= interval.low <= successes / n <= interval.high <= 1.0
    assert math.isclose(interval.low, 1 - mirrored.high, abs_tol=1e-12)


@pytest.mark.parametrize(
    ("first_only", "second_only", "p_value"),
    [
        (1, 7, 0.0703),  # Fagerland 2013, airway hyper-responsiveness: exact conditional test 0.070
        (0, 0, 1.0),
        (5, 5, 1.0),
        (0, 5, 0.0625),  # 2 / 2**5
        (0, 6, 0.03125),
        (10, 20, 0.0987),
    ],
)
def test_mcnemar_gives_the_published_and_the_countable(first_only: int, second_only: int, p_value: float) -> None:
    assert mcnemar_exact(first_only, second_only) == pytest.approx(p_value, abs=5e-5)
    assert mcnemar_exact(second_only, first_only) == mcnemar_exact(first_only, second_only)


def test_mcnemar_refuses_negative_counts() -> None:
    with pytest.raises(ValueError, match="expected counts"):
        mcnemar_exact(-1, 3)


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [((1, 1, 7, 12), -0.507, -0.026), ((36, 12, 2, 0), 0.057, 0.340), ((0, 0, 0, 3), -0.561, 0.561)],
)
def test_paired_intervals_are_newcombes(counts: tuple[int, int, int, int], low: float, high: float) -> None:
    """First: Fagerland, Lydersen, Laake 2014, Stat Med 33:2850-2875, responsive airways; second: Newcombe 1998."""
    interval = paired_interval(Paired(*counts, p_value=1.0))
    assert (round(interval.low, 3), round(interval.high, 3)) == (low, high)


@given(st.tuples(*[st.integers(0, 40)] * 4))
def test_paired_intervals_hold_the_difference_and_mirror(counts: tuple[int, int, int, int]) -> None:
    both, first, second, neither = counts
    interval = paired_interval(Paired(both, first, second, neither, 1.0))
    mirrored = paired_interval(Paired(both, second, first, neither, 1.0))
    difference = (first - second) / max(1, sum(counts))
    assert -1.0 <= interval.low <= difference + 1e-12 and difference - 1e-12 <= interval.high <= 1.0
    assert interval.low == pytest.approx(-mirrored.high) and interval.high == pytest.approx(-mirrored.low)


def test_pairs_are_counted_on_common_questions_only() -> None:
    result = paired({"a": True, "b": True, "c": False, "x": True}, {"c": False, "a": True, "b": False})
    assert (result.both, result.first_only, result.second_only, result.neither) == (1, 1, 0, 1)
    assert result.p_value == 1.0


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        ((0.01, 0.04, 0.03, 0.005), (0.03, 0.06, 0.06, 0.02)),
        ((), ()),
        ((0.2,), (0.2,)),
        ((0.6, 0.9), (1.0, 1.0)),
    ],
)
def test_holm_gives_worked_examples(p_values: tuple[float, ...], adjusted: tuple[float, ...]) -> None:
    assert holm(p_values) == pytest.approx(adjusted)


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_never_lowers_and_keeps_the_order(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(after >= before for before, after in zip(p_values, adjusted, strict=True))
    ranked = [after for _, after in sorted(zip(p_values, adjusted, strict=True))]
    assert ranked == sorted(ranked)


def test_holm_refuses_what_is_no_probability() -> None:
    with pytest.raises(ValueError, match="p-values between 0 and 1"):
        holm([0.5, 1.5])


def test_importing_stats_leaves_scipy_alone() -> None:
    code = "import sys, flowinfer.runs.stats; sys.exit('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
