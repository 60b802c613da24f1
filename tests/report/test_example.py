"""The example in docs: small, from no machine in particular, and what a fresh run gives."""

from __future__ import annotations

import base64
import csv
import gzip
import re
import socket
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.report import example

SHOWN = ROOT / example.SHOWN
FILES = sorted(path for path in SHOWN.rglob("*") if path.is_file())


def _text(path: Path) -> str:
    """Return what a file says, a page's texts unpacked."""

    def unpacked(found: re.Match[str]) -> str:
        return gzip.decompress(base64.b64decode(found[1])).decode()

    return re.sub(r'(?<=id="texts">)([^<]*)', unpacked, path.read_text("utf-8"))


def _accuracies(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as table:
        return [
            {key: value for key, value in row.items() if not key.endswith("_seconds")} for row in csv.DictReader(table)
        ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_example_names_no_machine_folder_or_time(path: Path) -> None:
    text = _text(path)
    assert not re.search(r"(?<![\w.])/(home|root|tmp|work|mnt|Users|var)/|\d{8}T\d{6}Z|[A-Z]:\\\\", text)
    assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", text)


def test_the_example_is_small_and_whole() -> None:
    assert sum(path.stat().st_size for path in FILES) < 1_500_000
    linked = re.findall(r"\]\(([^)#]+)\)", (SHOWN / "report.md").read_text("utf-8"))
    assert linked and all((SHOWN / name).is_file() for name in linked)


def test_documents_link_the_example() -> None:
    for document, link in (("README.md", "docs/example/report.md"), ("docs/experiments.md", "example/report.md")):
        assert f"({link})" in (ROOT / document).read_text("utf-8")


@pytest.mark.slow
def test_a_fresh_run_gives_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWINFER_CACHE", str(tmp_path / "cache"))
    example.show(example.run(tmp_path / "work", example.NUM, 0), tmp_path / "shown")
    assert _accuracies(tmp_path / "shown/tables/paths.csv") == _accuracies(SHOWN / "tables/paths.csv")
