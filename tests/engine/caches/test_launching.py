"""Kernels are compiled ahead once for each form, in threads, and launched as ever afterwards."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flowinfer.engine.caches.launching import Ahead, Launchers, can_be_early, launch

CPU = torch.device("cpu")
_LONG_SECONDS = 60.0
"""Until a test that would wait for ever fails instead."""


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


class Hopper(Ahead):
    """Compiles for a GPU that is not here."""

    capability = (9, 0)


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
    kernel, ahead = Kernel(), Hopper(CPU)
    states = torch.empty(2, device="meta")
    with ahead.compiling():
        assert can_be_early(states)
    launch(kernel, (2,))(states, BLOCK=1)
    assert kernel.launched == [((2,), (states,), {"BLOCK": 1})] and kernel.compiled == []
    assert not can_be_early(states)


def test_what_does_not_compile_fails_where_it_is_launched_not_before() -> None:
    kernel, ahead = Kernel(is_broken=True), Ahead(CPU)
    with ahead.compiling():
        launch(kernel, (1,))(torch.empty(1), BLOCK=1)
    ahead.wait()


class Triton:
    """Its launchers are modules of one name, of which the last that was loaded is changed by every further load.

    So is CPython's way with modules that are initialised in one phase.
    """

    def __init__(self) -> None:
        self.compiling = threading.Barrier(2)
        self.loaded = SimpleNamespace(launch="")
        self.num_inside = 0
        self.build = SimpleNamespace(_build=self._compile)

    def _compile(self, name: str) -> str:
        """Take until the other compiler runs too; fail where there is none."""
        self.compiling.wait(_LONG_SECONDS)
        if "broken" in name:
            raise RuntimeError(name)
        return name

    def make(self, name: str) -> str:
        """Compile a launcher, load it, and take what launches from the module."""
        self.loaded.launch = self.build._build(name)
        self.num_inside += 1
        assert self.num_inside == 1, "another thread loads meanwhile"
        launch: str = self.loaded.launch
        self.num_inside -= 1
        return launch


def test_launchers_are_compiled_side_by_side_and_loaded_one_by_one() -> None:
    triton = Triton()
    launchers = Launchers(triton.make, triton.build)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(launchers, ["one", "other"])) == ["one", "other"]


def test_a_launcher_that_does_not_compile_leaves_the_next_its_turn() -> None:
    triton = Triton()
    launchers = Launchers(triton.make, triton.build)
    with ThreadPoolExecutor(2) as pool:
        broken, whole = pool.submit(launchers, "broken"), pool.submit(launchers, "whole")
        assert whole.result() == "whole"
    with pytest.raises(RuntimeError, match="broken"):
        broken.result()


def test_what_else_is_compiled_needs_no_turn() -> None:
    triton = Triton()
    launchers = Launchers(triton.make, triton.build)
    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(triton.build._build, "the driver's tools")
        assert (launchers("one"), other.result()) == ("one", "the driver's tools")


def test_launchers_of_another_triton_are_made_one_by_one() -> None:
    launchers = Launchers(lambda name: name.upper(), SimpleNamespace())
    assert launchers("one") == "ONE"
