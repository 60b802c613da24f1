"""Documents that can be checked are checked."""

from __future__ import annotations

import importlib.util
import re

import pytest

from tests.conftest import ROOT

LAWS = [line for line in (ROOT / "docs" / "laws.md").read_text("utf-8").split("\n") if re.match(r"\| [TFCOS]\d", line)]


@pytest.mark.parametrize("line", LAWS, ids=lambda line: line.split("|")[1].strip())
def test_every_law_is_held_by_tests_that_exist(line: str) -> None:
    _, _, _, file, names, _ = line.split("|")
    text = (ROOT / "tests" / file.strip(" `")).read_text("utf-8")
    assert all(f"def {name.strip(' `')}(" in text for name in names.split(","))


def test_the_table_of_laws_is_whole() -> None:
    wanted = [*(f"T{k}" for k in range(1, 10)), *(f"F{k}" for k in range(1, 13))]
    wanted += [*(f"C{k}" for k in range(1, 10)), *(f"O{k}" for k in range(1, 5)), *(f"S{k}" for k in range(1, 7))]
    assert [line.split("|")[1].strip() for line in LAWS] == wanted


def test_the_table_of_tokenizers_is_what_its_script_makes_of_the_replicas() -> None:
    """Rows of real files need them at hand; `python benchmarks/tokenizer_table.py FOLDER...` makes all."""
    found = importlib.util.spec_from_file_location("tokenizer_table", ROOT / "benchmarks" / "tokenizer_table.py")
    assert found and found.loader
    script = importlib.util.module_from_spec(found)
    found.loader.exec_module(script)
    text = (ROOT / "docs" / "tokenizers.md").read_text("utf-8")
    assert all(f"| {' | '.join(row)} |" in text for row in script.from_replicas())
