"""Missing data give a smaller, right report with a note; wrong input a clear message."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from flowinfer.errors import DataError, UsageError
from flowinfer.report.build import Report, Section, build
from flowinfer.report.figures.draw import figures
from flowinfer.report.folders import locate
from flowinfer.report.gather import gather
from flowinfer.report.page.render import render
from flowinfer.report.table import Table, shown
from flowinfer.report.write import write
from flowinfer.report.writers import latex, markdown
from flowinfer.runs.finding import find_run
from tests.report.sweeps import questions, write_run, write_sweep


def _made(places: Sequence[Path], out: Path, *, draws: bool = False) -> Report:
    """Return a report that was written in every form; its figures, if it has any, are drawn but not saved."""
    report = build(gather([str(place) for place in places]))
    write(report, out, ("csv", "json"))
    markdown.write(report, {})
    render(report, {})
    for section in report.sections:
        if draws:
            figures(section.evidence)
        for table in section.tables:
            latex.table_tex(table, table.key)
    return report


def _only(report: Report) -> Section:
    (section,) = report.sections
    return section


def _table(report: Report, key: str) -> Table:
    return next(table for table in _only(report).tables if table.key == key)


def _keys(report: Report) -> list[str]:
    return [table.key for table in _only(report).tables]


def test_without_timing_seconds_are_a_dash_with_a_note(tmp_path: Path) -> None:
    report = _made([write_sweep(tmp_path / "sweep", 3, is_timed=False)], tmp_path / "out")
    assert any("no seconds" in note for note in report.notes)
    assert "table-5-step" not in _keys(report)
    assert all(" - s" in shown(row[2]) for row in _table(report, "paths").rows)
    cost = next(finding for finding in _only(report).findings if finding.key == "pi-cost")
    assert (cost.verdict, cost.sentences) == (
        "cannot be told",
        ("0 fused steps were timed at batch 1 without cached steps.",),
    )
    drawn = figures(_only(report).evidence)
    assert all(axes.patches or axes.lines or axes.images or axes.collections for d in drawn for axes in d.figure.axes)
    assert not any("seconds" in drawing.caption for drawing in drawn)
    assert "figure-7" not in [drawing.key for drawing in drawn]


def test_one_run_gives_a_report_of_one_path(tmp_path: Path) -> None:
    run = write_run(tmp_path, "Qwen", questions("gsm8k", 5))
    report = _made([run], tmp_path / "out", draws=True)
    assert report.title == "1 path on gsm8k (lab)"
    assert _keys(report) == ["table-4-strategies", "paths", "endings"]
    assert _only(report).findings == ()


def test_flows_that_are_not_the_papers_are_compared_as_others(tmp_path: Path) -> None:
    asked = questions("ceval", 5)
    flows = ["Qwen", "Qwen -> Qwen -> (Qwen | Ds)", "(Qwen:0.7 | Ds:0.3)", "(Qwen | (Ds | Yi))", "(Qwen & Ds)"]
    report = _made([write_run(tmp_path, flow, asked) for flow in flows], tmp_path / "out", draws=True)
    kinds = {shown(row[1]): shown(row[0]) for row in _table(report, "paths").rows}
    assert kinds["Qwen"] == "single"
    assert all(kind == "other" for flow, kind in kinds.items() if flow != "Qwen")
    assert set(kinds) == set(flows)
    assert len(_table(report, "tests-single").rows) == 4


def test_runs_on_different_questions_are_kept_apart(tmp_path: Path) -> None:
    one = write_run(tmp_path, "Qwen", questions("gsm8k", 5))
    two = write_run(tmp_path, "Qwen -> Ds", questions("gsm8k", 4))
    report = _made([one, two], tmp_path / "out", draws=True)
    assert "gsm8k (lab): 2 different sets of questions (5, 4), kept apart and not compared" in report.notes
    assert [dataset.label for dataset in _only(report).evidence.datasets] == ["gsm8k (lab) #1", "gsm8k (lab) #2"]
    assert _only(report).comparisons == ()


def test_an_interrupted_run_is_shown_but_in_no_mean_or_best(tmp_path: Path) -> None:
    asked = questions("gsm8k", 6)
    whole = write_run(tmp_path, "Qwen", asked, rule=lambda flow, question: False)
    torn = write_run(tmp_path, "Ds", asked, rule=lambda flow, question: True, answered=1)
    with (torn / "samples.jsonl").open("a") as log:
        log.write('{"doc_id": "gsm8k-1", "tar')  # a kill in the middle of a line
    report = _made([whole, torn], tmp_path / "out", draws=True)
    assert any("Ds on gsm8k (lab): 1 of 6 questions have a verdict" in note for note in report.notes)
    rows = {shown(row[1]): shown(row[2]) for row in _table(report, "paths").rows}
    assert rows["Ds"].startswith("100.0 [20.7, 100.0] n=1")
    assert "1 of 6 questions" in rows["Ds"]
    (row,) = _table(report, "table-4-strategies").rows
    assert shown(row[2]) == "-"
    assert "1 of 2 paths" in shown(row[3])


def test_a_mean_over_sets_needs_the_same_paths_on_each(tmp_path: Path) -> None:
    """Otherwise the baseline of one task would be another's models."""
    runs = [write_run(tmp_path, model, questions("gsm8k", 4)) for model in ("Qwen", "Ds")]
    runs.append(write_run(tmp_path, "Qwen", questions("ceval", 4)))
    rows = {shown(row[0]): row for row in _table(_made(runs, tmp_path / "out"), "table-4-strategies").rows}
    assert shown(rows["mean"][1]) != "-"
    assert [shown(entry) for entry in rows["mean"][2:]] == ["-", "-"]


