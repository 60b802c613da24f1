"""What comparisons, recommendations and reports say of flows whose steps may be skipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowinfer.report.build import build
from flowinfer.report.choice import choose
from flowinfer.report.figures.draw import figures
from flowinfer.report.gather import gather
from flowinfer.report.table import shown
from flowinfer.report.versus import versus
from flowinfer.results import Record, Taken
from flowinfer.runs.store import Run, read_records
from tests.command import flowinfer
from tests.report.sweeps import questions, write_run

CASCADE = "(Qwen / (Qwen | Yi))[accept=confidence, at=0.9]"


def skipping(record: Record, index: int) -> Record:
    """Return a cascade's record in which every fourth question needed the second member."""
    taken = int(index % 4 == 0)
    how = Taken(
        selection="d1",
        title="(Qwen / (Qwen | Yi))",
        rule="confidence >= 0.9",
        values=(0.5, None)[: taken + 1],
        taken=taken,
        most=2,
    )
    steps = record.trace.steps[: taken + 1]
    return record.model_copy(update={"trace": record.trace.model_copy(update={"steps": steps, "selections": (how,)})})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Write runs of a model and of a cascade over 20 questions."""
    root, asked = tmp_path_factory.mktemp("runs"), questions("ceval", 20)
    found = [write_run(root, flow, asked) for flow in ("Qwen", CASCADE)]
    cascade = Run(found[1])
    cascade.rewrite([skipping(record, index) for index, record in enumerate(read_records(found[1]))])
    cascade.close()
    return found


def test_a_comparison_tells_model_calls_and_who_was_taken(runs: list[Path]) -> None:
    found = versus(*runs)
    assert (found.first.calls, found.first.taken) == (1, "")
    assert (found.second.calls, found.second.taken) == (1.5, "1: 75 %, 2: 25 %")
    told = flowinfer("compare", *map(str, runs), cwd=runs[0].parent).stdout
    assert "A  1.00 model calls a question\n" in told
    assert "B  1.50 model calls a question, taken 1: 75 %, 2: 25 %\n" in told


def test_a_recommendation_tells_what_questions_take(runs: list[Path]) -> None:
    candidates = {one.wiring.flow: one for one in choose(gather([str(runs[0].parent)])).candidates}
    cascade = candidates[CASCADE]
    assert (cascade.calls, cascade.tokens, cascade.taken) == (1.5, 9 * 1.25, "1: 75 %, 2: 25 %")
    assert (candidates["Qwen"].calls, candidates["Qwen"].taken) == (1, "")
    told = flowinfer("recommend", str(runs[0].parent), "--all", cwd=runs[0].parent).stdout
    assert "calls" in told and "75 %" in told


def test_a_report_has_a_table_of_it_and_the_front_by_tokens(runs: list[Path]) -> None:
    evidence = gather([str(runs[0].parent)])
    (section,) = build(evidence).sections
    table = next(table for table in section.tables if table.key == "control")
    assert [[shown(entry) for entry in row][-3:] for row in table.rows] == [
        ["1.00", "9.00", "-"],
        ["1.50", "11.25", "1: 75 %, 2: 25 %"],
    ]
    assert "figure-pareto-tokens" in [drawing.key for drawing in figures(evidence)]


def test_a_report_of_flows_that_skip_nothing_has_neither(runs: list[Path]) -> None:
    evidence = gather([str(runs[0])])
    (section,) = build(evidence).sections
    assert "control" not in [table.key for table in section.tables]
    assert "figure-pareto-tokens" not in [drawing.key for drawing in figures(evidence)]
