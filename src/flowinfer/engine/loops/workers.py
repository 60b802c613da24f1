"""Heads side by side: a worker per device, so that a step takes as long as its slowest device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack

import torch

from flowinfer.engine.loops.clock import UNTIMED, Clock, Part


class DeviceWorkers:
    """Run the same work for every head: in turn on one device, at the same time on several.

    Args:
        devices: the device of each head.
        clock: times each head's work, its device's included.
        overlaps: let heads on one GPU run on streams of their own; each then counts with all of its device's time.
    """

    def __init__(self, devices: Sequence[torch.device], clock: Clock = UNTIMED, *, overlaps: bool = False) -> None:
        self._devices = tuple(devices)
        self._clock = clock
        self._overlaps = overlaps
        self._streams: dict[int, torch.cuda.Stream] = {}
        self._heads_of = tuple(
            tuple(k for k, device in enumerate(devices) if device == one) for one in dict.fromkeys(devices)
        )
        self._pool = ThreadPoolExecutor(len(self._heads_of)) if len(self._heads_of) > 1 else None

    def run(self, part: Part, work: Callable[[int], None]) -> None:
        """Call `work` with the index of each head.

        Raises:
            Whatever a head's work raised, after the other devices have come to rest.
        """
        if self._pool is None:
            return self._on_device(part, work, self._heads_of[0])
        futures = [self._pool.submit(self._on_device, part, work, heads) for heads in self._heads_of]
        wait(futures)
        for future in futures:
            future.result()
        return None

    @torch.inference_mode()  # a thread's own state
    def _on_device(self, part: Part, work: Callable[[int], None], heads: Sequence[int]) -> None:
        device = self._devices[heads[0]]
        if self._overlaps and len(heads) > 1 and device.type == "cuda":
            return self._side_by_side(part, work, heads)
        for k in heads:
            with self._clock.phase(part, head=k):
                work(k)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
        return None

    def _side_by_side(self, part: Part, work: Callable[[int], None], heads: Sequence[int]) -> None:
        """Give each head's work to a stream and wait once for all of them."""
        device = self._devices[heads[0]]
        with ExitStack() as phases:
            for k in heads:
                phases.enter_context(self._clock.phase(part, head=k))
                if k not in self._streams:
                    self._streams[k] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
                self._streams[k].wait_stream(torch.cuda.current_stream(device))
                with torch.cuda.stream(self._streams[k]):
                    work(k)
            torch.cuda.synchronize(device)
