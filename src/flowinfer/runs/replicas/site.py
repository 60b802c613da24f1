"""Where replicas run and how one ends, whatever it is asked: a run's questions, or those that a server is sent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from pydantic import BaseModel

from flowinfer import errors
from flowinfer.errors import FlowInferError
from flowinfer.runs.replicas.wire import Failed, Said

LOOK_SECONDS = 5.0
MOST_SILENT, MOST_SILENT_FIRST = 12, 60
"""Looks on end at which a replica has said nothing since the one before, until it is ended: once it has said anything,
and before. Looks and not seconds: where this process stands still, whoever is heard next is not to blame."""
MOST_STARTS, MOST_STARTS_LATER = 2, 10
"""Starts of a replica on end without an answer until it is given up: before it was ever ready, and after."""


@dataclass(frozen=True)
class Gone:
    """A replica has ended."""

    how: str
    """In words."""


Hear = Callable[[Said | Gone], None]
"""Takes what one replica says, from any thread."""


class Link(Protocol):
    """A replica that was started."""

    def send(self, message: BaseModel) -> None:
        """Say something to it; to one that has ended, nothing. It does not wait until that is heard."""

    def kill(self) -> None:
        """End it, whatever it does."""


@dataclass(eq=False, kw_only=True)
class Started:
    """A replica that was started, and whether it still says something."""

    link: Link = field(init=False)
    num_silent: int = 0
    """Looks on end at which it had said nothing since the one before."""
    is_heard: bool = False
    """Whether it has said anything since it was started."""
    why: str = ""
    """Why it is being ended from here, if it is."""

    def begin(self) -> None:
        """Note that it is started, or started again."""
        self.num_silent, self.is_heard, self.why = 0, False, ""

    def hear(self) -> None:
        """Note that it has said something."""
        self.num_silent, self.is_heard = 0, True

    def look(self) -> None:
        """End it if it says nothing any more: a process, or its host, that stands still."""
        self.num_silent += 1
        if self.num_silent == (MOST_SILENT if self.is_heard else MOST_SILENT_FIRST):
            self.end(f"it said nothing for {self.num_silent * LOOK_SECONDS:.0f} s")

    def end(self, why: str) -> None:
        """End it, whatever it does."""
        self.why = why
        self.link.kill()


class Site(Protocol):
    """Where replicas run."""

    num_replicas: int
    cpu_bytes: int
    """Of the host's memory, what each replica may count with for keys and values."""

    def start(self, index: int, hear: Hear) -> Link:
        """Start a replica; whatever it says is heard, and last that it has gone."""

    def close(self) -> None:
        """End all replicas, whatever they do, and give back what they ran on."""


class ReplicaLost(RuntimeError):
    """A replica has met a bug of ours; its traceback is the message."""


def error_of(failure: Failed, name: str) -> Exception:
    """Return the error that a replica has ended with."""
    kind = getattr(errors, failure.error, None) if failure.error else None
    if isinstance(kind, type) and issubclass(kind, FlowInferError):
        return kind(f"{name}: {failure.message}", help=failure.help)
    return ReplicaLost(f"{name} has met a bug:\n{failure.message}")
