"""Clocks, ceilings of a device, and rows that fail softly."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ceilings:
    """What a device can do at best, measured now."""

    copy_bytes_per_second: float
    """Of a large copy, read and written bytes counted."""
    read_bytes_per_second: float
    """Of a large sum."""
    matmul_flops_per_second: float
    """Of a large matrix product in the benchmark's dtype."""


def synchronize(device: torch.device) -> None:
    """Wait until a device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release() -> None:
    """Give freed memory back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def wall_seconds(call: Callable[[], object], device: torch.device, *, warmups: int, repeats: int) -> float:
    """Return the median seconds of a call, the device's work included."""
    for _ in range(warmups):
        call()
    seconds = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def event_seconds(call: Callable[[], object], device: torch.device, *, warmups: int = 3, repeats: int = 15) -> float:
    """Return the median seconds of a call between CUDA events; the wall clock on a CPU."""
    if device.type != "cuda":
        return wall_seconds(call, device, warmups=warmups, repeats=repeats)
    for _ in range(warmups):
        call()
    torch.cuda.synchronize(device)
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for start, end in pairs:
        start.record(torch.cuda.current_stream(device))
        call()
        end.record(torch.cuda.current_stream(device))
    torch.cuda.synchronize(device)
    return statistics.median(start.elapsed_time(end) / 1e3 for start, end in pairs)


def ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Measure a device's bandwidths and matrix rate."""
    found = Ceilings(_copy_rate(device), _read_rate(device), _matmul_rate(device, dtype))
    release()
    return found


def held_matrix_rate(device: torch.device, dtype: torch.dtype, *, seconds: float = 1.0) -> float:
    """Measure the matrix rate (FLOPs a second) that a device holds, its limit of power included."""
    burst = _matmul_rate(device, dtype)
    side = _side(device)
    left = torch.randn(side, side, device=device).to(dtype)
    out = torch.empty_like(left)
    count = max(1, round(seconds * burst / (2 * side**3)))

    def multiply() -> None:
        for _ in range(count):
            torch.mm(left, left, out=out)

    return count * 2 * side**3 / event_seconds(multiply, device, warmups=0, repeats=1)


def _large(device: torch.device) -> Tensor:
    """Return a tensor beyond every cache: 4 GiB on a GPU, 128 MiB on a CPU."""
    return torch.ones(1 << (30 if device.type == "cuda" else 25), device=device)


def _copy_rate(device: torch.device) -> float:
    source = _large(device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / event_seconds(lambda: target.copy_(source), device, warmups=2, repeats=10)


def _read_rate(device: torch.device) -> float:
    source = _large(device)
    return source.nbytes / event_seconds(lambda: source.sum(), device, warmups=2, repeats=10)


def _matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    side = _side(device)
    left = torch.randn(side, side, device=device).to(dtype)
    out = torch.empty_like(left)
    return 2 * side**3 / event_seconds(lambda: torch.mm(left, left, out=out), device, warmups=2, repeats=10)


def _side(device: torch.device) -> int:
    return 8192 if device.type == "cuda" else 1024


@dataclass(frozen=True)
class Missed:
    """Why a figure could not be had."""

    reason: str


class Deadline:
    """The time that a benchmark may take; what would begin after it is left out."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._start = time.perf_counter()

    @property
    def elapsed(self) -> float:
        """Seconds since it began."""
        return time.perf_counter() - self._start

    def attempt(self, call: Callable[[], float]) -> float | Missed:
        """Return what a measurement gives, or why it gave nothing; free its memory either way."""
        if self.elapsed > self._seconds:
            return Missed(f"left out after {self._seconds:.0f} s")
        release()
        try:
            return call()
        except torch.OutOfMemoryError:
            return Missed("out of memory")
        except Exception as error:  # a failed row must not cost the others
            lines = [line.strip() for line in str(error).split("\n") if line.strip()]
            return Missed(f"{type(error).__name__}: {lines[0] if lines else ''}"[:160])
        finally:
            release()


def require_memory(device: torch.device, num_bytes: float) -> None:
    """Refuse at once what cannot fit, before anything is allocated.

    Raises:
        MemoryError: less is free.
    """
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        if num_bytes > free:
            raise MemoryError(f"needs {num_bytes / 1e9:.0f} GB, {free / 1e9:.0f} GB free")
