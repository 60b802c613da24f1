"""Times on a CUDA device: what a captured sequence of calls takes, and what the memory allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

MORE_THAN_L2 = 256 * 1024**2
"""Bytes that calls must touch in turn, so that none finds its data in the cache."""


def copies_for(size: int) -> int:
    """Return how many buffers of `size` bytes to go through in turn."""
    return max(2, -(-MORE_THAN_L2 // size))


def seconds_per_call(calls: Sequence[Callable[[], object]], repeats: int = 20) -> float:
    """Return the median seconds of one call, all captured in one CUDA graph and replayed."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls[:2]:
            call()
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / len(calls))
    return sorted(times)[repeats // 2]
