"""Tables of routes, learned from runs and weighed against the best single flow."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from flowinfer.errors import DataError
from flowinfer.language import routes
from flowinfer.language.routes import as_text, read
from flowinfer.results import Question, Record, Score, StepResult, Trace
from flowinfer.runs import routing
from flowinfer.runs.routing import Ran, learn
from tests.command import flowinfer
from tests.report.sweeps import questions, write_run

Right = Callable[[str], bool]
LANDS = ("France", "Spain", "Italy", "Norway", "Chad", "Peru")
TEXTS = [f"What is {n} + {n * n}?" for n in range(60)] + [
    f"What is the {what} of {land}?" for what in ("capital", "coast", "flag", "king", "sea") for land in LANDS
]


def ran(flow: str, right: Right, tokens: int = 10, texts: list[str] = TEXTS) -> Ran:
    """Return a flow's answers to these questions."""
    records = {}
    for number, text in enumerate(texts):
        name, is_right = f"q{number}", right(text)
        step = StepResult(
            step="s1", text="", passed_on="", prompts={"n1": ""}, tokens=tokens, finish_reason="eos", seconds=1.0
        )
        trace = Trace(question_id=name, answer="", finish_reason="eos", seconds=1.0, steps=(step,))
        verdict = Score(correct=is_right, extracted="1", status="ok", rule="anchor")
        question = Question(id=name, question=text, reference="1")
        records["made up", name] = Record(question=question, trace=trace, score=verdict)
    return Ran(flow, flow.lower(), records, {})


def sums(text: str) -> bool:
    return "+" in text


def test_a_route_pays_where_flows_are_right_about_unlike_questions() -> None:
    table = learn([ran("A", sums, 30), ran("B", lambda text: not sums(text), 10)])
    held = table.held_out
    assert held.pays and held.best == 0 and held.picked == (60, 30)
    assert held.route.accuracy == held.oracle.accuracy == 1 and table.members[0].outcome.accuracy == 60 / 90
    assert held.gained == 30 and held.lost == 0 and held.p_value < 1e-6
    assert held.route.tokens == (60 * 30 + 30 * 10) / 90 and held.route.seconds is None


def test_a_route_does_not_pay_where_questions_say_nothing() -> None:
    rng = random.Random(3)
    table = learn([ran("A", lambda _: rng.random() < 0.5), ran("B", lambda _: rng.random() < 0.6)])
    assert not table.held_out.pays and table.held_out.oracle.accuracy > table.members[1].outcome.accuracy


def test_of_flows_that_are_always_right_together_the_cheapest_is_picked() -> None:
    table = learn([ran("A", sums, 30), ran("B", sums, 10)])
    assert table.held_out.picked == (0, 90) and table.held_out.best == 1 and not table.held_out.pays


def test_of_very_many_questions_some_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "_MOST_ASKED", 40)
    held = learn([ran("A", sums, 30), ran("B", lambda text: not sums(text), 10)]).held_out
    assert sum(held.picked) == 40 and held.route.accuracy == 1 and held.pays


