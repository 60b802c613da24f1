"""Two runs on the same questions, and the choice among many."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flowinfer.cli import app
from flowinfer.errors import UsageError
from flowinfer.language.check import check
from flowinfer.paper.paths import Path as Wiring
from flowinfer.paper.paths import strategy_of
from flowinfer.planning.plain import fingerprint
from flowinfer.planning.plan import compile
from flowinfer.report.choice import as_flow, choose
from flowinfer.report.gather import gather
from flowinfer.report.versus import versus
from flowinfer.runs.stats import mcnemar_exact
from flowinfer.runs.store import info, read_records
from tests.report.sweeps import questions, write_run

FLOWS = ("Qwen", "Yi", "Qwen -> Yi", "(Qwen | Yi)")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write runs of four flows over 20 questions; the singles question by question, so that their seconds count."""
    root, asked = tmp_path_factory.mktemp("runs"), questions("ceval", 20)
    return {flow: write_run(root, flow, asked, batch="1" if flow in ("Qwen", "Yi") else "auto") for flow in FLOWS}


def right(run: Path) -> dict[str, bool]:
    return {record.question.id: bool(record.score and record.score.correct) for record in read_records(run)}


def test_counts_and_test_are_those_of_the_samples(runs: dict[str, Path]) -> None:
    found = versus(runs["Qwen"], runs["Yi"])
    first, second = right(runs["Qwen"]), right(runs["Yi"])
    gained = {i for i in first if second[i] and not first[i]}
    lost = {i for i in first if first[i] and not second[i]}
    assert {change.question_id for change in found.gained} == gained
    assert {change.question_id for change in found.lost} == lost
    assert found.counts.p_value == mcnemar_exact(len(lost), len(gained))
    assert (found.n, found.first.correct, found.second.correct) == (20, sum(first.values()), sum(second.values()))
    assert found.points.mean == pytest.approx((sum(second.values()) - sum(first.values())) / 20)


def test_a_run_against_itself_shows_no_difference(runs: dict[str, Path]) -> None:
    found = versus(runs["Yi"], runs["Yi"])
    assert (found.counts.p_value, found.gained, found.lost) == (1.0, (), ())
    assert found.points.low < found.points.mean == 0.0 < found.points.high  # 20 equal verdicts prove nothing equal
    assert found.seconds is not None and found.seconds.mean == 0.0


def test_seconds_are_compared_only_where_both_were_timed(runs: dict[str, Path]) -> None:
    assert versus(runs["Qwen"], runs["Yi"]).seconds is not None
    assert versus(runs["Qwen"], runs["Qwen -> Yi"]).seconds is None


def test_runs_on_other_questions_are_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    elsewhere = write_run(tmp_path, "Yi", questions("gsm8k", 3))
    with pytest.raises(UsageError, match="no judged question in common"):
        versus(runs["Yi"], elsewhere)


def test_a_run_is_compared_with_one_that_was_shown_examples(runs: dict[str, Path], tmp_path: Path) -> None:
    shown = [question.model_copy(update={"intro": "E?\nAnswer: 3\n"}) for question in questions("ceval", 20)]
    assert versus(runs["Yi"], write_run(tmp_path, "Yi", shown)).n == 20


def test_the_most_accurate_path_wins_and_of_equals_the_faster(runs: dict[str, Path]) -> None:
    choice = choose(gather([str(run) for run in runs.values()]))
    shares = {flow: sum(right(run).values()) / 20 for flow, run in runs.items()}
    assert choice.winner.accuracy == pytest.approx(max(shares.values()))
    assert len(choice.candidates) == 4 and choice.winner.is_front
    assert not choice.is_timed


def test_the_winner_is_written_as_a_flow_that_checks(runs: dict[str, Path]) -> None:
    choice = choose(gather([str(runs["Yi"])]))
    text = as_flow(choice)
    assert text.startswith("# Recommended among 1 paths")
    assert strategy_of(check(text, zoo="lab")) == Wiring("single", ("Yi",), "Yi")


def test_the_winner_keeps_the_settings_that_it_ran_with(tmp_path: Path) -> None:
    """A flow run with --set max_tokens=32 was written without it: another flow than the one that won."""
    asked = questions("gsm8k", 4)
    run = write_run(tmp_path, "param t: float = 0\nQwen[temperature=$t] -> Yi", asked, max_tokens="32")
    text = as_flow(choose(gather([str(run)])))
    assert "defaults { max_tokens=32 }" in text
    assert fingerprint(compile(check(text, zoo="lab"))) == info(run).data["plan_fingerprint"]


def test_limits_leave_paths_out_and_say_what_there_is(runs: dict[str, Path]) -> None:
    evidence = gather([str(runs["Qwen"]), str(runs["Yi"])])
    assert choose(evidence, max_seconds=1e9).num_beyond == 0
    with pytest.raises(UsageError, match="none of 2 paths meets these limits"):
        choose(evidence, max_seconds=1e-9)
    with pytest.raises(UsageError, match="none of 2 paths"):
        choose(evidence, min_accuracy=1.0)
    with pytest.raises(UsageError, match="--max-seconds needs seconds"):
        choose(gather([str(runs["(Qwen | Yi)"])]), max_seconds=1.0)


