"""A small report, word for word: every kind of table, cell and finding, as each writer shows it.

`python -m tests.report.test_golden` writes the files again; look at what changed before you commit them.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from flowinfer.report.build import build
from flowinfer.report.gather import gather
from flowinfer.report.page.render import render
from flowinfer.report.writers import data, latex, markdown
from tests.report.sweeps import questions, write_run

GOLDEN = Path(__file__).parent / "golden"
FILES = ("report.md", "tables.csv", "tables.tex", "tables.html")
FLOWS = (
    *("Qwen", "Yi", "Ds", "Qwen -> Yi -> Ds", "Ds -> Yi -> Qwen", "(Qwen | Yi | Ds)", "(Ds | Yi | Qwen)"),
    *("Qwen -> (Yi | Ds)", "(Ds | Yi) -> Qwen", "(Qwen:0.7 | Ds:0.3)"),
)


def shown(work: Path) -> Mapping[str, str]:
    """Return what the writers make of a few runs: two tasks, ten flows, one run interrupted, one not timed."""
    runs = []
    for flow in FLOWS:
        runs += [
            write_run(work, flow, questions("gsm8k", 8), batch="auto" if flow == "(Qwen | Yi | Ds)" else "1"),
            write_run(work, flow, questions("ceval", 6), answered=2 if flow == "(Ds | Yi) -> Qwen" else None),
        ]
    report = build(gather([str(run) for run in runs]), "paper")
    tables = [table for section in report.sections for table in section.tables]
    page = render(report, {})
    made = {
        "report.md": markdown.write(report, {}),
        "tables.csv": "\n".join(f"{table.key}\n{data.table_csv(table)}" for table in tables),
        "tables.tex": "\n".join(latex.table_tex(table, table.key) for table in tables),
        "tables.html": page[page.index("<header>") : page.index('<section id="diff">')],
    }
    return {name: _settled(text, work) for name, text in made.items()}


def _settled(text: str, work: Path) -> str:
    """Return a text without names of folders, which hold a hash of the plan, and without last digits of raw numbers."""
    text = re.sub(rf"({re.escape(str(work))}/)?\d{{8}}T\d{{6}}Z-flow-[0-9a-f]{{8}}(-\d+)?", "RUN", text)
    return re.sub(r"\d\.\d{9,}(e-\d+)?", lambda found: f"{float(found[0]):.8g}", text)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    return shown(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("name", FILES)
def test_a_report_is_shown_as_it_was(made: Mapping[str, str], name: str) -> None:
    assert made[name] == (GOLDEN / name).read_text("utf-8")


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, text in shown(Path(folder)).items():
            (GOLDEN / name).write_text(text, "utf-8")
