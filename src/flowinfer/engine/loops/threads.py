"""How many threads a step on a CPU uses: one, where waking the others takes longer than its work."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from flowinfer.engine.network.runner import HeadRunner

_MOST_ALONE = 1 << 24
"""Rows x parameters of a layer up to which one thread does the work: some 50 us per matrix, as long as a wake-up."""


def threads_sleep() -> bool:
    """Return whether OpenMP's threads sleep between operations, as the command line asks them to, and must be woken."""
    return os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE"


def choose_threads(runners: Sequence[HeadRunner]) -> Callable[[int], AbstractContextManager[None]]:
    """Return what gives a step of these heads, by its number of rows, one thread or all."""
    size = max(sum(one.numel() for one in runner.model.parameters()) // len(runner.layers) for runner in runners)
    may_be_alone = threads_sleep() and all(runner.device.type == "cpu" for runner in runners)

    def choose(rows: int) -> AbstractContextManager[None]:
        return one_thread() if may_be_alone and rows * size <= _MOST_ALONE else nullcontext()

    return choose


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread; then with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
