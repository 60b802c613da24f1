"""Sweeps: what is shared is the same as what runs alone; kills lose nothing; failures are told and end nothing."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import flowinfer
from flowinfer.engine.models import ModelPool
from flowinfer.errors import UsageError
from flowinfer.runs.experiment import Request, evaluate
from flowinfer.runs.store import read_json, read_records
from flowinfer.sweeps.folder import read_index, read_latency
from flowinfer.sweeps.outcome import Sweep
from flowinfer.tasks.base import load_questions

ITEMS = [
    {"id": f"q{i}", "question": f"What is {i} + {'1' * (i + 1)}?", "answer": str(2 * i), "kind": "gsm8k"}
    for i in range(4)
]
MODELS = ("Qwen", "Yi", "Ds")


@pytest.fixture
def work(tmp_path: Path, toy_zoo: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a data set; the cache of steps is its own."""
    monkeypatch.setenv("FLOWINFER_CACHE", str(tmp_path / "cache"))
    write_items(tmp_path / "items.jsonl", ITEMS)
    return tmp_path


def write_items(path: Path, items: list[dict[str, str]]) -> None:
    path.write_text("".join(f"{json.dumps(item)}\n" for item in items), encoding="utf-8")


def sweep(work: Path, toy_zoo: Path, *models: str, **options: object) -> Sweep:
    given = {"datasets": [str(work / "items.jsonl")], "zoo": str(toy_zoo), "params": {"max_tokens": 7}}
    given |= {"out": work / "sweeps"} | options
    return flowinfer.sweep(models or MODELS, **given)  # type: ignore[arg-type]  # options of all kinds


def texts(run: Path) -> dict[str, object]:
    """Return all of a run's records that does not depend on the clock, or on who made what."""
    found = {}
    for record in read_records(run):
        steps = [(s.step, s.text, s.prompts, s.tokens, s.finish_reason) for s in record.trace.steps]
        heads = [[(head.node, head.model, head.prompt_tokens) for head in s.heads] for s in record.trace.steps]
        found[record.question.id] = (steps, heads, record.trace.answer, record.trace.finish_reason, record.score)
    return found


def run_of(sweep: Sweep, key: str) -> Path:
    return sweep.folder / next(entry.run for (path, _), entry in read_index(sweep.folder).items() if path == key)


def assert_as_alone(work: Path, found: Sweep, **options: Any) -> None:
    """Run each path of a sweep by itself, on models that are loaded once, and compare."""
    questions = load_questions(str(work / "items.jsonl"))
    request = Request(out=work / "alone", use_cache=False, **options)
    with closing(ModelPool()) as pool:
        for row in found.rows:
            alone = evaluate(row.wiring.checked, questions, request, models=pool)
            assert alone.run is not None
            assert texts(run_of(found, row.wiring.key)) == texts(Path(alone.run)), row.wiring.name


@pytest.mark.slow
def test_a_shared_sweep_answers_as_independent_runs_do_byte_for_byte(work: Path, toy_zoo: Path) -> None:
    """27 paths: prompts, texts, heads, answers and verdicts, in the ids of each path's own flow."""
    found = sweep(work, toy_zoo)
    assert len(found.rows) == 27
    assert_as_alone(work, found, batch=1)


def test_calls_are_counted_and_steps_of_other_runs_marked(work: Path, toy_zoo: Path) -> None:
    """Of SI's 18 calls per question 15 are made, of PI's 18 only 3."""
    found = sweep(work, toy_zoo, strategies=["SI", "PI"])
    assert (found.calls_needed, found.calls_made) == (36 * len(ITEMS), 18 * len(ITEMS))
    data = read_json(found.folder / "results.json")
    assert (data["version"], data["calls_needed"], data["calls_made"]) == (1, 144, 72)
    first, second = (list(read_records(run_of(found, key))) for key in ("p01", "p02"))
    assert all(step.cached_from is None for record in first for step in record.trace.steps)
    assert {record.trace.steps[0].cached_from for record in second} == {
        f"{found.folder.name}/{run_of(found, 'p01').name}"
    }


