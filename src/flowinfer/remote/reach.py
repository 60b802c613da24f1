"""What a head elsewhere says of itself and how far away it is, without anything being loaded."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from flowinfer.remote.wire import Wire, WireError, call

CANDIDATE_BYTES = 512
"""What comes back of a row whose group settles by candidates."""
ID_BYTES = 20
"""What goes there of a row that has emitted a token, about."""
_SECONDS = 2.0
_TRIES = 5
_LARGE = 1 << 20


@dataclass(frozen=True)
class Reached:
    """A head that answers."""

    about: dict[str, Any]
    round_trip: float
    """Seconds that the shortest message takes there and back, the best of some."""
    bytes_per_second: float
    """Of a long answer."""

    def seconds(self, num_bytes: int) -> float:
        """Return what a message takes whose answer has so many bytes."""
        return self.round_trip + num_bytes / self.bytes_per_second


def reach(host: str, port: int, key: bytes) -> Reached:
    """Connect to a head, hear what it is, and time messages of no size and of a large one.

    Raises:
        WireError: nobody is there, or it knows another key.
    """
    wire, about = call(host, port, key, seconds=_SECONDS)
    try:
        wire.trust(seconds=_SECONDS, most_body=_LARGE)
        short = min(_timed(wire, 0) for _ in range(_TRIES))
        long = min(_timed(wire, _LARGE) for _ in range(2))
    finally:
        wire.close()
    return Reached(about, short, _LARGE / max(long - short, 1e-6))


def _timed(wire: Wire, size: int) -> float:
    start = time.perf_counter()
    wire.send({"ask": "echo", "size": size})
    _, body = wire.receive()
    if len(body) != size:
        raise WireError("it does not answer what it is asked")
    return time.perf_counter() - start
