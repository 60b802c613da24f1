"""Budgets: steps that run at once leave room for one another, and for models that are still to be loaded."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flowinfer.engine import budget as batching
from flowinfer.engine.budget import Budget, budgets
from flowinfer.planning.plan import Need, Placement, Plan
from tests.engine.plans import chain, member, mix

GB = 10**9
FREE = {torch.device("cuda:0"): 60 * GB, torch.device("cuda:1"): 20 * GB}


@pytest.fixture(autouse=True)
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "_free_bytes", FREE.__getitem__)


def plan(**devices: str) -> Plan:
    """Return A -> (B | C); keys and values of B are twice, of C thrice those of A."""
    made = chain((member("A"), ()), (mix("B", "C"), ("s1",)))
    needs = {name: Need(0, 10 * GB, size, 0, "test") for name, size in (("A", 100), ("B", 200), ("C", 300))}
    return replace(made, needs=needs, placements={k: Placement(v, "auto", "test") for k, v in devices.items()})


def free(found: dict[str, Budget], device: str) -> list[int]:
    return [found[step].free_bytes(torch.device(device)) for step in ("s1", "s2")]


def test_steps_share_a_gpu_by_bytes_per_token() -> None:
    placed = plan(A="cuda:0", B="cuda:0", C="cuda:0")
    assert free(budgets(placed, placed.steps, lambda name: True), "cuda:0") == [10 * GB, 50 * GB]


def test_weights_that_are_still_to_come_are_left_out() -> None:
    placed = plan(A="cuda:0", B="cuda:0", C="cuda:0")
    assert free(budgets(placed, placed.steps, lambda name: name == "A"), "cuda:0") == [40 * GB // 6, 40 * GB * 5 // 6]


def test_steps_on_several_gpus_share_where_they_meet() -> None:
    placed = plan(A="cuda:0", B="cuda:0", C="cuda:1")
    found = budgets(placed, placed.steps, lambda name: True)
    assert free(found, "cuda:0") == [20 * GB, 40 * GB]
    assert found["s2"].free_bytes(torch.device("cuda:1")) == 20 * GB


def test_a_budget_is_never_more_than_what_is_free_now(monkeypatch: pytest.MonkeyPatch) -> None:
    placed = plan(A="cuda:0", B="cuda:0", C="cuda:0")
    found = budgets(placed, placed.steps, lambda name: True)
    monkeypatch.setattr(batching, "_free_bytes", lambda device: 5 * GB)
    assert free(found, "cuda:0") == [5 * GB, 5 * GB]


def test_models_on_the_cpu_share_nothing() -> None:
    placed = plan(A="cpu", B="cpu", C="cpu")
    assert free(budgets(placed, placed.steps, lambda name: False), "cuda:1") == [20 * GB, 20 * GB]
