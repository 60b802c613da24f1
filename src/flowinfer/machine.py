"""What this machine has: devices, free memory, the local hub cache. Never imports torch."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from flowinfer.checkpoint import weight_files
from flowinfer.errors import LoadError, UsageError

_NICE = 10
"""Added to the process's niceness, which ends at 19."""
_MEMORY_CLOCK_RATE, _MEMORY_BUS_WIDTH, _MAJOR, _MINOR = 36, 37, 75, 76
"""Attributes of a device, as CUDA's driver numbers them."""


@dataclass(frozen=True)
class Device:
    """A place where models can live."""

    name: str
    """`cpu` or `cuda:N`, numbered as CUDA_VISIBLE_DEVICES leaves them, as torch does."""
    title: str
    free_bytes: int
    total_bytes: int
    bytes_per_second: int = 0
    """What a GPU's memory moves at best, by its clock and width; 0 = not known."""


@dataclass(frozen=True)
class Machine:
    """The devices that a plan may use, GPUs first; the CPU is last."""

    devices: tuple[Device, ...]

    @property
    def gpus(self) -> tuple[Device, ...]:
        """Return its GPUs."""
        return tuple(device for device in self.devices if device.name != "cpu")

    @property
    def slowness(self) -> dict[str, float]:
        """Return by name how many times as long as on the fastest GPU a byte takes; 1 where it is not known."""
        fastest = max((device.bytes_per_second for device in self.devices), default=0)
        return {device.name: fastest / (device.bytes_per_second or fastest or 1) or 1.0 for device in self.devices}


@dataclass(frozen=True)
class Card:
    """A CUDA device as its driver names it."""

    uuid: str
    title: str
    total_bytes: int
    bytes_per_second: int = 0
    """Of its memory, at best."""
    capability: tuple[int, int] = (0, 0)
    """What its programs are compiled for: (9, 0) is an H100's."""


@cache
def this_machine() -> Machine:
    """Look at this machine once: GPUs by their driver, free memory by nvidia-smi and /proc/meminfo."""
    found = cards()
    return Machine((*with_free_memory(found, _ask_nvidia_smi() if found else ""), _cpu()))


def cuda_device_count() -> int:
    """Count CUDA devices through the driver's own library; 0 where there is none."""
    return len(cards())


@cache
def cards() -> tuple[Card, ...]:
    """List the CUDA devices that programs started here may use, in torch's order."""
    for library in ("libcuda.so.1", "libcuda.so", "nvcuda.dll"):
        try:
            cuda = ctypes.CDLL(library)
        except OSError:
            continue
        count = ctypes.c_int(0)
        if cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0:
            return tuple(_card(cuda, index) for index in range(count.value))
    return ()


def with_free_memory(found: Sequence[Card], listing: str) -> tuple[Device, ...]:
    """Join the driver's devices with nvidia-smi's free memory by their ids.

    nvidia-smi lists every card, in its own order, whatever CUDA_VISIBLE_DEVICES says, so numbers cannot be compared.
    A device that it does not list counts as empty.

    Args:
        found: the driver's devices.
        listing: lines "uuid, free MiB".
    """
    rows = (line.partition(",") for line in listing.split("\n") if "," in line)
    free = {name.strip(): float(size) for name, _, size in rows if size.strip().replace(".", "", 1).isdigit()}
    return tuple(
        Device(
            f"cuda:{index}",
            card.title,
            int(free[card.uuid]) << 20 if card.uuid in free else card.total_bytes,
            card.total_bytes,
            card.bytes_per_second,
        )
        for index, card in enumerate(found)
    )


def hub_cache(environment: Mapping[str, str] | None = None) -> Path:
    """Return the folder where hub downloads are kept."""
    environment = os.environ if environment is None else environment
    if folder := environment.get("HF_HUB_CACHE"):
        return Path(folder).expanduser()
    cache_home = environment.get("XDG_CACHE_HOME") or "~/.cache"
    home = environment.get("HF_HOME") or f"{cache_home}/huggingface"
    return Path(home).expanduser() / "hub"


def model_folder(ref: str, revision: str | None = None) -> Path | None:
    """Return where a model's files are on this machine: its own folder or its hub snapshot; None where they are not."""
    return Path(ref) if os.path.isdir(ref) else hub_folder(ref, revision=revision)


def hub_folder(ref: str, environment: Mapping[str, str] | None = None, revision: str | None = None) -> Path | None:
    """Return the local snapshot of a hub model whose weights are all there, or None."""
    snapshot = hub_snapshot(ref, environment, revision)
    return snapshot if snapshot and has_weights(snapshot) else None


