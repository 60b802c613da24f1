"""Kernels are compiled ahead once for each form, in threads, and launched as ever afterwards."""

from __future__ import annotations

import threading
from typing import Any

import torch

from flowinfer.engine.caches.launching import Ahead, device_of, launch

CPU = torch.device("cpu")


class Kernel:
    """Notes what is asked of it, as one of Triton's."""

    def __init__(self, *, is_broken: bool = False) -> None:
        self.launched: list[Any] = []
        self.compiled: list[Any] = []
        self._is_broken = is_broken

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *arguments, **options: self.launched.append((grid, arguments, options))

    def warmup(self, *arguments: object, grid: tuple[int, ...], **options: object) -> None:
        if self._is_broken:
            raise RuntimeError("no such instruction")
        self.compiled.append((threading.current_thread(), options["BLOCK"]))


def test_launches_that_are_run_ahead_compile_each_form_once_and_launch_nothing() -> None:
    kernel, ahead = Kernel(), Ahead(CPU)
    few, many, halves = torch.empty(1, 16), torch.empty(4, 16), torch.empty(4, 16, dtype=torch.float16)
    with ahead.compiling():
        for states, count, block in ((few, 3, 16), (many, 5, 16), (many, 32, 16), (halves, 3, 16), (few, 3, 64)):
            launch(kernel, (len(states),))(states, count, BLOCK=block)
    ahead.wait()
    assert kernel.launched == []
    assert sorted(block for _, block in kernel.compiled) == [16, 16, 16, 64]
    assert all(thread is not threading.current_thread() for thread, _ in kernel.compiled)


def test_launches_afterwards_are_launches() -> None:
    kernel, ahead = Kernel(), Ahead(torch.device("cuda:3"))
    states = torch.empty(2, device="meta")
    with ahead.compiling():
        assert device_of(states) == torch.device("cuda:3")
    launch(kernel, (2,))(states, BLOCK=1)
    assert kernel.launched == [((2,), (states,), {"BLOCK": 1})] and kernel.compiled == []
    assert device_of(states) == torch.device("meta")


def test_what_does_not_compile_fails_where_it_is_launched_not_before() -> None:
    kernel, ahead = Kernel(is_broken=True), Ahead(CPU)
    with ahead.compiling():
        launch(kernel, (1,))(torch.empty(1), BLOCK=1)
    ahead.wait()
