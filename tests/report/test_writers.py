"""Pages, Markdown, CSV and LaTeX show texts as they are, and need nothing from outside."""

from __future__ import annotations

import base64
import csv
import errno
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from flowinfer.report.build import build
from flowinfer.report.gather import gather
from flowinfer.report.page.render import render
from flowinfer.report.table import Column, Number, Reached, Table, Text, quantity
from flowinfer.report.write import _latex, _put
from flowinfer.report.writers import data, latex, markdown
from tests.report.sweeps import TASKS, Spoken, questions, write_run

_HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)> \\input{x} $a$ | `b` [c](javascript:d) \ud800"
)


class _Page(HTMLParser):
    """Collects a page's tags, ids and addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "action", "data"):
                self.addresses.append(value or "")


def _read(path: Path) -> _Page:
    page = _Page()
    page.feed(path.read_text("utf-8"))
    return page


def test_the_page_needs_no_network(written: Path) -> None:
    page = _read(written / "report.html")
    assert page.addresses
    assert all(address.startswith("#") for address in page.addresses)
    text = (written / "report.html").read_text("utf-8")
    assert not re.findall(r"@import|url\((?!#)", text)
    assert "link" not in page.tags


def test_page_and_markdown_show_the_numbers_of_the_tables(written: Path) -> None:
    page, text = (written / "report.html").read_text("utf-8"), (written / "report.md").read_text("utf-8")
    (section,) = json.loads((written / "report.json").read_text("utf-8"))["sections"]
    for table in section["tables"].values():
        assert f"<h2>{table['title']}</h2>" in page
        assert f"## {table['title']}\n" in text
    shown = re.search(r'id="paths">.*?</section>', page, re.S)
    assert shown
    for row in section["tables"]["paths"]["rows"]:
        flow = row["path"].replace("&", "&amp;").replace(">", "&gt;")
        line = re.search(rf"<tr>(?:(?!</tr>).)*{re.escape(flow)}</span>.*?</tr>", shown[0], re.S)
        assert line
        shares = [f"{100 * row[f'{task} (lab)_accuracy']:.1f}" for task in TASKS]
        assert re.findall(r'<span class="value">([^<]*)</span>', line[0])[:3] == shares


def test_ids_are_unique_and_every_link_has_its_place(written: Path) -> None:
    page = _read(written / "report.html")
    assert len(page.ids) == len(set(page.ids))
    places = {address[1:] for address in page.addresses if not address.startswith("#diff/")}
    assert places <= set(page.ids)


def test_figures_are_saved_in_three_forms(written: Path) -> None:
    names = {path.name for path in (written / "figures").iterdir()}
    keys = [f"figure-{number}" for number in range(6, 16)] + ["figure-pareto", "figure-orders"]
    assert names == {f"{key}.{suffix}" for key in keys for suffix in ("svg", "png", "pdf")}


def test_texts_of_questions_and_models_stay_texts(tmp_path: Path) -> None:
    asked = questions("gsm8k", 4, text=_HOSTILE)
    spoken = Spoken(right=f"{_HOSTILE} yes", wrong=f"{_HOSTILE} no")
    runs = [write_run(tmp_path, flow, asked, spoken=spoken) for flow in ("Qwen", "Qwen -> Ds")]
    report = build(gather([str(run) for run in runs]))
    (tmp_path / "report.html").write_bytes(render(report, {}).encode("utf-8", "replace"))
    page = _read(tmp_path / "report.html")
    assert page.tags.count("script") == 2
    assert "img" not in page.tags
    text = (tmp_path / "report.html").read_text("utf-8")
    packed = re.search(r'id="texts">([^<]*)<', text)
    assert packed
    texts = json.loads(gzip.decompress(base64.b64decode(packed[1])))["texts"]
    assert f"{_HOSTILE} yes" in texts


def test_markdown_cells_hold_no_markup() -> None:
    assert markdown.escape("<b>|`x`*_[a](b)\n# y") == r"\<b\>\|\`x\`\*\_\[a\](b) \# y"
    assert markdown.code("(A | B) `c`") == "`` (A \\| B) `c` ``"


def test_latex_cells_hold_no_commands() -> None:
    assert latex.escape("\\x{a}_b $1 50% #2 & ~^<>|²") == (
        r"\textbackslash{}x\{a\}\_b \$1 50\% \#2 \& \textasciitilde{}\textasciicircum{}\textless{}\textgreater{}"
        r"\textbar{}\textsuperscript{2}"
    )


def test_no_latex_line_end_swallows_an_interval(written: Path) -> None:
    """`\\\\[60.4, 78.1]` would be read as the space behind the line."""
    for file in (written / "tables").glob("*.tex"):
        assert not re.search(r"\\\\\s*(?:\[(?!2pt\])|\*)", file.read_text("utf-8"))


def test_latex_tables_are_booktabs_with_as_many_cells_as_columns(written: Path) -> None:
    for file in (written / "tables").glob("*.tex"):
        text = file.read_text("utf-8")
        assert text.count(r"\toprule") == 1 + text.count(r"\endfirsthead") and text.count(r"\bottomrule") == 1
        columns = re.search(r"\\begin\{(?:tabular|longtable)\}\{([lr]+)\}", text)
        assert columns
        lines = (line.removesuffix("[2pt]") for line in text.split("\n"))
        body = [line for line in lines if line.endswith(r" \\") and not line.startswith(r"\caption")]
        assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in body} == {len(columns[1])}


def test_latex_tables_hold_no_commands_for_the_terminal(written: Path) -> None:
    """They are wider than a page, and name folders of one machine."""
    assert "flowinfer show" in (written / "tables" / "changes.csv").read_text("utf-8")
    assert "flowinfer show" not in (written / "tables" / "changes.tex").read_text("utf-8")


def test_latex_labels_are_unique_and_stand_on_the_first_page_of_a_table_only(tmp_path: Path) -> None:
    asked = questions("gsm8k", 3)
    runs = [write_run(tmp_path, flow, asked, max_tokens=cap) for cap in ("16", "64") for flow in ("Qwen", "Qwen -> Ds")]
    made = _latex(build(gather([str(run) for run in runs])), {})
    texts = [text.decode() for name, text in made.items() if name.startswith("tables/")]
    labels = [label for text in texts for label in re.findall(r"\\label\{([^}]*)\}", text)]
    assert len(labels) == len(set(labels)) == len(texts)
    assert all(text.count(r"\endfirsthead") == text.count(r"\endhead") for text in texts)


def test_a_document_with_chinese_names_says_what_sets_it() -> None:
    assert r"\usepackage[T1]{fontenc}" in latex.document("27 paths", {"t.tex": "Qwen"}, ())
    assert r"\usepackage[scheme=plain]{ctex}" in latex.document("27 paths", {"t.tex": "并行"}, ())


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not here")
def test_latex_compiles_without_complaint(written: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(written, tmp_path / "report")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "report.tex"]
    for _ in range(3):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
        assert done.returncode == 0, done.stdout[-2000:]
    assert not re.search(r"multiply defined|Overfull|undefined", done.stdout)


def test_csv_holds_raw_values_and_no_formulas() -> None:
    table = Table(
        "t",
        "T",
        "",
        (Column("path", "path"), Column("x", "x"), Column("p", "p")),
        ((Text("=1+1"), Reached(0.5, 0.1, 0.9, 4), Number(None, "p")),),
    )
    (row,) = csv.DictReader(data.table_csv(table).split("\n"))
    assert row == {
        "path": "'=1+1",
        "x_accuracy": "0.5",
        "x_low": "0.1",
        "x_high": "0.9",
        "x_n": "4",
        "x_seconds": "",
        "p": "",
    }


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.756, "percent", "75.6"),
        (-0.05, "points", "-5.0"),
        (0.0004, "p", "<0.001"),
        (0.04, "p", "0.040"),
        (None, "seconds", "-"),
        (0.03, "ms", "0.03"),
        (12.3456, "seconds", "12.35"),
    ],
)
def test_numbers_are_shown_with_their_digits(value: float | None, unit: str, text: str) -> None:
    assert quantity(value, unit) == text  # type: ignore[arg-type]  # a literal of the table


def test_reporting_never_imports_tensors(sweep: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom flowinfer.cli import run\n"
        f"try:\n    run(['report', {str(sweep)!r}, '-o', {str(tmp_path)!r}, '--format', 'json'])\n"
        "except SystemExit as end:\n    assert end.code == 0, end.code\n"
        "import flowinfer.report.figures.draw, flowinfer.report.page.render, flowinfer.report.write\n"
        "assert not {'torch', 'transformers', 'datasets', 'tokenizers', 'sympy'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "docx"], "--format 'docx': expected one of html, md, csv, json, latex"),
        (["--against", "mine"], "--against 'mine': expected 'paper'"),
    ],
)
def test_wrong_options_are_refused(sweep: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    command = [sys.executable, "-m", "flowinfer", "report", str(sweep), "-o", str(tmp_path), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, message in done.stderr, list(tmp_path.iterdir())) == (2, True, [])


def test_only_the_forms_asked_for_are_written(sweep: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flowinfer", "report", str(sweep), "-o", str(tmp_path), "--format", "csv,json"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    assert {Path(file).suffix for file in said["files"]} == {".csv", ".json"}
    assert {path.name for path in tmp_path.iterdir()} == {"tables", "report.json"}
    assert len(said["findings"]) == 6


@pytest.mark.parametrize(
    "text", ["=1+1", "\t=1+1", "\r=1+1", "\n@SUM(A1)", " +1-1", "\ttext", "\u3000=1+1", "\uff1d1+1"]
)
def test_a_text_that_a_spreadsheet_would_reckon_is_quoted(text: str) -> None:
    assert data._safe(text) == "'" + text


@pytest.mark.parametrize("text", ["Qwen -> Ds", "-", "a\tb", " words"])
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert data._safe(text) == text


def _full(*arguments: object) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_report_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk the old report stays."""
    (tmp_path / "report.json").write_text("old")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(os, "open", _full)
        _put(tmp_path / "report.json", b"new")
    assert (tmp_path / "report.json").read_text() == "old"
    assert _put(tmp_path / "other.json", b"new").read_bytes() == b"new"
    assert sorted(path.name for path in tmp_path.glob("other*")) == ["other.json"]
