"""What the device has emitted in a few steps, and its way to the host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowinfer.engine.loops.choosing import Choice, Decision, Tops, pairs

RING = 8
"""Steps whose outcome the device keeps until the host reads them."""

MOST_TOPS = 20
"""Most probable slots of each row that are kept, where somebody wants to know."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of S steps of R rows, on the host once `is_there`."""

    slots: Tensor
    """(S, R); -1 where nothing was emitted."""
    leads: Tensor
    """(S, R)."""
    favourites: Tensor
    """(S, K, R)."""
    told: Tensor | None
    """(S, 1 + 2 K, R), if somebody listens: the slot's fused probability, then what each head gave to its favourite,
    then what each gave to the slot."""
    tops: Tops | None
    """(S, R, MOST_TOPS) of each, if somebody wants to know."""
    done: torch.cuda.Event | None
    """Happens when all is on the host; None = it is."""

    @property
    def is_there(self) -> bool:
        """Return whether the host can read it without waiting."""
        return self.done is None or bool(self.done.query())  # type: ignore[no-untyped-call]  # untyped in torch

    def wait(self) -> None:
        """Wait until it is there."""
        if self.done is not None:
            self.done.synchronize()

    def steps(self) -> Iterator[Sequence[Decision | None]]:
        """Yield what each step emitted, by index in the batch; None where a row was not ready."""
        heads, nothing = self.favourites.shape[1], [[0.0]] * self.slots.shape[1]
        every_lead, every_favourite = self.leads.tolist(), self.favourites.transpose(1, 2).tolist()  # S of R (of K)
        every_told = None if self.told is None else self.told.transpose(1, 2).tolist()  # S of R of 1 + 2 K
        for step, slots in enumerate(self.slots.tolist()):
            leads, favourites = every_lead[step], every_favourite[step]
            told = nothing if every_told is None else every_told[step]
            tops = self.tops and Tops(self.tops.slots[step], self.tops.values[step])
            of_rows = zip(slots, leads, favourites, told, pairs(tops, len(slots)), strict=True)
            yield [
                None if slot < 0 else Decision(slot, value, lead, own, given[:heads], given[heads:], best)
                for slot, lead, own, (value, *given), best in of_rows
            ]


class Ring:
    """The outcome of the last steps, on the device.

    Args:
        heads: K.
        rows: R.
        device: of the loop.
    """

    def __init__(self, heads: int, rows: int, device: torch.device) -> None:
        self.entry = torch.zeros(1, dtype=torch.int64, device=device)
        """How many steps were written."""
        self.slots = torch.full((RING, rows), -1, dtype=torch.int64, device=device)
        self.leads = torch.zeros(RING, rows, device=device)
        self.favourites = torch.full((RING, heads, rows), -1, dtype=torch.int64, device=device)
        self.told = torch.zeros(RING, 1 + 2 * heads, rows, device=device)
        self.tops = Tops(
            torch.zeros(RING, rows, MOST_TOPS, dtype=torch.int64, device=device),
            torch.full((RING, rows, MOST_TOPS), -1.0, device=device),
        )

    @property
    def tensors(self) -> list[Tensor]:
        """Return all that a step changes."""
        return [self.entry, self.slots, self.leads, self.favourites, self.told, self.tops.slots, self.tops.values]

    def write(self, slots: Tensor, choice: Choice) -> None:
        """Keep what a step emitted in the first rows.

        Args:
            slots: shape (rows,), -1 where nothing was emitted.
            choice: of these rows.
        """
        rows, entry = len(slots), self.entry % RING
        self.slots[:, :rows].index_copy_(0, entry, slots[None])
        self.leads[:, :rows].index_copy_(0, entry, choice.leads[None].float())
        self.favourites[:, :, :rows].index_copy_(0, entry, choice.favourites[None])
        self.entry += 1

    def tell(self, choice: Choice) -> None:
        """Keep what somebody listens for in the step that is written next: what each head gave, the best slots."""
        entry = self.entry % RING
        if choice.told is not None:
            told = torch.cat([choice.values[None], choice.told.of_favourites, choice.told.of_slots])  # (1 + 2 K, rows)
            self.told[:, :, : told.shape[1]].index_copy_(0, entry, told[None].float())
        if choice.tops is not None:
            rows, width = choice.tops.slots.shape
            self.tops.slots[:, :rows, :width].index_copy_(0, entry, choice.tops.slots[None])
            self.tops.values[:, :rows, :width].index_copy_(0, entry, choice.tops.values[None].float())

    def last(self, num_steps: int, count: int, *, is_told: bool, has_tops: bool = False) -> Outcome:
        """Queue the way to the host of the last steps' outcome.

        Args:
            num_steps: all that were written.
            count: the last ones to bring, which lie together in the ring.
            is_told: whether somebody listens to each token.
            has_tops: whether somebody wants to know what else could have been emitted.
        """
        end = (num_steps - 1) % RING + 1
        last = slice(end - count, end)
        slots, leads, favourites = (_on_its_way(own[last]) for own in (self.slots, self.leads, self.favourites))
        told = _on_its_way(self.told[last]) if is_told else None
        tops = None
        if has_tops:
            tops = Tops(_on_its_way(self.tops.slots[last]), _on_its_way(self.tops.values[last]))
        done = None
        if self.slots.is_cuda:
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]  # untyped in torch
            done.record(torch.cuda.current_stream(self.slots.device))
        return Outcome(slots, leads, favourites, told, tops, done)


def _on_its_way(states: Tensor) -> Tensor:
    if not states.is_cuda:
        return states.clone()
    moved = torch.empty(states.shape, dtype=states.dtype, pin_memory=True)
    return moved.copy_(states, non_blocking=True)
