"""How long the packed engine takes to be ready: compiling two architectures, a graph per bucket, and all of it again.

    python benchmarks/cold_start.py [--size full] [--device cuda]

Two processes run the same: the first with an empty compile cache, the second with what the first left there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

import torch

from ours import packed_lock
from reporting import options
from shapes import build

_BUCKETS = ((1, 4), (7, 8), (30, 32), (120, 128))


def main() -> None:
    """Measure in child processes and print the table."""
    parser = options(__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--child", action="store_true", help="measure in this process")
    arguments = parser.parse_args()
    if arguments.child:
        measure(arguments.size, arguments.device, getattr(torch, arguments.dtype))
        return
    print("| compile cache | first step of Qwen + Yi, s | further buckets, s each |")
    print("|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as cache:
        folders = {"TORCHINDUCTOR_CACHE_DIR": cache, "TRITON_CACHE_DIR": f"{cache}/triton"}
        for name in ("empty", "warm"):
            shape = ["--size", arguments.size, "--device", arguments.device, "--dtype", arguments.dtype]
            command = [sys.executable, __file__, "--child", *shape]
            done = subprocess.run(command, env=os.environ | folders, capture_output=True, text=True, check=False)
            told = done.stdout.strip().split("\n")[-1] if done.returncode == 0 else f"failed: {done.stderr[-300:]}"
            print(f"| {name} | {told} |", flush=True)


def measure(size: str, device: str, dtype: torch.dtype) -> None:
    """Print the seconds of the first step and of each further bucket."""
    models = build(size, device, dtype, names=("Qwen", "Yi"))
    start = time.perf_counter()
    lock = packed_lock(models, 120, 64)
    seconds = []
    for rows, tile in _BUCKETS:
        lock.run(rows, tile)
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
    print(f"{seconds[0]:.1f} | {', '.join(f'{one:.2f}' for one in seconds[1:])}")


if __name__ == "__main__":
    main()
