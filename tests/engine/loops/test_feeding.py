"""What a step does with rows' states: the kernels against tensor operations, in Triton's interpreter or on a GPU."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine.interpreting import CUDA

# isort: split
from flowinfer.engine.loops import feeding, triton_feeding
from flowinfer.engine.loops.choosing import Choice
from flowinfer.engine.loops.outcome import Ring
from flowinfer.engine.loops.states import HeadStates, RowStates
from flowinfer.engine.loops.tables import IdTables

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")  # Triton's interpreter
DEVICE = torch.device("cuda" if CUDA else "cpu")
HEADS, ROWS, SLOTS = 2, 9, 30


class Loop:
    """Random states of a loop's rows; some have ended, some wait, some are near their end."""

    def __init__(self, seed: int) -> None:
        self._random = torch.Generator().manual_seed(seed)
        counts = self._whole(0, 4, HEADS, SLOTS)
        firsts = counts.cumsum(1) - counts
        lists = [self._whole(0, 1000, int(own.sum()) + 8) for own in counts]
        self.tables = IdTables(firsts, counts, lists, [0] * HEADS, [4] * HEADS)
        self.held, self.states = HeadStates(HEADS, ROWS, torch.device("cpu")), RowStates(ROWS, torch.device("cpu"))
        self.held.length.copy_(self._whole(0, 60, HEADS, ROWS))
        self.held.first.copy_(self._whole(0, 8, HEADS, ROWS))
        self.held.waiting.copy_(self._whole(-3, 4, HEADS, ROWS).clamp_min(0))
        self.states.live.copy_(self._whole(0, 4, ROWS) > 0)
        self.states.utf8.copy_(self._whole(0, 8, ROWS))
        self.states.count.copy_(self._whole(0, 20, ROWS))
        self.states.limit.copy_(self._whole(5, 25, ROWS))
        self.ring, self.outbox = Ring(HEADS, ROWS, torch.device("cpu")), torch.zeros(ROWS, dtype=torch.int64)
        self.next_utf8 = self._whole(-1, 8, 8, SLOTS).to(torch.int8)
        self.ends = feeding.Ends(SLOTS - 1, torch.full((HEADS, 1), 60))

    def _whole(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=self._random)

    def choice(self, rows: int) -> Choice:
        """Return slots for the first rows, every third the end."""
        slots = torch.where(self._whole(0, 3, rows) == 0, SLOTS - 1, self._whole(0, SLOTS, rows))
        leads = torch.rand(rows, generator=self._random)
        return Choice(slots, leads, leads, self._whole(0, 99, HEADS, ROWS)[:, :rows], None)

    def moved(self) -> Any:  # a copy of itself
        """Return a copy on the device."""
        other = deepcopy(self)
        for held in (other.held, other.states, other.ring):
            for name, value in vars(held).items():
                if isinstance(value, Tensor):
                    setattr(held, name, value.to(DEVICE))
        other.tables, other.outbox, other.next_utf8 = (
            self.tables.to(DEVICE),
            self.outbox.to(DEVICE),
            self.next_utf8.to(DEVICE),
        )
        other.ends = replace(self.ends, max_positions=self.ends.max_positions.to(DEVICE))
        return other

    def tensors(self) -> list[Tensor]:
        """Return all that a step changes, on the host."""
        kept = [*self.held.tensors, *self.states.tensors, *self.ring.tensors, self.outbox]
        return [own.cpu() for own in kept]


def on_device(choice: Choice) -> Choice:
    slots, leads, favourites = (own.to(DEVICE) for own in (choice.slots, choice.leads, choice.favourites))
    return Choice(slots, leads, leads, favourites, None)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("rows", "tile"), [(1, 4), (5, 4), (8, 16), (9, 40)])
def test_kernels_feed_and_advance_as_tensor_operations_do(rows: int, tile: int, seed: int) -> None:
    loop = Loop(seed)
    other = loop.moved()
    for head in range(HEADS):
        expected = feeding.feed(loop.held, loop.tables, head, rows, tile)
        got = feeding.Fed(*triton_feeding.feed(other.held, other.tables.ids[head], head, rows, tile))
        for name in ("ids", "rows", "positions", "wanted", "is_fed"):
            assert getattr(got, name).tolist() == getattr(expected, name).tolist(), name
    feeding.advance(loop.held, rows, tile)
    triton_feeding.advance(other.held, rows, tile)
    assert all(map(torch.equal, loop.tensors(), other.tensors()))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("rows", [1, 5, 9])
def test_kernels_commit_as_tensor_operations_do(rows: int, seed: int) -> None:
    loop = Loop(seed)
    other = loop.moved()
    for _ in range(3):
        choice = loop.choice(rows)
        args = [
            (one.held, one.tables, one.states, one.next_utf8, one.ends, one.ring, one.outbox) for one in (loop, other)
        ]
        feeding.commit(choice, *args[0])
        triton_feeding.commit(on_device(choice), *args[1])
        for mine, theirs in zip(loop.tensors(), other.tensors(), strict=True):
            assert torch.equal(mine, theirs)
