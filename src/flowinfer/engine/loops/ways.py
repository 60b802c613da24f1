"""Ways between the places of a loop: from device to device, or through the host's memory where there is no other."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations

import torch
from torch import Tensor


def reach_each_other(one: torch.device, other: torch.device) -> bool:
    """Return whether two devices can copy to each other without the host's memory."""
    if one == other or one.type != "cuda" or other.type != "cuda":
        return True
    return torch.cuda.can_device_access_peer(one, other) and torch.cuda.can_device_access_peer(other, one)


def detours(devices: Iterable[torch.device]) -> list[str]:
    """Name the pairs of devices that cannot. Example: cuda:0 and cuda:2."""
    pairs = combinations(dict.fromkeys(devices), 2)
    return [f"{one} and {other}" for one, other in pairs if not reach_each_other(one, other)]


class Way:
    """The way from one place to another, in the order of both devices' current streams.

    Args:
        source: the device of what is sent.
        target: the device where it goes.
    """

    def __init__(self, source: torch.device, target: torch.device) -> None:
        self._source, self._target = source, target
        self._is_direct = reach_each_other(source, target)
        self._held: dict[tuple[torch.Size, torch.dtype], Tensor] = {}
        """Page-locked memory of the host, by what goes through it."""
        self._is_read: torch.cuda.Event | None = None
        """Happens when the target has read all that was sent."""

    def send(self, states: Tensor, to: Tensor) -> None:
        """Queue a copy: after all that both devices' current streams hold, before all that they get next.

        They are no default streams: a copy on one waits for all work of both devices, whichever streams it is on.
        """
        if self._is_direct:
            to.copy_(states, non_blocking=True)  # between two devices: a barrier of their current streams both ways
            return
        form = (states.shape, states.dtype)
        if form not in self._held:
            self._held[form] = torch.empty(states.shape, dtype=states.dtype, pin_memory=True)
        leaving, arriving = torch.cuda.current_stream(self._source), torch.cuda.current_stream(self._target)
        if self._is_read is not None:
            leaving.wait_event(self._is_read)
        self._held[form].copy_(states, non_blocking=True)
        arriving.wait_event(leaving.record_event())
        to.copy_(self._held[form], non_blocking=True)
        self._is_read = arriving.record_event()
