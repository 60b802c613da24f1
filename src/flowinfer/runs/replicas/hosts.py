"""How many replicas each of several hosts gets, and what each replica has there. Pure: nothing is started."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
    """What each has at least, its GPUs numbered from 0. In its CPU's memory files that all map count whole."""
    cpu_bytes: int
    """Of its host's free memory, what each may count with for itself."""
    kept_bytes: tuple[int, ...]
    """Of each replica, what nobody else on its host is given: what a copy needs, if that is known, and no more; with
    the first of a host, the files that all map."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """By id of a host that gets none: what it lacks."""


def spread(
    hosts: Sequence[Host],
    wanted: Wanted,
    place: Callable[[Machine], P],
    fits: Callable[[P], bool],
    mapped: int = 0,
    needed: int | None = None,
) -> tuple[Spread, P]:
    """Spread replicas over hosts, each with as few GPUs as hold a copy, or with its part of a CPU's cores.

    Args:
        hosts: those that have GPUs count where any has; those on which no copy has room are left out.
        wanted: how many; "auto": as many as have room.
        place: places what a replica runs.
        fits: whether all models are in memory at once as it is placed.
        mapped: bytes of files that all replicas map into memory, where they lie once for a host.
        needed: bytes that each needs for itself (`planning.needs.process_bytes`); None: all that it may count with.
    Raises:
        UsageError: there are not so many GPUs or cores.
        MemoryShort: a copy has no room; says what each host lacks.
    """
    have_gpus = any(host.gpus for host in hosts)
    alone = {host.id: _least_gpus(host, have_gpus, place, fits) for host in hosts}
    least = {name: count for name, count in alone.items() if isinstance(count, int)}
    lacks = {name: why for name, why in alone.items() if isinstance(why, str)}
    if not least:
        told = _told(hosts, lacks)
        raise MemoryShort(f"no node has room for a copy of the plan: {told}", help="smaller models, or other nodes")
    problem = ""
    for num_gpus in sorted(set(least.values())):
        able = [host for host in hosts if least.get(host.id, num_gpus + 1) <= num_gpus]
        more = {id_: f"a copy needs {count} of its GPUs" for id_, count in least.items() if count > num_gpus}
        counts = _counts([len(host.gpus) // num_gpus if num_gpus else host.cores for host in able], wanted)
        while sum(counts):
            found = _parts(able, counts, num_gpus, mapped, needed)
            try:
                return replace(found, left_out=lacks | more), _placed(found.machine, place, fits)
            except RunError as error:
                problem = error.message
            if num_gpus or wanted != "auto":
                break
            counts = [min(count, max(counts) - 1) for count in counts]  # fewer on a host leave each more of its memory
    cure = "fewer replicas, or auto"
    if problem:
        raise MemoryShort(f"the nodes have no room for so many copies of the plan: {problem}", help=cure)
    have = sum(len(host.gpus) or host.cores for host in hosts if host.id in least)
    left = f" (without {_told(hosts, lacks)})" if lacks else ""
    unit = "GPUs" if have_gpus else "CPU cores"
    raise UsageError(f"--replicas {wanted}: the cluster has {have} {unit} for them{left}", help=cure)


def _least_gpus(host: Host, have_gpus: bool, place: Callable[[Machine], P], fits: Callable[[P], bool]) -> int | str:
    """Return how many of a host's GPUs hold a copy, or what it lacks."""
    why = "it has no GPUs, as others have" if have_gpus else "it lends no CPU cores"
    for num_gpus in range(1, len(host.gpus) + 1) if have_gpus else (0,) * bool(host.cores):
        try:
            _placed(_parts([host], [1], num_gpus, 0, None).machine, place, fits)
            return num_gpus
        except RunError as error:
            why = error.message
    return why


def _told(hosts: Sequence[Host], lacks: Mapping[str, str]) -> str:
    """Return in words what each of some hosts lacks."""
    names: dict[str, list[str]] = {}
    for host in hosts:
        if host.id in lacks:
            names.setdefault(lacks[host.id], []).append(host.name)
    return "; ".join(f"node{'s' if len(which) > 1 else ''} {', '.join(which)}: {why}" for why, which in names.items())


def _placed(machine: Machine, place: Callable[[Machine], P], fits: Callable[[P], bool]) -> P:
    """Place a copy.

    Raises:
        RunError: it has no room.
    """
    placed = place(machine)
    if not fits(placed):
        raise MemoryShort("a copy's models do not fit together")
    return placed


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


def _parts(hosts: Sequence[Host], counts: Sequence[int], num_gpus: int, mapped: int, needed: int | None) -> Spread:
    used = [(host, count) for host, count in zip(hosts, counts, strict=True) if count]
    gpus = [host.gpus[:num_gpus] for host, _ in used]
    own = [smallest(f"cuda:{index}", [group[index] for group in gpus]) for index in range(num_gpus)]
    cpu = smallest("cpu", [part(host.cpu, count, mapped) for host, count in used])
    cpu_bytes = min(own_bytes(host.cpu, count, mapped) for host, count in used)
    own_kept = cpu_bytes if needed is None else min(cpu_bytes, needed)
    kept = [[own_kept + min(mapped, host.cpu.free_bytes), *[own_kept] * (count - 1)] for host, count in used]
    return Spread(
        tuple(host for host, count in used for _ in range(count)),
        num_gpus,
        max(1, min(host.cores // count for host, count in used)),
        Machine((*own, cpu)),
        cpu_bytes,
        tuple(size for sizes in kept for size in sizes),
    )


def part(cpu: Device, count: int, mapped: int) -> Device:
    """Return what each of several replicas has of a CPU's memory: its part, and what all of them map."""
    free, total = (max(0, size - mapped) // count + min(size, mapped) for size in (cpu.free_bytes, cpu.total_bytes))
    return replace(cpu, free_bytes=free, total_bytes=total)


def own_bytes(cpu: Device, count: int, mapped: int) -> int:
    """Return what each of several replicas may count with for itself of a CPU's free memory."""
    return max(0, cpu.free_bytes - mapped) // count


def smallest(name: str, devices: Sequence[Device]) -> Device:
    """Return a device that promises what all of some have."""
    return Device(
        name,
        devices[0].title,
        min(device.free_bytes for device in devices),
        min(device.total_bytes for device in devices),
        min(device.bytes_per_second for device in devices),
    )
