"""Answers that run on into questions of the model's own: counted by the judge's rule, with the stop text to write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flowinfer import api
from flowinfer.cli import show
from flowinfer.results import Question, Record, Trace
from flowinfer.runs.judging import judged
from flowinfer.runs.run_on import goes_on
from flowinfer.runs.run_on import run_on as summed_up
from flowinfer.runs.summary import RunOn
from flowinfer.runs.tables import notes
from tests.endpoint import Stub, said, stub

__all__ = ["stub"]


def records(*answers: str) -> list[Record]:
    """Return judged answers, each to a question of its own."""
    made = []
    for number, text in enumerate(answers):
        question = Question(id=f"q{number}", question="What is 3 + 4?", reference="7", kind="gsm8k")
        trace = Trace(question_id=question.id, answer=text, finish_reason="eos", seconds=0.0, steps=())
        made.append(judged(question, trace))
    return made


def run_on(made: list[Record], step: str) -> RunOn | None:
    judged_ones = {one.question.id: one.trace.answer for one in made if one.score is not None}
    return summed_up(judged_ones, {one.question.id: where for one in made if (where := goes_on(one))}, step)


@pytest.mark.parametrize(
    ("answer", "stop"),
    [
        ("3 + 4 = 7\n#### 7\n\nQuestion: What is 5 + 5?\n#### 10", "\nQuestion:"),
        ("The answer is 7.\nQ: and 8?\nA: 9", "\nQ:"),
        ("The answer is 7.\n\nQuestion 12: and 8?\nA: 9", "\nQuestion"),
        ("答案是7。\n问题：5加5等于几？\n答案是10。", "\n问题："),
        ("The answer is 7. Question: and 8?", " Question:"),
        ("The answer is 7.\nHuman: and 8?", "\nHuman:"),
    ],
)
def test_the_stop_text_is_how_the_next_question_begins(answer: str, stop: str) -> None:
    found = run_on(records(answer, "The answer is 7."), "Qwen")
    assert found is not None and (found.num, found.of, found.first, found.stops) == (1, 2, ("q0",), (stop,))
    assert answer.index(stop) > 0


def test_a_stop_text_that_would_cut_an_answer_is_not_proposed() -> None:
    whole = "Question: what is 3 + 4?\nQuestion: is it 7? It is, so the answer is 7."
    found = run_on(
        records("The answer is 7.\nQuestion: and 8?\nA: 9", "So\nQuestion: 3 + 4?\nThe answer is 7."), "Qwen"
    )
    assert found is not None and (found.num, found.stops) == (1, ())
    assert run_on(records(whole), "Qwen") is None


def test_answers_that_end_in_time_need_no_word() -> None:
    assert run_on(records("The answer is 7.", "#### 7", ""), "Qwen") is None
    one = "The answer is 7.\nQuestion: and 8?\nA: 9"
    assert run_on(records(one, *["#### 7"] * 99), "Qwen") is None
    assert run_on(records(one, one, *["#### 7"] * 98), "Qwen") is not None


def test_a_run_tells_of_it_and_writes_the_line(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("zoo.toml").write_text(f'[models.A]\nref = "m"\nbackend = "openai"\nbase_url = "{stub.url}"\n')
    Path("items.jsonl").write_text(json.dumps({"question": "3 + 4?", "answer": "7", "kind": "gsm8k"}))
    stub.replies = [said("#### 7\nQuestion: 4 + 4?\n#### 8")]
    found = api.parse('A[prompt="{question}"]', zoo="zoo.toml").evaluate("items.jsonl", out="runs", use_cache=False)
    told = (
        "1 of 1 answers ('0') run on into a question of the model's own, 80 % of all that was written; "
        'no verdict reads it; stop=["\\nQuestion:"] behind A ends them there'
    )
    assert told in notes(found.results)
    (run,) = Path("runs").iterdir()
    show.command(str(run), None, Path("runs"), False, False, False)
    assert "run on into a question" in capsys.readouterr().out
    stopped = 'A[prompt="{question}", stop=["\\nQuestion:"]]'
    again = api.parse(stopped, zoo="zoo.toml").evaluate("items.jsonl", out="runs", use_cache=False)
    assert again.results.run_on is None and again.results.correct == 1
