"""What each device of a loop does with its steps' time, from marks in its own queue: nothing waits for them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch

Mark = Literal["begin", "fed", "back", "sent", "came", "chosen"]
"""begin: the step's heads may run here; fed: they have run; back: what a further link waited for has come; sent: their
logits have left, where slots are chosen elsewhere; came: all logits are here; chosen: the slots are."""
_PARTS: dict[Mark, Literal["heads", "transfer", "fuse", "wait"]] = {
    "fed": "heads",
    "sent": "transfer",
    "back": "wait",
    "came": "wait",
    "chosen": "fuse",
    "begin": "wait",
}
"""What the time that ends with a mark was spent on."""


@dataclass(frozen=True)
class DeviceSteps:
    """Seconds of each measured step on one device; together they are the step."""

    device: str
    heads: tuple[int, ...]
    """Indices of those that run there."""
    steps: Sequence[dict[str, float]]
    """By part: heads, transfer (logits on their way), fuse, wait (for other devices, or the host)."""


class Watch:
    """Marks of a loop's steps.

    Args:
        places: device and heads of each place.
    """

    def __init__(self, places: Sequence[tuple[torch.device, tuple[int, ...]]]) -> None:
        self._places = tuple(places)
        self._marks: list[list[tuple[Mark, Any]]] = [[] for _ in places]

    def forget(self) -> None:
        """Begin a new measurement."""
        for marks in self._marks:
            marks.clear()

    def mark(self, place: int, what: Mark) -> None:
        """Mark where a place's current stream stands."""
        device = self._places[place][0]
        if device.type != "cuda":
            self._marks[place].append((what, time.perf_counter()))
            return
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # untyped in torch
        event.record(torch.cuda.current_stream(device))
        self._marks[place].append((what, event))

    def devices(self, skip: int = 0) -> list[DeviceSteps]:
        """Return what was measured, without the first steps; waits for the devices."""
        found = []
        for (device, heads), marks in zip(self._places, self._marks, strict=True):
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            steps: list[dict[str, float]] = []
            for (what, start), (after, end) in pairwise(marks):
                if what == "begin":
                    steps.append(dict.fromkeys(_PARTS.values(), 0.0))
                steps[-1][_PARTS[after]] += _seconds(start, end)
            found.append(DeviceSteps(str(device), heads, steps[skip:-1]))  # the last one's wait has no end
        return found


def _seconds(start: Any, end: Any) -> float:  # both CUDA events, which are untyped in torch, or both seconds
    return end - start if isinstance(start, float) else start.elapsed_time(end) / 1e3  # type: ignore[no-any-return]
