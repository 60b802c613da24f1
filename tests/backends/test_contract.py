"""The contract of a backend: the two of docs/backends.md take part in flows, and nothing else is asked of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import flowinfer
from flowinfer.backends.base import Session, TextModel, TokenModel, TransformersBacked, lacks
from flowinfer.errors import LoadError
from flowinfer.profiling.run import Request, built_in_questions, profile
from flowinfer.registry import backends
from tests.command import flowinfer as command

DOCUMENT = Path(__file__).parents[2] / "docs" / "backends.md"
BLOCKS = [block.split("```", 1)[0] for block in DOCUMENT.read_text(encoding="utf-8").split("```python\n")[1:]]
ENTRIES = "[flowinfer.backends]\npairs = mine:Pairs\nshout = mine:Shout\nstrict = mine:strict\nodd = mine:odd\n"
DEFAULTS = "defaults { max_tokens=8 }\n"
MODELS = 'model Mine = "./corpus.txt" { backend=pairs }\nmodel Loud = "any" { backend=shout }\n'
NAMED = {*lacks(object(), TransformersBacked), *lacks(object(), TextModel), "is_elsewhere", "bytes_beside"}
"""What tells the kinds of models apart may be asked of any, and the last two, which the contract lets a model say."""
beyond: list[str] = []
"""What was asked of a strict model that its protocol does not name."""


class Strict:
    """Has what a protocol names, from another object, and notes whatever else it is asked for."""

    def __init__(self, inner: Any, kind: type) -> None:
        self.__dict__ |= {name: getattr(inner, name) for name in lacks(object(), kind)}
        if kind is TokenModel:
            self.open = lambda: Strict(inner.open(), Session)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__") and name not in NAMED:
            beyond.append(name)
        raise AttributeError(name)


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install the document's code as a package, and go to a folder with its text."""
    extra = f"from {__name__} import Strict\nfrom flowinfer.backends.base import TokenModel\n"
    extra += "def strict(*given): return Strict(Pairs(*given), TokenModel)\ndef odd(*given): return object()\n"
    (tmp_path / "mine.py").write_text("\n\n".join([*BLOCKS, extra]))
    (tmp_path / "mine-1.0.dist-info").mkdir()
    (tmp_path / "mine-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (tmp_path / "mine-1.0.dist-info" / "entry_points.txt").write_text(ENTRIES)
    (tmp_path / "corpus.txt").write_text("the answer is 42. the sum is 36 and the answer is 12.")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    backends.cache_clear()
    beyond.clear()
    yield
    sys.modules.pop("mine", None)
    backends.cache_clear()


def test_the_examples_are_as_short_as_the_document_says() -> None:
    lines = [sum(1 for line in block.split("\n") if line.strip()) for block in BLOCKS]
    assert lines[0] <= 60 and lines[1] <= 12 and len(lines) == 2


@pytest.mark.parametrize(
    "flow", ["Mine", "(Mine | Qwen)", "Mine -> Yi", "(Mine | Qwen) -> Mine", "Loud -> (Mine & Loud)"]
)
def test_a_backend_of_another_package_takes_part_in_flows(flow: str) -> None:
    with flowinfer.parse(f"{DEFAULTS}{MODELS}{flow}", zoo="lab") as flowing:
        assert flowing.run("What is 12 * 3?").text.strip()


@pytest.mark.parametrize(
    "flow",
    [
        "(Mine | Qwen)[fuse=geometric, temperature=0.7]",
        "Yi -> (Mine | Qwen)[draft=alternate]",
        "Yi -> (Yi | Qwen)[draft=Mine]",
        "Mine[draft=ngram, context=canonical]",
        'Mine[stop_tokens="x", strict=true]',
    ],
)
def test_nothing_is_asked_of_a_model_but_what_the_contract_names(flow: str, tmp_path: Path) -> None:
    text = f'{DEFAULTS}model Mine = "./corpus.txt" {{ backend=strict }}\n{flow}'
    with flowinfer.parse(text, zoo="lab") as flowing:
        assert flowing.run("What is 12 * 3?").trace.error is None
        profiled = profile(flowing.flow, Request(built_in_questions(), batch=2, steps=2))
    assert profiled.profile.steps[-1].whole.seconds_per_step > 0
    (tmp_path / "mine.flow").write_text(text)
    assert command("check", "mine.flow", "--zoo", "lab", cwd=tmp_path).returncode == 0
    assert command("plan", "mine.flow", "--zoo", "lab", cwd=tmp_path).returncode == 0
    assert beyond == []


def test_verified_drafts_and_plain_decoding_write_the_same() -> None:
    texts = []
    for draft in ("off", "ngram"):
        with flowinfer.parse(f"{MODELS}Mine[draft={draft}, max_tokens=24]", zoo="lab") as flowing:
            texts.append(flowing.run("the answer is 42, the answer is 42").text)
    assert texts[0] == texts[1]


def test_a_file_that_is_not_there_is_told_by_check_and_by_loading() -> None:
    with flowinfer.parse('model M = "./gone.txt" { backend=pairs }\nM', zoo="lab") as flowing:
        assert [told.code for told in flowing.flow.warnings] == ["W0101"]
        with pytest.raises(LoadError, match=r"model 'M' cannot be loaded from '.*gone.txt': No such file or directory"):
            flowing.run("hello")


def test_what_lacks_a_part_of_the_contract_is_refused_by_its_backends_name() -> None:
    with flowinfer.parse('model M = "x" { backend=odd }\nM', zoo="lab") as flowing, pytest.raises(LoadError) as caught:
        flowing.run("hello")
    assert caught.value.message.startswith(
        "backend 'odd' (package 'mine') gives an object without name, device, max_po"
    )


def test_the_protocols_give_what_may_be_left_out() -> None:
    assert lacks(type("Own", (TextModel,), {"name": "x"})(), TextModel) == []
    assert lacks(type("Own", (TokenModel,), {})(), TokenModel) == ["name", "device", "max_positions", "is_exact"]
