"""Heads side by side: a lane per device, so that a step takes as long as its slowest device."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import torch


class Lanes:
    """Run the same work for every head: in turn on one device, at the same time on several.

    Args:
        devices: the device of each head.
        overlaps: let heads on one GPU run on streams of their own; each then counts with all of its device's time.
    """

    def __init__(self, devices: Sequence[torch.device], *, overlaps: bool = False) -> None:
        self._devices = tuple(devices)
        self._overlaps = overlaps
        self._streams: dict[int, torch.cuda.Stream] = {}
        self._lanes = tuple(
            tuple(k for k, device in enumerate(devices) if device == one) for one in dict.fromkeys(devices)
        )
        self._pool = ThreadPoolExecutor(len(self._lanes)) if len(self._lanes) > 1 else None

    def run(self, work: Callable[[int], None]) -> list[float]:
        """Call `work` with the index of each head; return each head's seconds, its device's own work included.

        Raises:
            Whatever a head's work raised, after the other lanes have come to rest.
        """
        seconds = [0.0] * len(self._devices)

        def lane(heads: Sequence[int]) -> None:
            with torch.inference_mode():  # a thread's own state
                if self._overlaps and len(heads) > 1 and self._devices[heads[0]].type == "cuda":
                    self._side_by_side(work, heads, seconds)
                    return
                for k in heads:
                    start = time.perf_counter()
                    work(k)
                    if self._devices[k].type == "cuda":
                        torch.cuda.synchronize(self._devices[k])
                    seconds[k] = time.perf_counter() - start

        if self._pool is None:
            lane(self._lanes[0])
            return seconds
        futures = [self._pool.submit(lane, heads) for heads in self._lanes]
        wait(futures)
        for future in futures:
            future.result()
        return seconds

    def _side_by_side(self, work: Callable[[int], None], heads: Sequence[int], seconds: list[float]) -> None:
        """Give each head's work to a stream and wait once for all of them."""
        device, start = self._devices[heads[0]], time.perf_counter()
        for k in heads:
            if k not in self._streams:
                self._streams[k] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._streams[k].wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(self._streams[k]):
                work(k)
        torch.cuda.synchronize(device)
        for k in heads:
            seconds[k] = time.perf_counter() - start
