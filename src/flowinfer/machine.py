"""What this machine has: devices, free memory, the local hub cache. Never imports torch."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Device:
    """A place where models can live."""

    name: str
    """`cpu` or `cuda:N`."""
    title: str
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Machine:
    """The devices that a plan may use, fastest first."""

    devices: tuple[Device, ...]


@cache
def this_machine() -> Machine:
    """Look at this machine: GPUs by nvidia-smi, the CPU's memory by /proc/meminfo."""
    return Machine((*_gpus(), _cpu()))


@cache
def cuda_device_count() -> int:
    """Count CUDA devices through the driver's own library; 0 where there is none."""
    for library in ("libcuda.so.1", "libcuda.so", "nvcuda.dll"):
        try:
            cuda = ctypes.CDLL(library)
        except OSError:
            continue
        count = ctypes.c_int(0)
        if cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0:
            return count.value
    return 0


def hub_cache(environment: Mapping[str, str] | None = None) -> Path:
    """Return the folder where hub downloads are kept."""
    environment = os.environ if environment is None else environment
    if folder := environment.get("HF_HUB_CACHE"):
        return Path(folder)
    home = environment.get("HF_HOME") or str(Path.home() / ".cache" / "huggingface")
    return Path(home) / "hub"


def hub_folder(ref: str, environment: Mapping[str, str] | None = None, revision: str | None = None) -> Path | None:
    """Return the local snapshot of a hub model whose weights are there, or None."""
    folder = hub_cache(environment) / f"models--{ref.replace('/', '--')}"
    named = folder / "refs" / (revision or "main")
    commit = named.read_text(encoding="utf-8").strip() if named.is_file() else revision
    snapshot = folder / "snapshots" / commit if commit else None
    if snapshot and snapshot.is_dir() and any(snapshot.glob("*.safetensors")):
        return snapshot
    return None


def _cpu() -> Device:
    total = free = 0
    info = Path("/proc/meminfo")
    if info.is_file():
        fields = dict(line.split(":", 1) for line in info.read_text().split("\n") if ":" in line)
        total = int(fields["MemTotal"].split()[0]) * 1024
        free = int(fields.get("MemAvailable", fields["MemTotal"]).split()[0]) * 1024
    elif hasattr(os, "sysconf"):
        total = free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Device("cpu", f"{os.cpu_count()} cores", free, total)


def _gpus() -> tuple[Device, ...]:
    if not cuda_device_count() or not (tool := shutil.which("nvidia-smi")):
        return ()
    query = [tool, "--query-gpu=index,name,memory.free,memory.total", "--format=csv,noheader,nounits"]
    try:
        text = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(_gpu(line) for line in text.split("\n") if line.strip())


def _gpu(line: str) -> Device:
    index, name, free, total = (part.strip() for part in line.split(","))
    return Device(f"cuda:{index}", name, int(float(free)) << 20, int(float(total)) << 20)
