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
_making = threading.Lock()


def launch(kernel: Any, grid: tuple[int, ...]) -> Callable[..., object]:  # untyped in Triton
    """Return what launches a kernel with its arguments; while code is run ahead, what compiles it."""
    ahead: Ahead | None = getattr(_local, "ahead", None)
    return kernel[grid] if ahead is None else partial(ahead.compile, kernel)


def can_be_early(tensor: Tensor) -> bool:
    """Return whether a launch over a tensor can begin before the one before has ended; ahead, whether it will."""
    ahead: Ahead | None = getattr(_local, "ahead", None)
    if ahead is not None:
        return ahead.capability >= (9, 0)
    return tensor.is_cuda and torch.cuda.get_device_capability(tensor.device) >= (9, 0)


class Ahead:
    """Kernels that are being compiled for one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pool = ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1), "kernels")
        self._begun: dict[object, Future[None]] = {}

    @property
    def capability(self) -> tuple[int, int]:
        """Return what kernels are compiled for."""
        return torch.cuda.get_device_capability(self.device) if self.device.type == "cuda" else (0, 0)

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
            self._begun[key] = self._begin(kernel, arguments, options)

    def wait(self) -> None:
        """Wait until all is compiled; what failed fails again, and says so, where it is launched."""
        for one in tuple(self._begun.values()):
            one.exception()
        self._pool.shutdown()

    def _begin(self, kernel: Any, arguments: tuple[object, ...], options: dict[str, object]) -> Future[None]:
        return self._pool.submit(self._compile, kernel, arguments, options)

    def _compile(self, kernel: Any, arguments: tuple[object, ...], options: dict[str, object]) -> None:
        is_on_gpu = self.device.type == "cuda"
        with torch.cuda.device(self.device) if is_on_gpu else nullcontext():
            if is_on_gpu:
                _prepare_triton()
            compiled = kernel.warmup(*arguments, grid=(1,), **options)
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


def compile_for_absent(capability: tuple[int, int]) -> None:
    """Let Triton compile for a GPU that need not be here, in this process from now on."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    class Paper:
        """Triton's driver, as far as compiling asks for it."""

        def get_current_target(self) -> Any:
            return GPUTarget("cuda", 10 * capability[0] + capability[1], 32)

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return device

    driver.set_active(Paper())


def hash_triton() -> None:
    """Let Triton hash itself, 400 MB, before several threads or processes ask it to."""
    from triton.runtime import cache

    with _making:
        getattr(cache, "triton_key", int)()


def _prepare_triton() -> None:
    """Let Triton look for its driver once, not in every thread, and make launchers as threads can."""
    from triton.runtime import build, driver

    hash_triton()
    with _making:
        active = driver.active
        if not isinstance(active.launcher_cls, Launchers):
            active.launcher_cls = Launchers(active.launcher_cls, build)


class Launchers:
    """Makes Triton's launchers one by one, whose compilers run side by side; takes the place of a driver's maker.

    Every signature of kernels has a launcher in C, a Python module. All have one name, and loading one a second time
    changes the module that was loaded last: a thread could read another's launcher from it. Only the compiler takes
    long, and it loads nothing.

    Args:
        make: the driver's own maker.
        build: Triton's module that runs the compiler.
    """

    def __init__(self, make: Callable[..., Any], build: Any) -> None:  # untyped in Triton
        self._make, self._turn = make, threading.Lock()
        self._run_compiler: Callable[..., Any] | None = getattr(build, "_build", None)
        if self._run_compiler is not None:  # else they are compiled one by one too
            build._build = self._build

    def __call__(self, *arguments: Any) -> Any:
        """Make a launcher."""
        with self._turn:
            _local.makes = True
            try:
                return self._make(*arguments)
            finally:
                _local.makes = False

    def _build(self, *arguments: Any, **named: Any) -> Any:
        """Run the compiler, while another thread has its turn."""
        assert self._run_compiler is not None, "it takes the place of one"
        if not getattr(_local, "makes", False):  # something else than a launcher
            return self._run_compiler(*arguments, **named)
        self._turn.release()
        try:
            return self._run_compiler(*arguments, **named)
        finally:
            self._turn.acquire()
