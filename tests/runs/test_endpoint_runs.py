"""Runs over an endpoint: what they cost, what it filtered, and that no secret gets into their folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flowinfer import api
from flowinfer.cli import show
from flowinfer.report.build import build
from flowinfer.report.gather import gather
from flowinfer.report.table import Number
from flowinfer.runs.evaluation import Evaluation
from flowinfer.runs.tables import summary_lines
from tests.endpoint import Reply, Stub, stub

__all__ = ["stub"]


def answered(text: str, *, read: int = 1000, cached: int = 0, reason: str = "stop") -> Reply:
    usage = {"prompt_tokens": read, "completion_tokens": 500, "prompt_tokens_details": {"cached_tokens": cached}}
    choice = {"message": {"content": text}, "finish_reason": reason}
    return 200, json.dumps({"choices": [choice], "usage": usage})


def evaluated(stub: Stub, num: int, more: str = "", flow: str = 'A[prompt="{question}"]') -> Evaluation:
    zoo = f'[models.A]\nref = "m"\nbackend = "openai"\nbase_url = "{stub.url}"\nparallel = 1\n'
    Path("zoo.toml").write_text(zoo + more)
    lines = [json.dumps({"question": f"q{i}", "answer": "7", "kind": "gsm8k"}) for i in range(num)]
    Path("items.jsonl").write_text("\n".join(lines))
    return api.parse(flow, zoo="zoo.toml").evaluate("items.jsonl", out="runs", use_cache=False)


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_prices_of_a_model_are_summed_up_and_shown(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    stub.replies = [answered("#### 7"), answered("#### 7", cached=800)]
    found = evaluated(stub, 2, "input_cost = 2\noutput_cost = 10.0\ncached_cost = 0.5\n").results
    assert found.cost == pytest.approx((1000 * 2 + 500 * 10 + 200 * 2 + 800 * 0.5 + 500 * 10) / 1e6)
    assert dict(summary_lines(found))["cost"] == "0.0128, 0.0064 a question"
    (run,) = Path("runs").iterdir()
    show.command(str(run), "0", Path("runs"), False, False, False)
    assert "eos, cost 0.007" in capsys.readouterr().out
    (section,) = build(gather([str(run)])).sections
    table = next(table for table in section.tables if table.key == "endings")
    row = dict(zip([column.key for column in table.columns], table.rows[0], strict=True))
    assert row["cost"] == Number(found.cost, "cost") and "filtered" not in row


def test_without_prices_nothing_has_a_cost(stub: Stub) -> None:
    stub.replies = [answered("#### 7")]
    found = evaluated(stub, 1)
    assert found.results.cost is None and "cost" not in dict(summary_lines(found.results))
    usage = found.records[0].trace.steps[0].usage
    assert usage is not None and (usage.input_tokens, usage.cost) == (1000, None)


def test_an_answer_that_was_filtered_counts_as_wrong_and_is_told(stub: Stub) -> None:
    stub.replies = [answered("", reason="content_filter"), answered("#### 7")]
    results = evaluated(stub, 2).results
    assert (results.n, results.correct, results.filtered, results.failed) == (2, 1, 1, 0)
    assert dict(summary_lines(results))["filtered"] == "1 by an endpoint"


def test_a_question_that_gets_no_answer_fails_and_the_others_go_on(stub: Stub) -> None:
    stub.replies = [(200, "<html>no</html>"), answered("#### 7"), (200, '{"error": "no quota"}'), answered("#### 7")]
    found = evaluated(stub, 4)
    assert (found.results.correct, found.results.failed) == (2, 2)
    assert all("\n" not in (record.trace.error or "") for record in found.records)


def test_secrets_of_headers_get_into_no_file(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAR_TOKEN", "t0ken-of-far-away")
    stub.replies = [answered("t0ken-of-far-away #### 7")]
    evaluated(stub, 1, 'headers = { "X-Key" = "$FAR_TOKEN" }\n')
    assert stub.headers[-1]["X-Key"] == "t0ken-of-far-away"
    files = [path for path in Path().rglob("*") if path.is_file()]
    assert files and not any(b"t0ken" in path.read_bytes() for path in files)