def test_the_folder_holds_what_reports_rely_on(work: Path, toy_zoo: Path) -> None:
    found = sweep(work, toy_zoo, strategies=["single", "PI"], latency=2)
    said = read_json(found.folder / "sweep.json")
    assert {"version", "started", "settings", "zoo", "zoo_why", "paths", "datasets", "host"} <= set(said)
    assert said["paths"][3] | {"settings": {}} == {
        "key": "p04",
        "strategy": "PI",
        "models": ["Qwen", "Yi", "Ds"],
        "flow": "(Qwen | Yi | Ds)",
        "name": "(Qwen | Yi | Ds)",
        "settings": {},
    }
    (dataset,) = said["datasets"]
    assert set(dataset) == {"name", "label", "fingerprint", "n"} and dataset["n"] == len(ITEMS)
    assert {entry.status for entry in read_index(found.folder).values()} == {"done"}
    rows = [json.loads(line) for line in (found.folder / "latency.jsonl").read_text().split("\n") if line]
    assert len(rows) == 9 * 2 and set(rows[0]) == {"path", "dataset", "question_id", "seconds", "record"}
    assert all(step["cached_from"] is None for row in rows for step in row["record"]["trace"]["steps"])
    assert len(read_latency(found.folder)) == 9 and all(row.seconds for row in found.rows)


def test_paths_take_turns_while_they_are_timed(work: Path, toy_zoo: Path) -> None:
    found = sweep(work, toy_zoo, "Qwen", "Yi", latency=3)
    rows = [json.loads(line) for line in (found.folder / "latency.jsonl").read_text().split("\n") if line]
    assert [row["path"] for row in rows[:14]] == [
        *("p01", "p02", "p03", "p04", "p05", "p06"),
        *("p02", "p03", "p04", "p05", "p06", "p01"),
        *("p03", "p04"),
    ]


def test_a_second_sweep_takes_everything_from_the_cache_unless_told_not_to(work: Path, toy_zoo: Path) -> None:
    first = sweep(work, toy_zoo, "Qwen", "Yi")
    assert sweep(work, toy_zoo, "Qwen", "Yi").calls_made == 0
    again = sweep(work, toy_zoo, "Qwen", "Yi", use_cache=False)
    assert again.calls_made == first.calls_made > 0 and not (again.folder / "steps").exists()


@pytest.mark.slow
def test_independent_runs_share_nothing_and_are_measured(work: Path, toy_zoo: Path) -> None:
    shared = sweep(work, toy_zoo, strategies=["SI", "P2S"], limit=2)
    alone = sweep(work, toy_zoo, strategies=["SI", "P2S"], limit=2, independent=True)
    assert alone.calls_made == alone.calls_needed == shared.calls_needed
    assert all(row.seconds is not None for row in alone.rows) and all(row.seconds is None for row in shared.rows)
    for row in alone.rows:
        assert texts(run_of(alone, row.wiring.key)) == texts(run_of(shared, row.wiring.key))


def test_a_path_that_fails_is_told_and_the_others_are_run(work: Path, toy_zoo: Path) -> None:
    zoo = work / "zoo.toml"
    text = toy_zoo.read_text("utf-8").replace('ref = "', f'ref = "{toy_zoo.parent}/')
    (work / "broken").mkdir()
    zoo.write_text(text + '[models.Bad]\nref = "broken"\ndtype = "float32"\n', encoding="utf-8")
    found = sweep(work, zoo, "Qwen", "Bad", strategies=["single", "SI"])
    assert [cell.error is None for row in found.rows for cell in row.cells] == [True, False, False, False]
    assert len(found.failures) == 3 and "p02 Bad on items" in found.failures[0]
    entry = read_index(found.folder)[("p02", str(work / "items.jsonl"))]
    assert entry.status == "failed" and entry.error
    again = sweep(work, zoo, "Qwen", "Bad", strategies=["single", "SI"], resume="latest")
    assert len(again.failures) == 3 and again.folder == found.folder