def said_of(folder: Path) -> tuple[str, dict[str, Any]]:
    """Return what `recommend` prints of a folder of runs, and its JSON."""
    runner = CliRunner(env={"COLUMNS": "200"})
    told = runner.invoke(app, ["recommend", str(folder), "--all"]).stdout
    return told, json.loads(runner.invoke(app, ["recommend", str(folder), "--json"]).stdout)


def test_a_recommendation_says_which_flows_answered_one_of_two_data_sets(tmp_path: Path) -> None:
    """Flows over one data set each leave their group without a word, and what is left is wrong throughout."""
    for flow, task in (("Qwen", "ceval"), ("Yi", "ceval"), ("Ds", "gsm8k"), ("Qwen -> Yi", "gsm8k")):
        write_run(tmp_path, flow, questions(task, 4), rule=lambda *_: True)
    write_run(tmp_path, "Qwen", questions("ceval", 4), rule=lambda *_: False, max_tokens="32")
    why = "none answered every question of ceval (lab), gsm8k (lab); name runs over one data set"
    told, data = said_of(tmp_path)
    note = data["notes"][0]
    assert re.fullmatch(r"4 flows \((Qwen|Yi|Ds|Qwen -> Yi)(, .*){2}, \.\.\.\) are left out: " + re.escape(why), note)
    assert f"note: {note}\n" in told and " 0.0 %" in told
    assert data["left_out"] == 4 and data["winner"]["accuracy"] == 0


def test_a_recommendation_says_which_flows_were_not_finished(tmp_path: Path) -> None:
    write_run(tmp_path, "Qwen", questions("ceval", 4))
    write_run(tmp_path, "Yi", questions("ceval", 4), answered=3)
    told, data = said_of(tmp_path)
    note = "1 flow (Yi) is left out: it has not answered every question of ceval (lab); finish runs with --resume"
    assert f"note: {note}\n" in told and data["left_out"] == 1
    evidence = gather([str(tmp_path)])
    with pytest.raises(UsageError) as beyond:
        choose(evidence, min_accuracy=1.0)
    assert beyond.value.message == f"none of 1 path meets these limits; {note}"


def test_where_no_flow_is_whole_the_refusal_names_those_that_are_not(tmp_path: Path) -> None:
    for flow in ("Qwen", "Yi"):
        write_run(tmp_path, flow, questions("ceval", 4), answered=3)
    with pytest.raises(UsageError, match=r"no path has .*; 2 flows \((Qwen, Yi|Yi, Qwen)\) are left out: none"):
        choose(gather([str(tmp_path)]))


def test_settings_that_set_a_flow_apart_are_told_once(tmp_path: Path) -> None:
    for num in ("32", "48"):
        write_run(tmp_path, "Qwen", questions("ceval", 4), max_tokens=num)
    told, data = said_of(tmp_path)
    assert "Qwen  with max_tokens=32 " in told and "[max_tokens" not in told and data["left_out"] == 0
    with pytest.raises(UsageError) as refused:
        choose(gather([str(tmp_path)]), min_accuracy=1.0)
    assert "the most accurate is Qwen  with max_tokens=" in str(refused.value.help)


def test_commands_print_tables_json_and_flows(runs: dict[str, Path], tmp_path: Path) -> None:
    runner = CliRunner()
    pair = [str(runs["Qwen"]), str(runs["Yi"])]
    assert "McNemar's exact test" in runner.invoke(app, ["compare", *pair]).stdout
    data = json.loads(runner.invoke(app, ["compare", *pair, "--json"]).stdout)
    assert data["n"] == 20 and len(data["gained"]) == data["counts"]["second_only"]
    assert "A, " in runner.invoke(app, ["compare", *pair, "--id", "ceval-0"]).stdout
    target = tmp_path / "best.flow"
    done = runner.invoke(app, ["recommend", *pair, "-o", str(target)])
    assert "recommended:" in done.stdout and target.is_file()
    listed = json.loads(runner.invoke(app, ["recommend", *pair, "--json"]).stdout)
    assert {"winner", "candidates"} <= set(listed)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["compare", "nowhere", "nowhere"], "no run 'nowhere'"),
        (["report", "nowhere"], "no run 'nowhere' in 'runs', no sweep in 'sweeps'"),
        (["recommend", "nowhere"], "nowhere"),
        (["recommend", "x", "--min-accuracy", "60"], "between 0 and 1"),
        (["recommend", "x", "--max-seconds", "-1"], "must be above 0"),
    ],
)
def test_wrong_input_says_what_is_wrong(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, UsageError)
    assert said in result.exception.message
