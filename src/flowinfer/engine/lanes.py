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
    """

    def __init__(self, devices: Sequence[torch.device]) -> None:
        self._devices = tuple(devices)
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
