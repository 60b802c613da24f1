"""Thresholds of choices, fitted to runs in which every member was tried."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from flowinfer.errors import DataError
from flowinfer.language.check import check
from flowinfer.results import Question, Record, Score
from flowinfer.runs.tuning import Limits, Tried, fit, separation, tried
from flowinfer.spec import shortest
from tests.command import flowinfer
from tests.engine.scripted import Said, planned, run


def questions(*, is_telling: bool, n: int = 200) -> list[Tried]:
    """Return a cheap member that is right where its signal is above 0.6, if it tells, and a dear one that mostly is."""
    rng = random.Random(1)
    found = []
    for number in range(n):
        value = rng.random()
        cheap = (value if is_telling else rng.random()) > 0.6
        dear = rng.random() < 0.8
        found.append(Tried(f"q{number}", (value, 1.0), (cheap, dear), (10, 110), (1.0, 5.0)))
    return found


def test_the_threshold_lies_where_the_signal_tells_right_from_wrong() -> None:
    fitted = fit(questions(is_telling=True), Limits())
    assert 0.55 < fitted.chosen.at < 0.65 and fitted.auc > 0.99
    assert fitted.chosen.accuracy > fitted.last.accuracy > fitted.first.accuracy
    assert fitted.interval.low < fitted.left_out < fitted.interval.high and fitted.against_last < 0.05
    assert fitted.first.tokens == 10 < fitted.chosen.tokens < fitted.last.tokens == 110


def test_limits_are_kept() -> None:
    items = questions(is_telling=True)
    assert fit(items, Limits(max_tokens=40)).chosen.tokens <= 40
    assert fit(items, Limits(max_seconds=2)).chosen.seconds <= 2
    cheapest = fit(items, Limits(min_accuracy=0.6)).chosen
    assert cheapest.accuracy >= 0.6 and cheapest.tokens < fit(items, Limits()).chosen.tokens
    with pytest.raises(DataError, match="no threshold keeps to these limits"):
        fit(items, Limits(max_tokens=5))


def test_a_signal_that_says_nothing_is_refused_and_so_are_too_few_questions() -> None:
    with pytest.raises(DataError, match="the signal says nothing about the first member's answers"):
        fit(questions(is_telling=False), Limits())
    with pytest.raises(DataError, match="19 judged questions are too few"):
        fit(questions(is_telling=True, n=19), Limits())


def test_separation_counts_pairs_and_ties() -> None:
    assert separation([(1, True), (2, False), (2, True), (0, False)])[0] == 5 / 8
    assert separation([(1, True), (1, False)]) == (0.5, 1.0)
    assert separation([(1, True)]) == (0.5, 1.0)


def test_a_record_says_what_every_member_would_have_given_and_cost() -> None:
    flow = "(Qwen / Yi -> Ds)[accept=confidence, at=auto]"
    trace, _ = run(flow, {"Qwen": Said("7", 0.5), "Yi": "8", "Ds": Said("9", 0.8)})
    item = Question(id="q", question="4 + 5?", reference="9", kind="gsm8k")
    record = Record(question=item, trace=trace, score=Score(correct=True, extracted="9", status="ok", rule="number"))
    plan = planned(flow)
    assert tried(plan, plan.selections[0], record) == Tried("q", (0.5, 0.8), (False, True), (1, 3), (1.0, 3.0))
    assert tried(plan, plan.selections[0], record.model_copy(update={"score": None})) is None


def test_votes_of_a_member_that_is_a_group_count_what_their_weights_say() -> None:
    flow = "(Qwen / (Yi:3 & Ds:1 & Ds:1))[accept=confidence, at=auto]"
    trace, _ = run(flow, {"Qwen": Said("7", 0.5), "Yi": "9", "Ds": "8"})
    item = Question(id="q", question="4 + 5?", reference="9", kind="gsm8k")
    record = Record(question=item, trace=trace, score=Score(correct=True, extracted="9", status="ok", rule="number"))
    plan = planned(flow)
    found = tried(plan, plan.selections[0], record)
    assert trace.answer == "9" and found is not None and found.correct == (False, True)


def test_the_number_that_is_written_lies_between_the_signals_that_it_divides() -> None:
    """Signals may differ in the eighth digit only: a threshold of six would accept all of them, or none."""
    signals = [(1 - 2e-8, True), (1 - 6e-8, False)] * 15
    items = [
        Tried(f"q{n}", (value, 1.0), (right, True), (1, 9), (1.0, 9.0)) for n, (value, right) in enumerate(signals)
    ]
    chosen = fit(items, Limits()).chosen
    assert 1 - 6e-8 < float(shortest(chosen.at)) <= 1 - 2e-8 and chosen.accuracy == 1 and chosen.tokens < 9


def test_tune_says_what_it_cannot_fit(tmp_path: Path) -> None:
    (tmp_path / "a.flow").write_text("(Qwen / Yi)[accept=confidence, at=0.5]\n", "utf-8")
    done = flowinfer("tune", "a.flow", "--on", "latest", "--zoo", "lab", cwd=tmp_path)
    assert done.returncode == 2 and "the flow has 0 times at=auto" in done.stderr
    (tmp_path / "a.flow").write_text("(Qwen / Yi)[accept=confidence, at=auto] -> Ds\n", "utf-8")
    done = flowinfer("tune", "a.flow", "--on", "latest", "--zoo", "lab", cwd=tmp_path)
    assert done.returncode == 2 and "stages follow the choice" in done.stderr
    assert "not fitted yet" not in done.stderr


@pytest.mark.slow
def test_a_fitted_flow_is_written_with_its_number(tmp_path: Path) -> None:
    (tmp_path / "a.flow").write_text("(Yi / Ds)[accept=confidence, at=auto]  # at=auto\n", "utf-8")
    given = ("--zoo", "lab", "--dataset", "gsm8k", "--sample", "150")
    assert flowinfer("exec", "a.flow", *given, cwd=tmp_path).returncode == 0
    done = flowinfer("tune", "a.flow", "--on", "latest", "--zoo", "lab", "-o", "b.flow", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    written = (tmp_path / "b.flow").read_text("utf-8")
    assert re.fullmatch(r"\(Yi / Ds\)\[accept=confidence, at=[\d.]+\]  # at=auto\n", written)
    assert "on questions left out of fitting" in done.stderr and not check(written, zoo="lab").warnings
    assert "not fitted yet" not in done.stderr
