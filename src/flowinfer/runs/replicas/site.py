"""Where replicas run and how one ends, whatever it is asked: a run's questions, or those that a server is sent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from pydantic import BaseModel

from flowinfer import errors
from flowinfer.errors import FlowInferError
from flowinfer.runs.replicas.wire import Failed, Said

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
