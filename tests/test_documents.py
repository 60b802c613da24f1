"""Documents that can be checked are checked."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator

import pytest

from tests.conftest import ROOT

LAWS = [line for line in (ROOT / "docs" / "laws.md").read_text("utf-8").split("\n") if re.match(r"\| [TFCOSW]\d", line)]


@pytest.mark.parametrize("line", LAWS, ids=lambda line: line.split("|")[1].strip())
def test_every_law_is_held_by_tests_that_exist(line: str) -> None:
    _, _, _, file, names, _ = line.split("|")
    text = (ROOT / "tests" / file.strip(" `")).read_text("utf-8")
    assert all(f"def {name.strip(' `')}(" in text for name in names.split(","))


def test_the_table_of_laws_is_whole() -> None:
    wanted = [*(f"T{k}" for k in range(1, 10)), *(f"F{k}" for k in range(1, 14))]
    wanted += [*(f"C{k}" for k in range(1, 10)), *(f"O{k}" for k in range(1, 7)), *(f"S{k}" for k in range(1, 7))]
    wanted += [f"W{k}" for k in range(1, 11)]
    assert [line.split("|")[1].strip() for line in LAWS] == wanted


def test_the_table_of_tokenizers_is_what_its_script_makes_of_the_replicas() -> None:
    """Rows of real files need them at hand; `python benchmarks/tokenizer_table.py FOLDER...` makes all."""
    found = importlib.util.spec_from_file_location("tokenizer_table", ROOT / "benchmarks" / "tokenizer_table.py")
    assert found and found.loader
    script = importlib.util.module_from_spec(found)
    found.loader.exec_module(script)
    text = (ROOT / "docs" / "tokenizers.md").read_text("utf-8")
    assert all(f"| {' | '.join(row)} |" in text for row in script.from_replicas())


_SOURCE = ROOT / "src" / "flowinfer"
_ROAD = (ROOT / "docs" / "road.md").read_text("utf-8")


def _named_on_the_road() -> Iterator[tuple[str, str]]:
    """Yield every name with the file before it; a file alone has an empty name."""
    file = ""
    for said in re.findall(r"`([^`\n]+)`", _ROAD):
        if re.fullmatch(r"[\w/]+\.(py|lark)", said):
            file = said
            yield file, ""
        elif re.fullmatch(r"[A-Za-z_][\w.]*", said):
            yield file, said


def _defined(file: str) -> set[str]:
    """Return the classes, functions and `Class.method`s of a file."""
    found = set()
    for node in ast.parse((_SOURCE / file).read_text("utf-8")).body:
        if isinstance(node, ast.ClassDef):
            inner = {method.name for method in node.body if isinstance(method, ast.FunctionDef)}
            found |= {node.name} | inner | {f"{node.name}.{name}" for name in inner}
        elif isinstance(node, ast.FunctionDef):
            found.add(node.name)
    return found


@pytest.mark.parametrize(("file", "name"), [*dict.fromkeys(_named_on_the_road())])
def test_what_the_road_names_is_there(file: str, name: str) -> None:
    if not name:
        assert (_SOURCE / file).is_file() or (ROOT / file).is_file()
    elif name.endswith((".flow", ".json", ".jsonl")):
        assert name in (_SOURCE / file).read_text("utf-8")
    else:
        assert name in _defined(file), f"docs/road.md says that {file} has {name}"
