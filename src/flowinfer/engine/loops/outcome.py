"""What the device has emitted in a few steps, on its way to the host."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowinfer.engine.loops.lockstep import RING, LockStep


@dataclass(frozen=True)
class Outcome:
    """The outcome of S steps of R rows, on the host once `is_there`."""

    slots: Tensor
    """(S, R); -1 where nothing was emitted."""
    leads: Tensor
    """(S, R)."""
    favourites: Tensor
    """(S, K, R)."""
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


def last_outcome(lock: LockStep, steps: int) -> Outcome:
    """Queue the way to the host of the last steps' outcome; `RING` is a multiple of their number."""
    end = (lock.num_steps - 1) % RING + 1
    last = slice(end - steps, end)
    on_device = lock.ring_slots[last], lock.ring_leads[last], lock.ring_favourites[last]
    if lock.device.type != "cuda":
        slots, leads, favourites = (states.clone() for states in on_device)
        return Outcome(slots, leads, favourites, None)
    slots, leads, favourites = (_on_its_way(states) for states in on_device)
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]  # untyped in torch
    done.record()
    return Outcome(slots, leads, favourites, done)


def _on_its_way(states: Tensor) -> Tensor:
    moved = torch.empty(states.shape, dtype=states.dtype, pin_memory=True)
    return moved.copy_(states, non_blocking=True)
