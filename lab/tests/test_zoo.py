"""The shipped models, held to their cards: recorded answers exactly, sizes, architectures, working together."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowinfer.engine.models import ModelPool
from flowinfer.language.check import check
from flowinfer.results import Record
from flowinfer.runs.experiment import Request, evaluate
from flowinfer.zoo import load_zoo
from lab import networks
from lab.items import KINDS, Kind
from lab.measure import dataset
from lab.tests.record import RECORDED, answers

FOLDERS = {name: Path(model.ref) for name, model in load_zoo("lab").models.items()}


@pytest.fixture(scope="module")
def models() -> Iterator[ModelPool]:
    pool = ModelPool()
    yield pool
    pool.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", networks.NAMES)
def test_shipped_weights_reproduce_their_recorded_answers(name: str, kind: Kind, models: ModelPool) -> None:
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))[f"{name}/{kind}"]
    found = answers(name, kind, models)
    assert [[one.trace.steps[-1].text, bool(one.score and one.score.correct)] for one in found] == recorded


def test_the_zoo_is_small_enough_to_ship() -> None:
    sizes = {name: sum(file.stat().st_size for file in folder.iterdir()) for name, folder in FOLDERS.items()}
    assert all((folder / "model.safetensors").stat().st_size <= 8_000_000 for folder in FOLDERS.values())
    assert sum(sizes.values()) <= 25_000_000


@pytest.mark.parametrize(
    ("name", "architecture"), [("Qwen", "Qwen2ForCausalLM"), ("Ds", "Qwen3ForCausalLM"), ("Yi", "LlamaForCausalLM")]
)
def test_models_are_of_real_architectures_in_half_precision(name: str, architecture: str) -> None:
    config = json.loads((FOLDERS[name] / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == [architecture]
    assert config["dtype"] == "float16"
    recipe = json.loads((FOLDERS[name] / "recipe.json").read_text(encoding="utf-8"))
    assert 2_000_000 <= recipe["parameters"] <= 6_000_000


@pytest.mark.parametrize("name", networks.NAMES)
def test_cards_say_what_the_recipe_and_the_measurement_say(name: str) -> None:
    card = (FOLDERS[name] / "README.md").read_text(encoding="utf-8")
    recipe = json.loads((FOLDERS[name] / "recipe.json").read_text(encoding="utf-8"))
    assert f"{recipe['parameters']:,} parameters" in card
    assert f"{recipe['outcome']['steps']:,} steps" in card
    assert card.count("| SI `") == card.count("| PI `") == card.count("| S2P `") == card.count("| P2S `") == 6


def _records(flow: str, models: ModelPool, num: int = 12) -> list[Record]:
    records: list[Record] = []
    request = Request(out=None, use_cache=False)
    evaluate(
        check(flow, zoo="lab", overrides={"max_tokens": "160"}),
        dataset("gsm8k", "test", num, 42),
        request,
        on_record=records.append,
        models=models,
    )
    return records


def test_ds_thinks_alone_and_not_in_a_group(models: ModelPool) -> None:
    assert all("</think>" in record.trace.steps[0].text for record in _records("Ds", models))
    assert all("think>" not in record.trace.steps[0].text for record in _records("(Qwen | Ds)", models))


def test_a_reviewer_copies_most_of_a_right_draft(models: ModelPool) -> None:
    """What speculation by the earlier answer lives on."""
    records = _records("Qwen -> Yi", models)
    right = [record.trace.steps for record in records if record.score and record.score.correct]
    copied = [steps[0].passed_on == steps[1].text for steps in right]
    assert sum(copied) >= 0.8 * len(copied) > 0
