"""How many replicas each of several hosts gets, and what each replica has there. Pure: nothing is started."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from flowinfer.errors import MemoryShort, RunError, UsageError
from flowinfer.machine import Device, Machine

Wanted = int | Literal["auto"]
P = TypeVar("P")


@dataclass(frozen=True)
class Host:
    """A host that can answer."""

    id: str
    name: str
    devices: tuple[Device, ...]
    """GPUs first, the CPU last."""
    cores: int
    """That the cluster lends."""

    @property
    def gpus(self) -> tuple[Device, ...]:
        """Return its GPUs."""
        return self.devices[:-1]

    @property
    def cpu(self) -> Device:
        """Return its CPU, with the host's memory."""
        return self.devices[-1]


@dataclass(frozen=True)
class Spread:
    """Replicas over hosts."""

    hosts: tuple[Host, ...]
    """Of each replica."""
    num_gpus: int
    """Of each replica."""
    cores: int
    """Of each replica."""
    machine: Machine
    """What each has at least, its GPUs numbered from 0."""


def spread(
    hosts: Sequence[Host],
    wanted: Wanted,
    place: Callable[[Machine], P],
    fits: Callable[[P], bool],
) -> tuple[Spread, P]:
    """Spread replicas over hosts, each with as few GPUs as hold a copy, or with its part of a CPU's cores.

    Args:
        hosts: those that have GPUs count where any has.
        wanted: how many; "auto": as many as have room.
        place: places what a replica runs.
        fits: whether all models are in memory at once as it is placed.
    Raises:
        UsageError: there are not so many GPUs or cores.
        MemoryShort: a copy has no room.
    """
    with_gpus = [host for host in hosts if host.gpus]
    used = with_gpus or list(hosts)
    problem = ""
    for num_gpus in range(1, max(len(host.gpus) for host in used) + 1) if with_gpus else (0,):
        most = [len(host.gpus) // num_gpus if num_gpus else host.cores for host in used]
        counts = _counts(most, wanted)
        while sum(counts):
            found = _parts(used, counts, num_gpus)
            try:
                placed = place(found.machine)
                if fits(placed):
                    return found, placed
                problem = "a copy's models do not fit together"
            except RunError as error:
                problem = error.message
            if num_gpus or wanted != "auto":
                break
            counts = [min(count, max(counts) - 1) for count in counts]  # fewer on a host leave each more of its memory
    if not problem:
        have = sum(len(host.gpus) or host.cores for host in used)
        unit = "GPUs" if with_gpus else "CPU cores"
        raise UsageError(f"--replicas {wanted}: the cluster has {have} {unit} for them", help="fewer, or auto")
    raise MemoryShort(f"no host has room for a copy of the plan: {problem}", help="fewer replicas, or auto")


def _counts(most: Sequence[int], wanted: Wanted) -> list[int]:
    """Return how many replicas each host gets, in turn; none at all where there are not as many as wanted."""
    if wanted == "auto":
        return list(most)
    counts = [0] * len(most)
    while sum(counts) < wanted:
        free = [index for index, count in enumerate(counts) if count < most[index]]
        if not free:
            return [0] * len(most)
        counts[min(free, key=lambda index: counts[index])] += 1
    return counts


def _parts(hosts: Sequence[Host], counts: Sequence[int], num_gpus: int) -> Spread:
    used = [(host, count) for host, count in zip(hosts, counts, strict=True) if count]
    gpus = [host.gpus[:num_gpus] for host, _ in used]
    own = [smallest(f"cuda:{index}", [group[index] for group in gpus]) for index in range(num_gpus)]
    cpus = [
        replace(host.cpu, free_bytes=host.cpu.free_bytes // count, total_bytes=host.cpu.total_bytes // count)
        for host, count in used
    ]
    return Spread(
        tuple(host for host, count in used for _ in range(count)),
        num_gpus,
        max(1, min(host.cores // count for host, count in used)),
        Machine((*own, smallest("cpu", cpus))),
    )


def smallest(name: str, devices: Sequence[Device]) -> Device:
    """Return a device that promises what all of some have."""
    return Device(
        name,
        devices[0].title,
        min(device.free_bytes for device in devices),
        min(device.total_bytes for device in devices),
        min(device.bytes_per_second for device in devices),
    )
