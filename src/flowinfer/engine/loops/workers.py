"""Heads side by side, so that a step takes as long as its slowest device: by streams, or by threads.

On a CPU heads run in turn, each with all of torch's threads, but for those that leave Python to others: these have a
thread each, and the CPU's heads then share its cores evenly, where none would keep the others' cores waiting. What lies
all at one place runs in the caller's own thread, also beside heads of other processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, nullcontext

import torch

from flowinfer.backends.aside import waiting
from flowinfer.engine.loops.clock import UNTIMED, Clock, Part

_IN_TURN = 1.2
"""What heads take in turn, each with all cores, of their work spread evenly: threads of a head wait for each other."""
_SMALL = 1 << 26
"""Heads of fewer bytes run in turn: handing work to threads and back takes as long as they do."""


def is_quicker_in_turn(read: Sequence[int], cores: int) -> bool:
    """Return whether heads take less time in turn, each with all cores, than side by side, each with an equal share.

    By their sizes and by no clock: some kernels round otherwise with other threads, and a text should come out again.

    Args:
        read: bytes that a forward of each reads; 0 = it cannot run beside the others.
        cores: for all of them.
    """
    if not all(read) or not read:
        return False
    if max(read) < _SMALL:
        return True
    beside = max(max(read) / max(1, cores // len(read)), sum(read) / cores)
    return _IN_TURN * sum(read) / cores < beside


class DeviceWorkers:
    """Run the same work for every head: in turn at one place, at the same time at several.

    Args:
        devices: the device of each head.
        elsewhere: which of them only wait for another process: each in a thread of its own.
        clock: times each head's work, its device's included.
        beside: what each head reads that runs beside others of its device, see `backends.base.bytes_beside`; 0, or not
            given = it does not.
        is_queued: whether the work of a head on a GPU is only queued there. Then one thread queues that of all heads,
            each on a stream of its own, and waits once; so graphs are never recorded in two threads at once. Each head
            then counts with the time of all. Else each device has a thread.
    """

    def __init__(
        self,
        devices: Sequence[torch.device],
        clock: Clock = UNTIMED,
        *,
        beside: Sequence[int] = (),
        elsewhere: Sequence[bool] = (),
        is_queued: bool = False,
    ) -> None:
        self._devices = tuple(devices)
        self._clock = clock
        self._elsewhere = {k for k, is_so in enumerate(elsewhere) if is_so}
        self._streams: dict[int, torch.cuda.Stream] = {}
        here = [k for k in range(len(self._devices)) if k not in self._elsewhere]
        is_queued = is_queued and any(devices[k].type == "cuda" for k in here)
        cores = torch.get_num_threads()
        alone = set(self._elsewhere)
        read_here = [beside[k] for k in here] if len(beside) == len(devices) else []
        if cores > 1 and not is_quicker_in_turn(read_here, cores):
            alone |= {k for k, read in enumerate(beside) if read}
        places = [(device, k if k in alone else None) for k, device in enumerate(devices)]
        groups = [tuple(k for k, own in enumerate(places) if own == one) for one in dict.fromkeys(places)]
        local = [heads for heads in groups if heads[0] not in self._elsewhere]
        self._queued = tuple(here) if is_queued else ()
        """Heads whose work one thread queues."""
        self._in_turn = local[0] if len(local) == 1 and not is_queued else ()
        """Heads of the one place that there is here."""
        self._apart = [heads for heads in groups if heads[0] not in (*self._queued, *self._in_turn)]
        """Heads of a thread each."""
        on_cpu = {places[heads[0]] for heads in local if devices[heads[0]].type == "cpu"}
        share = max(1, cores // max(1, len(on_cpu)))
        self._pool = (
            ThreadPoolExecutor(len(self._apart), initializer=torch.set_num_threads, initargs=(share,))
            if self._apart
            else None
        )

    def run(self, part: Part, work: Callable[[int], None]) -> None:
        """Call `work` with the index of each head.

        Raises:
            Whatever a head's work raised, after the others have come to rest.
        """
        if self._pool is None:
            return self._run_here(part, work)
        futures = [self._pool.submit(self._on_device, part, work, heads) for heads in self._apart]
        try:
            self._run_here(part, work)
        finally:
            wait([one for one, heads in zip(futures, self._apart, strict=True) if heads[0] not in self._elsewhere])
            if self._elsewhere:
                with waiting():
                    wait(futures)
        for future in futures:
            future.result()
        return None

    def _run_here(self, part: Part, work: Callable[[int], None]) -> None:
        if self._queued:
            self._side_by_side(part, work)
        elif self._in_turn:
            self._on_device(part, work, self._in_turn)

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
                for k in self._queued:
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
