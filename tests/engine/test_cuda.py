"""The same texts on CUDA devices as on the CPU, in float32; run with `make test-gpu`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from flowinfer.language.check import check
from flowinfer.results import Record
from flowinfer.runs.experiment import Request, evaluate
from flowinfer.tasks.base import load_questions
from flowinfer.zoo import load_zoo

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

FLOWS = ("Ds", "Yi -> (Qwen | Ds)", "(Qwen | Ds | Yi)", "(Qwen & Ds) -> Yi", "Qwen -> Yi -> Ds")
CPU: Mapping[str, str] = dict.fromkeys(("Qwen", "Ds", "Yi"), "cpu")
ONE: Mapping[str, str] = dict.fromkeys(CPU, "cuda:0")
TWO: Mapping[str, str] = {"Qwen": "cuda:0", "Ds": "cuda:1", "Yi": "cuda:0"}
THREE: Mapping[str, str] = {"Qwen": "cuda:2", "Ds": "cuda:1", "Yi": "cuda:0"}
FOUR: Mapping[str, str] = {"Qwen": "cuda:3", "Ds": "cuda:2", "Yi": "cuda:1"}
SEVERAL = [
    pytest.param(
        where,
        id=f"{count} devices",
        marks=pytest.mark.skipif(torch.cuda.device_count() < count, reason=f"fewer than {count} GPUs"),
    )
    for count, where in ((2, TWO), (3, THREE), (4, FOUR))
]
"""Placements over several devices, each skipped where there are fewer."""


def zoo(folder: Path, devices: Mapping[str, str], dtype: str = "float32") -> str:
    """Write a zoo of the lab's models on given devices."""
    folder.mkdir()
    models = load_zoo("lab").models
    tables = [
        f'[models.{name}]\nref = "{models[name].ref}"\ndevice = "{device}"\ndtype = "{dtype}"\n'
        for name, device in devices.items()
    ]
    (folder / "zoo.toml").write_text("\n".join(tables), encoding="utf-8")
    return str(folder / "zoo.toml")


def records(flow: str, zoo: str, **settings: str) -> list[Record]:
    found: list[Record] = []
    checked = check(flow, zoo=zoo, overrides={"max_tokens": "120", **settings})
    evaluate(
        checked,
        load_questions("gsm8k", use_items=True, limit=24),
        Request(out=None, use_cache=False),
        on_record=found.append,
    )
    return sorted(found, key=lambda record: int(record.question.id.rpartition("-")[2]))


def texts(found: list[Record]) -> list[list[str]]:
    return [[step.text for step in record.trace.steps] for record in found]


@pytest.mark.parametrize("flow", FLOWS)
def test_one_device_writes_what_the_cpu_writes(flow: str, tmp_path: Path) -> None:
    assert texts(records(flow, zoo(tmp_path / "one", ONE))) == texts(records(flow, zoo(tmp_path / "cpu", CPU)))


@pytest.mark.parametrize("topk", ["dense", "certified", "auto"])
@pytest.mark.parametrize("where", SEVERAL)
def test_heads_on_several_devices_write_what_one_device_writes(
    topk: str, where: Mapping[str, str], tmp_path: Path
) -> None:
    flow = "(Qwen | Ds | Yi)"
    several = records(flow, zoo(tmp_path / "several", where), topk=topk)
    assert texts(several) == texts(records(flow, zoo(tmp_path / "one", ONE)))
    assert all(head.forward_seconds > 0 for record in several for head in record.trace.steps[0].heads)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
@pytest.mark.parametrize("flow", ["Ds -> Yi", "(Qwen & Ds) -> Yi"])
def test_steps_on_two_devices_write_what_one_device_writes(flow: str, tmp_path: Path) -> None:
    assert texts(records(flow, zoo(tmp_path / "two", TWO))) == texts(records(flow, zoo(tmp_path / "one", ONE)))


def test_half_precision_still_answers(tmp_path: Path) -> None:
    found = records("Yi -> (Qwen | Ds)", zoo(tmp_path / "half", ONE, "float16"))
    assert sum(bool(record.score and record.score.correct) for record in found) >= 12
