"""Questions that failed: counted in no accuracy, shown beside it, and a run of nothing else is stopped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import pytest

from flowinfer import api
from flowinfer.backends.base import TextCompletion
from flowinfer.cli import show
from flowinfer.engine.models import ModelPool
from flowinfer.engine.patience import MOST_FAILURES, Patience
from flowinfer.errors import RunError
from flowinfer.report.build import build
from flowinfer.report.evidence import Cell
from flowinfer.report.gather import gather
from flowinfer.report.table import Number
from flowinfer.results import Question, Record, Score, Trace
from flowinfer.runs.evaluation import Evaluation
from flowinfer.runs.live import LiveProgress
from flowinfer.runs.store import read_records
from flowinfer.runs.summary import summarize_run
from flowinfer.runs.tables import summary_lines
from flowinfer.spec import Decoding

ZOO = '[models.A]\nref = "m"\nbackend = "openai"\nbase_url = "http://localhost:1/v1"\n'


class Endpoint:
    """A model that fails the questions that it is told to."""

    name, notes = "A", ()

    def __init__(self, failing: set[str]) -> None:
        self.failing = failing
        self.asked: list[str] = []
        self.seeds: list[int] = []
        self.texts: Iterator[str] = repeat("#### 7")

    def complete(self, prompt: str, decoding: Decoding, *, seed: int) -> TextCompletion:
        self.asked.append(prompt)
        self.seeds.append(seed)
        if prompt in self.failing:
            raise RunError("the endpoint is down")
        return TextCompletion(next(self.texts), 3, "eos", 0.1)

    def close(self) -> None:
        """Nothing is open."""


class Pool(ModelPool):
    """Gives one model for every name."""

    def __init__(self, model: Endpoint) -> None:
        super().__init__()
        self.model = model

    def get(self, *args: object, **kwargs: object) -> Endpoint:  # type: ignore[override]
        return self.model

    def close(self) -> None:
        """Nothing was loaded."""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zoo.toml").write_text(ZOO)
    yield tmp_path


def evaluated(work: Path, num: int, model: Endpoint, flow: str = 'A[prompt="{question}"]') -> Evaluation:
    lines = [json.dumps({"question": f"q{i}", "answer": "7", "kind": "gsm8k"}) for i in range(num)]
    (work / "items.jsonl").write_text("\n".join(lines))
    pipeline = api.parse(flow, zoo="zoo.toml")
    pipeline._models = Pool(model)
    return pipeline.evaluate("items.jsonl", out="runs", use_cache=False)


def test_failed_questions_are_not_counted_and_shown_beside(work: Path) -> None:
    found = evaluated(work, 4, Endpoint({"q1"}))
    results = found.results
    assert (results.n, results.correct, results.failed, found.accuracy) == (3, 3, 1, 1.0)
    lines = dict(summary_lines(results))
    assert lines["accuracy"].endswith("(3 of 3)") and lines["failed"] == "1, not counted"
    assert {row["id"]: row["correct"] for row in found.table}["1"] is None
    (run,) = (work / "runs").iterdir()
    assert summarize_run(run, list(read_records(run))).accuracy == 1.0


def test_a_run_without_any_answer_has_no_accuracy_and_says_why_it_has_no_seconds(work: Path) -> None:
    found = evaluated(work, 3, Endpoint({"q0", "q1", "q2"}))
    assert (found.accuracy, found.interval, found.results.failed) == (None, (0.0, 1.0), 3)
    lines = dict(summary_lines(found.results))
    assert lines["accuracy"] == "- (no question has a verdict)"
    assert lines["seconds / question"] == "- (nothing was answered)"
    assert "cached" not in found._repr_html_()


def test_a_run_in_which_everything_fails_is_stopped_and_can_go_on(work: Path) -> None:
    model = Endpoint({f"q{i}" for i in range(40)})
    with pytest.raises(RunError, match="gave up: the first 10 questions failed and none was answered: the endpoint is"):
        evaluated(work, 40, model)
    assert len(model.asked) < 30
    (run,) = (work / "runs").iterdir()
    assert len(list(read_records(run))) == MOST_FAILURES and not (run / "results.json").exists()


def test_equal_endpoint_members_draw_with_seeds_of_their_own(work: Path) -> None:
    """Otherwise two members that are the same model say the same, and their vote is one voice counted twice."""
    model = Endpoint(set())
    found = evaluated(work, 3, model, '(A[prompt="{question}"] & A[prompt="{question}"])')
    assert len(model.seeds) == len(set(model.seeds)) == 6 and all(0 <= seed < 2**32 for seed in model.seeds)
    assert found.results.ties == 0
    again = Endpoint(set())
    evaluated(work, 3, again, '(A[prompt="{question}"] & A[prompt="{question}"])')
    assert sorted(again.seeds) == sorted(model.seeds)


def test_a_tied_vote_says_so_wherever_it_is_shown(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = Endpoint(set())
    model.texts = iter(["#### 1", "#### 2"])
    flow = '(A[prompt="{question}"] & A[prompt="{question}, please"])'
    found = evaluated(work, 1, model, flow)
    ballot = found.records[0].trace.ballot
    assert ballot and ballot.is_tie and "tie, 1 of 2 votes: the first of the equals counts" in str(ballot)
    assert dict(summary_lines(found.results))["tied votes"] == "1, decided by the order of the members"
    (run,) = (work / "runs").iterdir()
    show.command(str(run), "0", Path("runs"), False, False, False)
    assert f"vote: {ballot}" in " ".join(capsys.readouterr().out.split())
    (section,) = build(gather([str(run)])).sections
    table = next(table for table in section.tables if table.key == "endings")
    assert dict(zip([c.key for c in table.columns], table.rows[0], strict=True))["ties"] == Number(1, "count")
    live = LiveProgress(1, is_quiet=True)
    live.answered(found.records[0])
    assert "tied 1" in live.status()


def test_one_answer_is_reason_enough_to_go_on(work: Path) -> None:
    found = evaluated(work, 40, Endpoint({f"q{i}" for i in range(1, 40)}))
    assert (found.results.n, found.results.failed) == (1, 39)


def test_patience_counts_answers_of_earlier_sessions() -> None:
    patience = Patience(has_answer=True)
    for _ in range(3 * MOST_FAILURES):
        patience.hear("down")


def test_a_failed_question_has_no_verdict_in_reports() -> None:
    question = Question(id="a", question="q", reference="7", kind="gsm8k")
    failed = Trace(question_id="a", answer="", finish_reason="error", seconds=0.0, steps=(), error="down")
    right = failed.model_copy(update={"question_id": "b", "error": None, "finish_reason": "eos"})
    score = Score(correct=True, extracted="7", status="ok", rule="anchor")
    records = (
        Record(question=question, trace=failed),
        Record(question=question.model_copy(update={"id": "b"}), trace=right, score=score),
    )
    cell = Cell("w1", "d1", Path("run"), records, 2)
    assert (cell.verdicts, cell.tally.failed, cell.accuracy, cell.is_whole) == ({"b": True}, 1, 1.0, False)
