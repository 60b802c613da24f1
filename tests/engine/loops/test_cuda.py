"""On a CUDA device the packed engine writes what the reference engine writes there, in float32; `make test-gpu`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flowinfer.language.check import check
from flowinfer.results import Record
from flowinfer.runs.experiment import Request, evaluate
from flowinfer.tasks.base import load_questions
from tests.engine.test_cuda import ONE, TWO, texts, zoo

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

S2P = "Yi -> (Qwen | Ds)"


def records(flow: str, zoo: str, engine: str, batch: int | str, **settings: str) -> list[Record]:
    found: list[Record] = []
    checked = check(flow, zoo=zoo, overrides={"max_tokens": "80", **settings})
    request = Request(out=None, use_cache=False, engine=engine, batch=batch)  # type: ignore[arg-type]  # both are right
    evaluate(checked, load_questions("gsm8k", use_items=True, limit=12), request, on_record=found.append)
    return sorted(found, key=lambda record: int(record.question.id.rpartition("-")[2]))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": "0.8"},
        {"temperature": "0.8", "top_p": "0.9"},
        {"fuse": "geometric"},
        {"fuse": "unite"},
        {"fuse": "sharpen"},
        {"context": "canonical"},
        {"speculate": "upstream"},
        {"speculate": "upstream", "context": "canonical"},
        {"speculate": "off"},
    ],
    ids=str,
)
def test_packed_steps_write_the_reference_engines_texts(settings: dict[str, str], tmp_path: Path) -> None:
    here = zoo(tmp_path / "one", ONE)
    expected = texts(records(S2P, here, "reference", "auto", **settings))
    for batch in (1, 5, "auto"):
        assert texts(records(S2P, here, "auto", batch, **settings)) == expected


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
@pytest.mark.parametrize("speculate", ["off", "upstream"])
def test_packed_sessions_on_two_devices_write_the_same(speculate: str, tmp_path: Path) -> None:
    expected = texts(records(S2P, zoo(tmp_path / "one", ONE), "reference", "auto"))
    assert texts(records(S2P, zoo(tmp_path / "two", TWO), "auto", 4, speculate=speculate)) == expected


def test_rows_that_begin_alike_are_read_once(tmp_path: Path) -> None:
    """A batch larger than the questions, prompts with one template: pages are shared and texts stay."""
    here = zoo(tmp_path / "one", ONE)
    flow = "(Qwen | Ds | Yi)"
    assert texts(records(flow, here, "auto", 64)) == texts(records(flow, here, "reference", 1))