def hub_snapshot(ref: str, environment: Mapping[str, str] | None = None, revision: str | None = None) -> Path | None:
    """Return the local snapshot of a hub model, whatever of it has been downloaded, or None."""
    folder = hub_cache(environment) / f"models--{ref.replace('/', '--')}"
    named = folder / "refs" / (revision or "main")
    try:
        commit = named.read_text(encoding="utf-8").strip() if os.path.isfile(named) else revision
    except (OSError, UnicodeDecodeError):
        commit = revision
    snapshot = folder / "snapshots" / commit if commit else None
    return snapshot if snapshot and os.path.isdir(snapshot) else None


def is_hub_offline() -> bool:
    """Return whether the user wants nothing to be asked of the hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


@cache
def hub_problem() -> str | None:
    """Return why the hub cannot be reached, asked once; None where it can, or where only its own client can tell.

    That client tries again for half a minute before it says so.
    """
    if is_hub_offline():
        return None
    import ssl  # these three take longer than all else here
    from urllib.error import HTTPError, URLError
    from urllib.request import Request, urlopen

    address = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    try:
        urlopen(Request(address, method="HEAD"), timeout=10).close()
    except HTTPError:
        return None  # it answers
    except URLError as error:
        is_unclear = isinstance(error.reason, ssl.SSLError)  # its client may trust other certificates
        return None if is_unclear else f"{address}: {getattr(error.reason, 'strerror', None) or error.reason}"
    except (OSError, ValueError) as error:
        return f"{address}: {error}"
    return None


def has_weights(folder: Path) -> bool:
    """Whether a folder holds safetensors weights, with every shard that its index names."""
    try:
        return bool(weight_files(folder))
    except LoadError:
        return False


def use_threads(count: int) -> None:
    """Let this process compute with so many threads.

    Raises:
        UsageError: there are fewer processors.
    """
    available = os.cpu_count() or 1
    if count > available:
        raise UsageError(f"--threads {count}: this machine has {available} processors", help="leave it out for all")
    os.environ["OMP_NUM_THREADS"] = str(count)  # read when torch is imported
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(count)


def be_nice() -> None:
    """Let all else on this machine go first, and use half of its processors, unless it was said how many.

    Raises:
        UsageError: its system has no such priorities.
    """
    if not hasattr(os, "nice"):
        raise UsageError("--nice: this system has no such priorities", help="--threads N leaves processors alone")
    os.nice(_NICE)
    if "OMP_NUM_THREADS" not in os.environ:
        use_threads(max(1, (os.cpu_count() or 1) // 2))


def _cpu() -> Device:
    total = free = 0
    info = Path("/proc/meminfo")
    if info.is_file():
        fields = dict(line.split(":", 1) for line in info.read_text().split("\n") if ":" in line)
        total = int(fields["MemTotal"].split()[0]) * 1024
        free = int(fields.get("MemAvailable", fields["MemTotal"]).split()[0]) * 1024
    elif hasattr(os, "sysconf"):
        total = free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = container_limit(Path("/sys/fs/cgroup"))
    if limit is not None:
        total, free = min(total, limit.total_bytes), min(free, limit.free_bytes)
    return Device("cpu", f"{os.cpu_count()} cores", free, total)


@dataclass(frozen=True)
class Limit:
    """What a container may use of its host's memory."""

    total_bytes: int
    free_bytes: int


def container_limit(folder: Path) -> Limit | None:
    """Read the memory limit of a container (cgroup version 2), or None where there is none."""
    try:
        total = int((folder / "memory.max").read_text())  # "max" where unlimited
        return Limit(total, max(0, total - int((folder / "memory.current").read_text())))
    except (OSError, ValueError):
        return None


def _card(cuda: ctypes.CDLL, index: int) -> Card:
    device = ctypes.c_int(0)
    name = ctypes.create_string_buffer(100)
    raw = (ctypes.c_ubyte * 16)()
    total = ctypes.c_size_t(0)
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceGetUuid(ctypes.byref(raw), device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(total), device)
    clock, width, major, minor = (
        _attribute(cuda, number, device) for number in (_MEMORY_CLOCK_RATE, _MEMORY_BUS_WIDTH, _MAJOR, _MINOR)
    )  # in kHz and bits
    speed = 2 * 1000 * clock * width // 8  # memory moves data twice a beat
    title = name.value.decode(errors="replace")
    return Card(f"GPU-{uuid.UUID(bytes=bytes(raw))}", title, total.value, speed, (major, minor))


def _attribute(cuda: ctypes.CDLL, number: int, device: ctypes.c_int) -> int:
    found = ctypes.c_int(0)
    cuda.cuDeviceGetAttribute(ctypes.byref(found), number, device)
    return found.value


def _ask_nvidia_smi() -> str:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    query = [tool, "--query-gpu=uuid,memory.free", "--format=csv,noheader,nounits"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