def test_tables_without_a_number_are_left_out(tmp_path: Path) -> None:
    asked = questions("gsm8k", 4)
    runs = [write_run(tmp_path, "Qwen", asked), write_run(tmp_path, "Qwen -> Ds", asked, answered=2)]
    keys = _keys(_made(runs, tmp_path / "out"))
    assert not {"table-4-gains", "table-8-volatility", "table-9-accuracy", "table-10-seconds"} & set(keys)


def test_an_interrupted_sweep_says_what_was_not_run(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep", 3, limit=14)
    with (sweep / "index.jsonl").open("a") as log:
        log.write('{"path": "p05", "data')
    report = _made([sweep], tmp_path / "out", draws=True)
    assert "sweep sweep: 67 of its pairs of path and data set were not run" in report.notes
    assert {finding.key for finding in _only(report).findings} == {"si-order"}
    rows = {shown(row[0]): row for row in _table(report, "table-6-si-pi").rows}
    assert shown(rows["Qwen-Yi-Ds"][-1]) == "-"  # its third task is missing: no mean


def test_failed_paths_are_named_with_their_reason(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep", 2, limit=6)
    line = {"path": "p03", "dataset": "gsm8k", "run": None, "status": "failed", "error": "no memory for 'Yi'"}
    with (sweep / "index.jsonl").open("a") as log:
        log.write(json.dumps(line) + "\n")
    assert "Yi on gsm8k (lab) failed: no memory for 'Yi'" in _made([sweep], tmp_path / "out").notes


def test_settings_that_differ_part_the_report(tmp_path: Path) -> None:
    asked = questions("gsm8k", 3)
    runs = [write_run(tmp_path, flow, asked, max_tokens=cap) for cap in ("16", "64") for flow in ("Qwen", "Qwen -> Ds")]
    report = _made(runs, tmp_path / "out")
    assert [section.setup for section in report.sections] == ["max_tokens=16", "max_tokens=64"]
    assert all(len(section.evidence.wirings) == 2 for section in report.sections)
    assert (tmp_path / "out" / "tables" / "max_tokens=16-paths.csv").is_file()


def test_a_path_that_ran_twice_counts_once(tmp_path: Path) -> None:
    asked = questions("gsm8k", 3)
    report = _made([write_run(tmp_path, "Qwen", asked), write_run(tmp_path, "Qwen", asked)], tmp_path / "out")
    assert "Qwen on gsm8k (lab) was run more than once: the latest whole run counts" in report.notes
    assert len(_table(report, "paths").rows) == 1


def test_sweeps_and_runs_mix(tmp_path: Path, sweep: Path) -> None:
    run = write_run(tmp_path, "Qwen -> Qwen", questions("gsm8k", 6))
    report = _made([sweep, run], tmp_path / "out")
    rows = {shown(row[1]): row for row in _table(report, "paths").rows}
    assert len(rows) == 28
    assert shown(rows["Qwen -> Qwen"][3]) == "-"  # it was not asked C-Eval


def test_seconds_of_batches_are_not_latencies(tmp_path: Path) -> None:
    run = write_run(tmp_path, "Qwen", questions("gsm8k", 3), batch="auto")
    assert any("no seconds" in note for note in _made([run], tmp_path / "out").notes)


@pytest.mark.parametrize("file", ["index.jsonl", "latency.jsonl"])
def test_a_damaged_line_is_named(tmp_path: Path, sweep: Path, file: str) -> None:
    copy = shutil.copytree(sweep, tmp_path / "sweep")
    text = (copy / file).read_text()
    (copy / file).write_text('{"nothing": 1}\n' + text)
    with pytest.raises(DataError, match=rf"{file}:1: damaged line"):
        gather([str(copy)])


def test_a_folder_that_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is no run, no sweep and no folder of them: no run\.json or sweep\.json"):
        gather([str(tmp_path)])


def test_a_name_that_is_nowhere_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no run 'nothing' in 'runs', no sweep in 'sweeps'"):
        gather(["nothing"])


def test_names_and_their_beginnings_mean_runs_and_sweeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = write_run(tmp_path / "runs", "Qwen", questions("gsm8k", 3))
    sweep = write_sweep(tmp_path / "sweeps" / "20260103T000000Z-aa", 2, limit=2)
    assert [path.resolve() for path in locate(run.name[:12])] == [run]
    assert [path.resolve() for path in (*locate("20260103"), *locate("latest"))] == [sweep, sweep]
    with pytest.raises(UsageError, match="means 2 runs and sweeps"):
        locate("2026")


def test_a_folder_of_runs_means_all_that_are_in_it(tmp_path: Path) -> None:
    for flow in ("Qwen", "Qwen -> Ds"):
        write_run(tmp_path / "runs", flow, questions("gsm8k", 3))
    (tmp_path / "runs" / "notes").mkdir()
    evidence = gather([str(tmp_path / "runs")])
    assert [wiring.name for wiring in evidence.wirings] == ["Qwen", "Qwen -> Ds"]
    assert evidence.sources == ("runs",)


def test_a_sweep_is_no_run(sweep: Path) -> None:
    with pytest.raises(UsageError, match="is a sweep, not a run") as refused:
        find_run(str(sweep), Path("runs"))
    assert refused.value.help == f"`flowinfer runs --out {sweep / 'runs'}` lists its runs"


def test_runs_without_answers_are_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path, "Qwen", questions("gsm8k", 3), answered=0)
    with pytest.raises(UsageError, match="nothing has been answered in"):
        gather([str(run)])


@pytest.mark.parametrize("key", ["paths", "datasets"])
def test_a_damaged_sweep_is_refused(tmp_path: Path, sweep: Path, key: str) -> None:
    copy = shutil.copytree(sweep, tmp_path / "sweep")
    data = json.loads((copy / "sweep.json").read_text())
    (copy / "sweep.json").write_text(json.dumps(data | {key: [{}]}))
    with pytest.raises(DataError, match="damaged, it does not list its paths and data sets"):
        gather([str(copy)])
