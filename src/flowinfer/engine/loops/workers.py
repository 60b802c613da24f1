"""Heads side by side, so that a step takes as long as its slowest device: by streams, or by a thread per device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, nullcontext

import torch

from flowinfer.engine.loops.clock import UNTIMED, Clock, Part


class DeviceWorkers:
    """Run the same work for every head: in turn on one device, at the same time on several.

    Args:
        devices: the device of each head.
        elsewhere: which of them only wait for another process: each in a thread of its own.
        clock: times each head's work, its device's included.
        is_queued: whether the work of a head on a GPU is only queued there. Then one thread queues that of all heads,
            each on a stream of its own, and waits once; so graphs are never recorded in two threads at once. Each head
            then counts with the time of all. Else each device has a thread.
    """

    def __init__(
        self,
        devices: Sequence[torch.device],
        clock: Clock = UNTIMED,
        *,
        is_queued: bool = False,
        elsewhere: Sequence[bool] = (),
    ) -> None:
        self._devices = tuple(devices)
        self._clock = clock
        self._streams: dict[int, torch.cuda.Stream] = {}
        self._is_queued = is_queued and any(device.type == "cuda" for device in devices)
        together: dict[object, list[int]] = {}
        for k, device in enumerate(devices):
            together.setdefault(k if elsewhere and elsewhere[k] else device, []).append(k)
        self._heads_of = tuple(map(tuple, together.values()))
        has_threads = len(together) > 1 and not self._is_queued
        self._pool = ThreadPoolExecutor(len(together)) if has_threads else None

    def run(self, part: Part, work: Callable[[int], None]) -> None:
        """Call `work` with the index of each head.

        Raises:
            Whatever a head's work raised, after the other devices have come to rest.
        """
        if self._is_queued:
            return self._side_by_side(part, work)
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
        for k in heads:
            with self._clock.phase(part, head=k):
                work(k)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)

    @torch.inference_mode()
    def _side_by_side(self, part: Part, work: Callable[[int], None]) -> None:
        """Queue each head's work on a stream and wait once for all of them."""
        try:
            with ExitStack() as phases:
                for k in range(len(self._devices)):
                    phases.enter_context(self._clock.phase(part, head=k))
                    with self._on_stream(k):
                        work(k)
                self._synchronize()
        except BaseException:
            self._synchronize()  # nothing goes on at what is freed now
            raise

    def _on_stream(self, k: int) -> AbstractContextManager[object]:
        """Return what lets a head's work be queued on its stream, behind what its device's current one holds."""
        device = self._devices[k]
        if device.type != "cuda":
            return nullcontext()
        if k not in self._streams:
            self._streams[k] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._streams[k].wait_stream(torch.cuda.current_stream(device))
        return torch.cuda.stream(self._streams[k])

    def _synchronize(self) -> None:
        for k in self._streams:
            torch.cuda.synchronize(self._devices[k])
