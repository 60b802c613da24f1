"""A way between a head and who asks it that is late, breaks messages into pieces, and is cut."""

from __future__ import annotations

import random
import socket
import threading
import time
from contextlib import suppress


class Way:
    """Passes bytes on between a port of its own and another.

    Args:
        port: of the head.
        seconds: that bytes take each way.
        most: bytes that are passed on at once, at most; a seeded random number up to that.
        cuts: for each connection in turn, after how many bytes of the head it is cut; those after them stand.
    """

    def __init__(self, port: int, *, seconds: float = 0.0, most: int = 1 << 16, cuts: tuple[int, ...] = ()) -> None:
        self._to, self._seconds, self._most, self._cuts = port, seconds, most, list(cuts)
        self.num_cut = 0
        self._draw = random.Random(7)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        """End all connections."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._end(*self._open)
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                return
            self._open += [near, far]
            left = self._cuts.pop(0) if self._cuts else None
            for one, other, cut in ((near, far, None), (far, near, left)):
                thread = threading.Thread(target=self._pass_on, args=(one, other, cut), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _pass_on(self, one: socket.socket, other: socket.socket, left: int | None) -> None:
        with suppress(OSError):
            while part := one.recv(self._draw.randint(1, self._most)):
                if self._seconds:
                    time.sleep(self._seconds)  # what the way is: late
                if left is not None and len(part) >= left:
                    other.sendall(part[:left])
                    self.num_cut += 1
                    break
                other.sendall(part)
                left = None if left is None else left - len(part)
        self._end(one, other)

    def _end(self, *connections: socket.socket) -> None:
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
