"""A question can fail, a run cannot: judging, telling of and writing records; half surrogates; resuming."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flowinfer.language.check import check
from flowinfer.results import Question, Record
from flowinfer.runs import judging
from flowinfer.runs.experiment import Request, evaluate
from flowinfer.runs.store import Run, info, read_json, read_records
from flowinfer.spec import Flow
from flowinfer.tasks.base import Dataset, fingerprint

QUESTIONS = tuple(Question(id=f"q{k}", question=f"What is {k} + 1?", reference=str(k + 1)) for k in range(3))


@pytest.fixture
def flow(toy_zoo: Path) -> Flow:
    return check("Qwen[max_tokens=3]", zoo=str(toy_zoo))


def dataset(*questions: Question) -> Dataset:
    return Dataset("items", "items", questions, fingerprint(questions), "a test")


def failing(*arguments: Any) -> Any:
    raise ZeroDivisionError("no good")


def only_for(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that fails at one question."""
    return lambda one, *rest: (failing if f"'{name}'" in repr(one) else function)(one, *rest)


def second_fails(write: Callable[..., None]) -> Callable[..., None]:
    """Return a method that fails at its second call."""
    calls = iter(range(100))
    return lambda run, line: failing() if next(calls) == 1 else write(run, line)


@pytest.mark.parametrize("place", ["judging", "telling", "writing"])
def test_a_fault_after_the_answer_fails_its_question_and_a_resumed_run_answers_it(
    flow: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    heard: list[str] = []

    def note(record: Record) -> None:
        heard.append(record.question.id)

    with monkeypatch.context() as patch:
        if place == "judging":
            patch.setattr(judging, "score", only_for("q1", judging.score))
        if place == "writing":
            patch.setattr(Run, "write", second_fails(Run.write))
        tell = only_for("q1", note) if place == "telling" else note
        results = evaluate(flow, dataset(*QUESTIONS), Request(out=tmp_path, batch=1, use_cache=False), on_record=tell)
    assert (results.failed, len(heard)) == (1, 2 if place == "telling" else 3)
    (run,) = tmp_path.iterdir()
    failed = {record.question.id: record.trace for record in read_records(run) if record.trace.error}
    assert list(failed) == ["q1"] and failed["q1"].answer == ""
    assert str(failed["q1"].error).startswith("ZeroDivisionError: no good")
    again = evaluate(flow, dataset(*QUESTIONS), Request(out=tmp_path, resume="latest", use_cache=False))
    assert again.failed == 0 and sorted(record.question.id for record in read_records(run)) == ["q0", "q1", "q2"]


def test_an_interrupt_while_a_record_is_told_of_ends_the_run_and_keeps_what_was_written(
    flow: Flow, tmp_path: Path
) -> None:
    def interrupt(record: Record) -> None:
        if record.question.id == "q1":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(flow, dataset(*QUESTIONS), Request(out=tmp_path, batch=1, use_cache=False), on_record=interrupt)
    (run,) = tmp_path.iterdir()
    assert [record.question.id for record in read_records(run)] == ["q0"] and not (run / "results.json").exists()


def test_half_surrogates_anywhere_in_a_data_set_are_kept_and_fail_their_question_at_most(
    flow: Flow, tmp_path: Path
) -> None:
    asked = dataset(
        Question(id="q\ud800", question="What is 1 + 1?", reference="\udcff", subject="\ud800"),
        Question(id="half", question="\ud800", reference="1", choices={"A": "\udcff"}),
        QUESTIONS[0],
    )
    for _ in range(2):  # the second time is resumed
        results = evaluate(flow, asked, Request(out=tmp_path, resume="latest" if list(tmp_path.iterdir()) else None))
        assert (results.n, results.failed) == (2, 1)
    (run,) = tmp_path.iterdir()
    kept = {record.question.id: record.question for record in read_records(run)}
    assert kept == {question.id: question for question in asked.questions}
    assert info(run).said("question_ids")[0] == "q\ud800" and read_json(run / "results.json")["failed"] == 1


def test_a_resumed_run_takes_the_same_members_as_a_whole_one(toy_zoo: Path, tmp_path: Path) -> None:
    flow = check(
        "defaults { max_tokens=4 }\n((Qwen / Yi)[accept=confidence, at=0.5])*2[until=unchanged]", zoo=str(toy_zoo)
    )

    def interrupt(record: Record) -> None:
        if record.question.id == "q1":
            raise KeyboardInterrupt

    request = Request(out=tmp_path / "cut", batch=1, use_cache=False)
    with pytest.raises(KeyboardInterrupt):
        evaluate(flow, dataset(*QUESTIONS), request, on_record=interrupt)
    evaluate(flow, dataset(*QUESTIONS), replace(request, resume="latest"))
    whole = evaluate(flow, dataset(*QUESTIONS), replace(request, out=tmp_path / "whole"))
    cut, run = (next(folder.iterdir()) for folder in (tmp_path / "cut", tmp_path / "whole"))
    assert taken(cut) == taken(run)
    assert whole.calls and whole.selections[0].title == "((Qwen / Yi)[accept=confidence, at=0.5])*2"


def taken(run: Path) -> dict[str, object]:
    return {
        record.question.id: (record.trace.selections, [step.text for step in record.trace.steps])
        for record in read_records(run)
    }
