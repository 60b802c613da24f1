"""A model over several devices gives the logits that it gives on one. `cpu` and `cpu:0` stand in for two devices."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from flowinfer.backends.layout import lay_out, layers_of
from flowinfer.backends.session import BatchSession
from flowinfer.errors import LoadError
from flowinfer.spec import Share
from tests.backends import tiny

TWO = ("cpu", "cpu:0")


def shares(devices: Sequence[str], *layers: int) -> list[Share]:
    """Return shares of so many layers each."""
    return [Share(device, count, 1 / len(devices)) for device, count in zip(devices, layers, strict=True)]


def hooked(model: Any) -> list[int]:
    """Return the layers before which something is moved."""
    return [index for index, layer in enumerate(layers_of(model)) if layer._forward_pre_hooks]


def walk(model: Any) -> list[Tensor]:
    """Return logits of rows that are added, fed, taken back and removed."""
    session = BatchSession(model)
    one, other, third = session.add([[3, 5, 8, 9], [3], [4, 6]])
    seen = [session.logits([one, other, third])]
    for step in range(12):  # with columns that die, so that caches are gathered
        session.feed({one: [7, 11], other: [2], third: []} if step % 2 else {one: [1]})
        session.rollback(one, 1)
        session.feed({one: [6]})
        seen.append(session.logits([one, other]))
    session.remove([other])
    session.feed({one: [13, 2]})
    return [*seen, session.logits([one, third])]


@pytest.mark.parametrize("kind", ["qwen2", "llama", "gpt2"])
def test_layers_on_several_devices_give_the_logits_of_one(kind: str) -> None:
    model = tiny.network(kind, 300)
    before = walk(model)
    apart = copy.deepcopy(model)
    lay_out(apart, shares(TWO, 1, len(layers_of(model)) - 1))
    assert hooked(apart) == list(range(1, len(layers_of(model))))
    assert all(torch.equal(one, other) for one, other in zip(walk(apart), before, strict=True))


def test_layers_that_the_plan_did_not_know_lie_evenly() -> None:
    model = tiny.network("qwen2", 300)
    lay_out(model, shares(TWO, 0, 0))
    assert hooked(model) == list(range(len(layers_of(model)) // 2, len(layers_of(model))))


@pytest.mark.parametrize("layers", [(1, 4), (0, 0, 0, 0, 0, 0, 0)])
def test_layers_that_cannot_be_split_so_are_refused(layers: tuple[int, ...]) -> None:
    with pytest.raises(LoadError, match=r"its \d+ layers cannot be split over cpu, cpu"):
        lay_out(tiny.network("qwen2", 300), shares(["cpu"] * len(layers), *layers))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("kind", ["qwen2", "llama", "gpt2"])
def test_two_gpus_give_the_float32_logits_of_one(kind: str) -> None:
    model = tiny.network(kind, 300)
    apart = copy.deepcopy(model)
    lay_out(apart, shares(["cuda:0", "cuda:1"], 1, len(layers_of(model)) - 1))
    assert {parameter.device.index for parameter in apart.parameters()} == {0, 1}
    for one, other in zip(walk(apart), walk(model.to("cuda:0")), strict=True):
        assert one.device == other.device
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
