"""Make docs/example again: a small sweep over the lab zoo, and its report. `make report` runs this.

Questions, seed, greedy decoding and the names of folders are fixed, so that everything but seconds stays as it is.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import flowinfer
from flowinfer.report.build import build
from flowinfer.report.gather import gather
from flowinfer.report.write import write

WORK = Path("build/example")
"""Where the sweep is kept; not committed."""
SHOWN = Path("docs/example")
NUM = 20
NUM_TIMED = 2
FIGURES = ("figure-6", "figure-10", "figure-13", "figure-pareto", "figure-orders")
"""Kept as files; the page holds all."""
TABLES = re.compile(r"tables/(table-.*\.tex|paths\.csv)")


def run(work: Path, num: int, num_timed: int) -> Path:
    """Run the paper's 27 paths over three lab data sets; return the sweep's folder.

    Args:
        num: questions of each set.
        num_timed: of them, timed alone.
    """
    shutil.rmtree(work, ignore_errors=True)
    found = flowinfer.sweep(
        "Qwen,Yi,Ds",
        datasets="gsm8k,ceval,mathematics",
        sample=num,
        seed=42,
        zoo="lab",
        latency=num_timed,
        use_cache=False,
        out=work,
        quiet=False,
    )
    print(found)
    return _named(found.folder, work / "sweep")


def show(sweep: Path, into: Path) -> None:
    """Write the report of a sweep, and keep of it what is worth its bytes."""
    whole = sweep.parent / "report"
    write(build(gather([str(sweep)]), "paper"), whole, ("html", "md", "csv", "latex"))
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    names = ["report.html", *(name for key in FIGURES if (whole / (name := f"figures/{key}.svg")).exists())]
    names += [name for path in whole.glob("tables/*") if TABLES.fullmatch(name := f"tables/{path.name}")]
    for name in names:
        (into / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(whole / name, into / name)
    (into / "report.md").write_text(_without_lost_figures((whole / "report.md").read_text("utf-8")), "utf-8")


def _named(folder: Path, wanted: Path) -> Path:
    """Give a sweep and its runs names without a time in them."""
    folder.rename(wanted)
    rows = [json.loads(line) for line in (wanted / "index.jsonl").read_text("utf-8").splitlines()]
    for row in rows:
        name = f"runs/{row['path']}-{row['dataset']}"
        (wanted / row["run"]).rename(wanted / name)
        row["run"] = name
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in sorted(rows, key=lambda row: str(row["run"]))]
    (wanted / "index.jsonl").write_text("".join(lines), "utf-8")
    return wanted


def _without_lost_figures(text: str) -> str:
    kept = "|".join(re.escape(key) for key in FIGURES)
    return re.sub(rf"!\[[^\n]*\]\(figures/(?!(?:{kept})\.)[^\n]*\)\n\n[^\n]*\n*", "", text).rstrip("\n") + "\n"


if __name__ == "__main__":
    show(run(WORK, NUM, NUM_TIMED), SHOWN)
