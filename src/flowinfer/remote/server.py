"""A head's door: who may come, and a thread for each who has; what clients ask is answered by a `Head`.

It opens before the model is loaded, so that an address that is taken is told at once, and who comes meanwhile is told
to wait. A connection that ends takes its rows with it.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from flowinfer.remote.wire import BEAT_SECONDS, Wire, WireError, welcome

if TYPE_CHECKING:
    from flowinfer.remote.head import Head

MOST_CONNECTIONS = 64
"""Of clients that know the key; so many others may be about to show it."""
_LOOK_SECONDS = 0.2
"""How often the listener looks whether it is over."""
_END_SECONDS = 5.0
"""Longest that the end waits for clients' threads."""


class HeadServer:
    """Serve one model.

    Args:
        key: who connects must know it; b"" = anybody may.
        say: is told who comes, goes and is refused.
    """

    def __init__(self, key: bytes, *, say: Callable[[str], None] = lambda _: None) -> None:
        self._key, self._say = key, say
        self._head: Head | None = None
        self._wires: set[Wire] = set()
        self._strangers: dict[Wire, None] = {}
        """Those of `_wires` that have not shown the key yet, the first first."""
        self._listener: socket.socket | None = None
        self._at_work: dict[Wire, float] = {}
        """Connections of which a question is being answered, and since when."""
        self._beats, self._is_closed = threading.Lock(), threading.Event()
        self._threads = set[threading.Thread]()
        self._is_served = self._is_over = False

    def listen(self, host: str, port: int) -> tuple[str, int]:
        """Take an address and return it; port 0 = any that is free.

        Raises:
            OSError: it cannot be had.
        """
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        self._listener = socket.create_server(address[:2], family=family)
        self._listener.settimeout(_LOOK_SECONDS)
        own = self._listener.getsockname()
        return str(own[0]), int(own[1])

    def hold(self, head: Head) -> None:
        """Answer by a head from now on; until then clients are told that it is being loaded."""
        self._head = head

    def serve(self) -> None:
        """Serve until `close`; `listen` must have been called."""
        assert self._listener is not None, "listen comes before serve"
        self._is_served = True
        threading.Thread(target=self._beat, daemon=True).start()
        with self._listener:
            self._accept(self._listener)

    def close(self) -> None:
        """Stop listening and end all connections."""
        self._is_over = True
        self._is_closed.set()
        if (
            self._listener is not None and not self._is_served
        ):  # else who accepts closes it: its number may be another's
            self._listener.close()
        for wire in list(self._wires):
            wire.close()
        until = time.monotonic() + _END_SECONDS
        for thread in self._threads - {threading.current_thread()}:  # Python must not end below what a group still does
            thread.join(max(0.0, until - time.monotonic()))

    def _accept(self, listener: socket.socket) -> None:
        while not self._is_over:
            try:
                connection, address = listener.accept()
            except TimeoutError:
                continue
            except OSError as error:  # too many open files, or a client that was gone at once
                self._say(f"nobody can come: {error.strerror}")
                time.sleep(_LOOK_SECONDS)
                continue
            who = f"{address[0]}:{address[1]}"
            if len(self._wires) - len(self._strangers) >= MOST_CONNECTIONS:
                self._say(f"{who} is turned away: {MOST_CONNECTIONS} are connected")
                connection.close()
                continue
            if len(self._strangers) >= MOST_CONNECTIONS:  # who knows the key shows it at once
                first = next(iter(self._strangers))
                self._forget(first)
                first.close()
            wire = Wire(connection)
            self._wires.add(wire)
            self._strangers[wire] = None
            thread = threading.Thread(target=self._attend, args=(wire, who), daemon=True)
            self._threads.add(thread)
            thread.start()

    def _attend(self, wire: Wire, who: str) -> None:
        """Answer one client until it goes."""
        head = self._head
        try:
            theirs = welcome(wire, self._key, None if head is None else head.about)
            self._strangers.pop(wire, None)
            if head is not None:
                self._say(f"{who} has come, flowinfer {str(theirs.get('version', '?'))[:40]!a}")
                wire.trust(seconds=None)
                self._answer(wire, head)
        except WireError as error:
            if not self._is_over:
                self._say(f"{who} has gone: {error}")
        finally:
            self._forget(wire)
            wire.close()
            self._threads.discard(threading.current_thread())

    def _answer(self, wire: Wire, head: Head) -> None:
        """Answer what one client asks; ends by a `WireError`."""
        client = head.client()
        try:
            while True:
                question, _ = wire.receive_text()
                start = time.perf_counter()
                with self._working(wire, start):
                    answer = head.answer(question, client)
                wire.send(answer.head | {"seconds": round(time.perf_counter() - start, 6)}, answer.body)
                if answer.beside is not None and client.direct is not None:
                    client.direct.send(answer.beside)
                elif "begins" in answer.head:
                    client.direct = head.begin_direct(wire)
                if head.lost:
                    self._say(f"error: the device has failed: {head.lost}")
                    self.close()
        finally:
            head.forget(client)

    @contextmanager
    def _working(self, wire: Wire, start: float) -> Iterator[None]:
        """Let a client be told meanwhile that its question is being answered."""
        with self._beats:
            self._at_work[wire] = start
        try:
            yield
        finally:
            with self._beats:
                del self._at_work[wire]

    def _beat(self) -> None:
        """Tell clients that wait for long that this process stands not still."""
        while not self._is_closed.wait(BEAT_SECONDS):
            with self._beats:
                now = time.perf_counter()
                for wire in [wire for wire, start in self._at_work.items() if now - start > BEAT_SECONDS / 2]:
                    wire.tell_of_work()

    def _forget(self, wire: Wire) -> None:
        self._strangers.pop(wire, None)
        self._wires.discard(wire)
