"""Replicas as threads of this process: everything but the process is real."""

from __future__ import annotations

import os
import threading

from pydantic import BaseModel

from flowinfer.runs.replicas.site import Gone, Hear
from flowinfer.runs.replicas.wire import line_of
from flowinfer.runs.replicas.worker import Replica


class Thread:
    """A replica in a thread."""

    def __init__(self, hear: Hear) -> None:
        asked, asks = os.pipe()
        told, tells = os.pipe()
        self._asks = os.fdopen(asks, "wb", buffering=0)
        self.replica = threading.Thread(target=self._be, args=(asked, tells))
        self.reader = threading.Thread(target=self._read, args=(told, hear))
        for thread in (self.replica, self.reader):
            thread.start()

    def send(self, message: BaseModel) -> None:
        self._asks.write(line_of(message))

    def kill(self) -> None:
        self.end()

    def end(self) -> None:
        self._asks.close()

    def _be(self, asked: int, tells: int) -> None:
        with os.fdopen(asked, "rb") as source, os.fdopen(tells, "wb", buffering=0) as sink:
            Replica(source, sink, leave=lambda: None).run()

    def _read(self, told: int, hear: Hear) -> None:
        with os.fdopen(told, "rb") as source:
            for line in source:
                hear(line)
        hear(Gone("its thread has ended"))


class ThreadSite:
    """Threads of this process."""

    cpu_bytes = 1 << 30

    def __init__(self, num_replicas: int) -> None:
        self.num_replicas, self.hosts = num_replicas, ("",) * num_replicas
        self.threads: list[Thread] = []

    def begin(self, index: int, program: str, hear: Hear) -> Thread:
        self.threads.append(Thread(hear))
        return self.threads[-1]

    def close(self) -> None:
        for thread in self.threads:
            thread.end()
        for thread in self.threads:
            thread.replica.join()
            thread.reader.join()
