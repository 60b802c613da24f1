"""The table of docs/scoring.md: what it says of each output is what the judge says."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowinfer.tasks.answers import judge

PAGE = Path(__file__).resolve().parents[2] / "docs" / "scoring.md"
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" |")]
    for line in PAGE.read_text("utf-8").split("\n")
    if line.startswith(("| gsm8k |", "| ceval |", "| mathematics |"))
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[2])
def test_an_output_of_the_table_is_judged_as_it_says(row: list[str]) -> None:
    task, question, output, reference, verdict = row
    score = judge(task, output.strip("`"), reference.strip("`"), question=question or None)
    said = score.status if score.status != "ok" else "right" if score.correct else "wrong"
    assert said == verdict, score