def test_a_table_that_nobody_could_read_is_not_written(
    tmp_path: Path, toy_zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for model in ("Qwen", "Yi"):
        write_run(tmp_path / "runs", model, questions("gsm8k", 50))
    route = ("route", "runs", "-o", "routes.json", "--anyway")
    assert flowinfer(*route, cwd=tmp_path).returncode == 0
    monkeypatch.setattr(routes, "MOST_BYTES", 2000)
    (tmp_path / "r.flow").write_text('(Yi / Qwen)[pick="routes.json"]\n')
    unread = flowinfer("check", "r.flow", "--zoo", str(toy_zoo), cwd=tmp_path)
    assert unread.returncode == 1 and "'routes.json' cannot be read: larger than 0 MB" in unread.stdout
    assert "help: learn it from fewer questions; flowinfer route RUNS -o FILE makes one" in unread.stdout
    (tmp_path / "routes.json").unlink()
    refused = flowinfer(*route, cwd=tmp_path)
    assert refused.returncode == 1 and not (tmp_path / "routes.json").exists()
    assert "the table would have 0 MB, and at most 0 are read" in refused.stderr


def test_flows_that_only_options_tell_apart_are_named_by_them(tmp_path: Path) -> None:
    """Both were 'Qwen', and the group that was told of had no options."""
    for text in ("Qwen", "Qwen[max_tokens=9]"):
        write_run(tmp_path / "runs", text, questions("gsm8k", 50))
    told = json.loads(flowinfer("route", "runs", "--anyway", "--json", cwd=tmp_path).stdout)
    assert {member["flow"] for member in told["members"]} == {"Qwen  with max_tokens=64", "Qwen[max_tokens=9]"}


def test_only_questions_count_that_every_flow_has_a_verdict_on() -> None:
    first, second = ran("A", sums), ran("B", sums)
    first.records["made up", "q0"] = first.records["made up", "q0"].model_copy(update={"score": None})
    del second.records["made up", "q1"]
    other = second.records["made up", "q2"]
    changed = other.question.model_copy(update={"question": "another"})
    second.records["made up", "q2"] = other.model_copy(update={"question": changed})
    table = learn([first, second])
    assert (table.learned_on[0].questions, table.learned_on[0].left_out) == (87, 3)
    with pytest.raises(DataError, match="49 common questions are too few"):
        learn([first, ran("B", sums, texts=TEXTS[:50])])
    with pytest.raises(DataError, match="two flows at least"):
        learn([first])
    with pytest.raises(DataError, match="all questions are the same"):
        learn([ran(name, sums, texts=["1 + 1"] * 60) for name in ("A", "B")])


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    texts = [*TEXTS, "\ud800"]
    table = learn([ran("A", sums, texts=texts), ran("B", lambda text: not sums(text), texts=texts)])
    path = tmp_path / "r.json"
    path.write_bytes(as_text(table).encode(errors="surrogatepass"))
    assert read(path, "r.json") == table and read(path, "r.json").digest == table.digest


def test_routes_from_the_command_line(tmp_path: Path, toy_zoo: Path) -> None:
    """Who is right is decided by hash, so that routing cannot pay and its table is written on demand only."""
    for model in ("Qwen", "Yi"):
        write_run(tmp_path / "runs", model, questions("gsm8k", 50))
    refused = flowinfer("route", "runs", "-o", "routes.json", cwd=tmp_path)
    assert refused.returncode == 1 and not (tmp_path / "routes.json").exists()
    assert "routing does not pay: " in refused.stdout and "error: routing does not pay here: no table" in refused.stderr
    told = flowinfer("route", "runs", "-o", "routes.json", "--anyway", "--json", cwd=tmp_path)
    assert told.returncode == 0 and not json.loads(told.stdout)["held_out"]["pays"]
    (tmp_path / "r.flow").write_text('defaults { max_tokens=2 }\n(Yi / Qwen)[pick="routes.json"]\n')
    (tmp_path / "data.jsonl").write_text('{"id": "q", "question": "How many? 3", "answer": "7"}\n')
    run = ("exec", "r.flow", "--zoo", str(toy_zoo), "--dataset", "data.jsonl", "-q")
    done = flowinfer(*run, cwd=tmp_path)
    assert done.returncode == 0 and "W0305" in done.stderr and "W0306" in done.stderr
    name = max((tmp_path / "runs").glob("*-r-*")).name
    assert "d1 (Yi / Qwen): picked" in flowinfer("show", name, "q", cwd=tmp_path).stdout
    text = (tmp_path / "routes.json").read_text("utf-8")
    (tmp_path / "routes.json").write_text(text.replace("How many? 3", "How many? 4"), "utf-8")
    again = flowinfer("exec", "--resume", name, cwd=tmp_path)
    assert again.returncode == 2 and "the routes 'routes.json' differ from the run's" in again.stderr
