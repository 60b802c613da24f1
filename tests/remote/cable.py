"""A cable between two networks of this machine: packets that are late, lost, or vanish while it is cut.

Its ends are two devices of the kernel (TUN), whose packets this process passes on; so the kernel's own TCP sends again
what was lost, as it does between hosts. Needs root and Linux.
"""

from __future__ import annotations

import fcntl
import heapq
import os
import random
import select
import struct
import threading
import time
from contextlib import suppress

_SET_NAME = 0x400454CA
_IS_TUN, _IS_PLAIN = 0x0001, 0x1000
"""Packets of IP, without a header of the device's own."""


class Cable:
    """Passes packets on between two devices, which it makes.

    Args:
        names: of the devices.
        seconds: that a packet takes.
        loss: share of the packets that are lost, drawn by a seed.
    Raises:
        OSError: this machine makes no such devices.
    """

    def __init__(self, names: tuple[str, str], *, seconds: float = 0.0, loss: float = 0.0) -> None:
        self.seconds, self.loss = seconds, loss
        self.is_cut = False
        self.num_lost = self.num_passed = 0
        self._draw = random.Random(7)
        self._ends = [_device(name) for name in names]
        self._woken, self._wakes = os.pipe()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        """Let go of the devices, which ends them."""
        os.close(self._wakes)
        self._thread.join()
        for end in (*self._ends, self._woken):
            os.close(end)

    def _run(self) -> None:
        under_way: list[tuple[float, int, int, bytes]] = []
        number = 0
        while True:
            left = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
            ready, _, _ = select.select([*self._ends, self._woken], [], [], left)
            if self._woken in ready:
                return
            for end in ready:
                packet = os.read(end, 1 << 16)
                if self.is_cut or self._draw.random() < self.loss:
                    self.num_lost += 1
                    continue
                other = self._ends[1 - self._ends.index(end)]
                number += 1
                heapq.heappush(under_way, (time.monotonic() + self.seconds, number, other, packet))
            while under_way and under_way[0][0] <= time.monotonic():
                _, _, end, packet = heapq.heappop(under_way)
                with suppress(OSError):  # a device that is not up yet
                    os.write(end, packet)
                    self.num_passed += 1


def _device(name: str) -> int:
    made = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(made, _SET_NAME, struct.pack("16sH14x", name.encode(), _IS_TUN | _IS_PLAIN))
    except OSError:
        os.close(made)
        raise
    return made
