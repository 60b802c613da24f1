"""Launching Triton's kernels, and compiling several at once before they are launched.

A kernel compiles for a second or more where it is first launched, one after another. So the code that launches can be
run ahead over tensors without memory (torch's device "meta"): then every launch only compiles its kernel, in a thread.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

_MOST_THREADS = 16
_local = threading.local()
_bringing = threading.Lock()
"""Triton's launchers are modules of one name, which Python mixes up when threads import them at once."""


def launch(kernel: Any, grid: tuple[int, ...]) -> Callable[..., object]:  # untyped in Triton
    """Return what launches a kernel with its arguments; while code is run ahead, what compiles it."""
    ahead: Ahead | None = getattr(_local, "ahead", None)
    return kernel[grid] if ahead is None else partial(ahead.compile, kernel)


def device_of(tensor: Tensor) -> torch.device:
    """Return where a launch over a tensor goes; ahead, where it will go."""
    ahead: Ahead | None = getattr(_local, "ahead", None)
    return tensor.device if ahead is None else ahead.device


class Ahead:
    """Kernels that are being compiled for one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pool = ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1), "kernels")
        self._begun: dict[object, Future[None]] = {}

    @contextmanager
    def compiling(self) -> Iterator[None]:
        """Let launches in this thread compile their kernels instead."""
        _local.ahead = self
        try:
            yield
        finally:
            _local.ahead = None

    def compile(self, kernel: Any, *arguments: object, **options: object) -> None:  # untyped in Triton
        """Begin to compile a kernel for such arguments, unless that has begun."""
        key = (id(kernel), *map(_kind, arguments), *sorted(options.items()))
        if key not in self._begun:
            self._begun[key] = self._pool.submit(self._compile, kernel, arguments, options)

    def wait(self) -> None:
        """Wait until all is compiled; what failed fails again, and says so, where it is launched."""
        for one in tuple(self._begun.values()):
            one.exception()
        self._pool.shutdown()

    def _compile(self, kernel: Any, arguments: tuple[object, ...], options: dict[str, object]) -> None:
        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            compiled = kernel.warmup(*arguments, grid=(1,), **options)
            with _bringing:
                getattr(compiled, "run", None)  # which makes its launcher and brings it to the device


def _kind(argument: object) -> object:
    """Return what Triton compiles other code for."""
    if isinstance(argument, Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0
    return (argument == 1, argument % 16 == 0) if isinstance(argument, int) else type(argument)


@contextmanager
def compiling_at_once(device: torch.device) -> Iterator[None]:
    """Let launches in a block compile their kernels, all at once, and wait until they have."""
    ahead = Ahead(device)
    with ahead.compiling():
        yield
    ahead.wait()
