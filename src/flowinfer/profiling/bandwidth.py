"""How fast a device's memory is, by a large copy: the floor that no decoding step can go below."""

from __future__ import annotations

import time

import torch

_ON_CPU, _ON_GPU = 1 << 28, 1 << 31
"""Bytes copied: beyond every cache."""
_REPEATS = 5


def copy_bandwidth(device: torch.device) -> float:
    """Return bytes per second of the best of some copies, read and written bytes counted."""
    size = _ON_CPU
    if device.type == "cuda":
        size = min(_ON_GPU, int(torch.cuda.mem_get_info(device)[0]) // 4)
    source = torch.zeros(size // 4, device=device)
    target = torch.ones_like(source)
    best = float("inf")
    for _ in range(_REPEATS):
        synchronize(device)
        start = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * source.nbytes / best


def synchronize(device: torch.device) -> None:
    """Wait until a device has done its work; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