def test_a_question_that_fails_counts_as_wrong_and_is_asked_again(work: Path, toy_zoo: Path) -> None:
    write_items(work / "items.jsonl", [*ITEMS[:1], {"id": "long", "question": "x " * 9000, "answer": "1"}])
    found = sweep(work, toy_zoo, "Qwen", "Yi", strategies=["single"])
    assert [line.rsplit(": ")[-1] for line in found.failures] == ["1 question failed"] * 2
    again = sweep(work, toy_zoo, "Qwen", "Yi", strategies=["single"], resume=found.folder.name)
    assert len(again.failures) == 2
    assert [record.question.id for record in read_records(run_of(found, "p01"))] == ["q0", "long"]


def test_names_may_come_as_one_text_and_wrong_values_are_told(work: Path, toy_zoo: Path) -> None:
    for batch in ("x", 0):
        with pytest.raises(UsageError, match=f"batch={batch!r}"):
            sweep(work, toy_zoo, "Qwen", batch=batch)
    found = flowinfer.sweep(
        "Qwen,Yi", strategies="pi", datasets=str(work / "items.jsonl"), zoo=str(toy_zoo), limit=1, out=work / "sweeps"
    )
    assert [row["flow"] for row in found.table] == ["(Qwen | Yi)", "(Yi | Qwen)"]
    assert "(Yi | Qwen)" in repr(found) and found._repr_html_().startswith("<table>")


def test_a_sweep_says_once_for_all_paths_that_its_questions_are_in_another_language(work: Path, toy_zoo: Path) -> None:
    found = sweep(work, toy_zoo, "Qwen", "Yi", strategies=["single"])
    assert found.language_notes[0].startswith("items: the prompt set 'paper' asks in Chinese")
    assert repr(found).count("asks in Chinese") == 1 and len(found.language_notes) == 1
    assert 'params={"prompts": "plain"} or en' in repr(found)
    plain = {"max_tokens": 7, "prompts": "plain"}
    told = sweep(work, toy_zoo, "Qwen", strategies=["single"], params=plain).language_notes
    assert told == ()


def test_run_folders_that_a_kill_left_half_made_are_removed(work: Path, toy_zoo: Path) -> None:
    found = sweep(work, toy_zoo, "Qwen", strategies=["single"])
    torn = found.folder / "runs" / "torn"
    torn.mkdir()
    (torn / "pipeline.flow").write_text("Qwen")
    sweep(work, toy_zoo, "Qwen", strategies=["single"], resume="latest")
    assert not torn.exists() and len(list((found.folder / "runs").iterdir())) == 1


def test_resuming_refuses_other_questions(work: Path, toy_zoo: Path) -> None:
    sweep(work, toy_zoo, "Qwen", strategies=["single"])
    write_items(work / "items.jsonl", ITEMS[1:])
    with pytest.raises(UsageError, match="the questions differ"):
        sweep(work, toy_zoo, "Qwen", strategies=["single"], resume="latest")


def test_what_was_sampled_is_shared_only_where_it_is_the_same_draw(work: Path, toy_zoo: Path) -> None:
    found = sweep(work, toy_zoo, "Qwen", "Yi", params={"max_tokens": 7, "temperature": 1})
    assert_as_alone(work, found)


@pytest.mark.slow
def test_flows_of_every_kind_share_steps(work: Path, toy_zoo: Path) -> None:
    flows = work / "flows"
    flows.mkdir()
    written = {
        "vote": "(Qwen & Yi & Ds)",
        "join": "(Yi & Qwen) -> Ds",
        "same": "(Qwen[prompt=draft] | Qwen[prompt='Say: {question}'])",
        "back": "(Qwen[prompt='Say: {question}'] | Qwen[prompt=draft])",
        "deep": "(Qwen -> Yi | (Ds | Qwen))",
        "turn": "((Qwen | Ds) | Qwen -> Yi)",
    }
    for name, text in written.items():
        (flows / f"{name}.flow").write_text(text + "\n", encoding="utf-8")
    found = flowinfer.sweep(
        flows=[flows],
        datasets=[str(work / "items.jsonl")],
        zoo=str(toy_zoo),
        params={"max_tokens": 7},
        out=work / "sweeps",
    )
    assert found.calls_made == (3 + 0 + 1 + 2 + 3 + 0) * len(ITEMS)
    assert_as_alone(work, found, batch=1)
