"""Rounds of a fuzzer: each has a seed of its own, and the fuzzer ends by the clock."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator

_SECONDS = 10.0


def rounds() -> Iterator[tuple[int, random.Random]]:
    """Yield (seed, random numbers of it) until the time is up: at least one round.

    `FLOWINFER_FUZZ_SECONDS` says how long, `FLOWINFER_FUZZ_SEED` where the seeds begin.
    """
    end = time.monotonic() + float(os.environ.get("FLOWINFER_FUZZ_SECONDS", _SECONDS))
    seed = int(os.environ.get("FLOWINFER_FUZZ_SEED", "0"))
    while True:
        yield seed, random.Random(seed)
        seed += 1
        if time.monotonic() > end:
            return
