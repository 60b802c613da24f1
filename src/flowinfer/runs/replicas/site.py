"""Where replicas run and how one ends, whatever it is asked: a run's questions, or those that a server is sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from pydantic import BaseModel

from flowinfer import errors
from flowinfer.errors import FlowInferError
from flowinfer.runs.replicas.wire import Failed, Notice

M = TypeVar("M")

_SHOWN_BYTES = 80
"""Of a line that is no message."""
ANSWERS = "flowinfer.runs.replicas.worker"
"""The program that a replica of a run is."""
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


@dataclass(frozen=True)
class Loss:
    """A replica has ended, and what is to be done."""

    why: str
    """In words."""
    failure: Failed | None
    """What it has said of it, if anything."""
    is_started_again: bool
    """Else it is given up."""


Hear = Callable[[bytes | Gone], None]
"""Takes the lines that one replica says, from any thread, and last that it has gone."""


class Link(Protocol):
    """A replica that was started."""

    def send(self, message: BaseModel) -> None:
        """Say something to it; to one that has ended, nothing. It does not wait until that is heard."""

    def kill(self) -> None:
        """End it, whatever it does."""


@dataclass(eq=False, kw_only=True)
class Started:
    """A replica: whether it still says something, and whether it is worth another start."""

    index: int
    link: Link = field(init=False)
    has_been_ready: bool = False
    num_starts: int = 1
    """Since its last answer."""
    num_losses: int = 0
    """Starts after the first."""
    num_answered: int = 0
    failure: Failed | None = None
    """Why it is about to end, where it has said so."""
    num_silent: int = 0
    """Looks on end at which it had said nothing since the one before."""
    is_heard: bool = False
    """Whether it has said anything since it was started."""
    why: str = ""
    """Why it is being ended from here, if it is."""

    @property
    def name(self) -> str:
        """Return what it is called."""
        return f"replica {self.index + 1}"

    def begin(self, site: Site, program: str, hear: Hear, first: BaseModel) -> None:
        """Start it, or start it again, and say the first thing to it."""
        self.num_silent, self.is_heard, self.why = 0, False, ""
        try:
            self.link = site.begin(self.index, program, hear)
            self.link.send(first)
        except OSError as error:
            hear(Gone(f"no process can be started: {(error.strerror or str(error)).lower()}"))

    def hear(self, line: bytes, said: Callable[[bytes], M]) -> M | None:
        """Return what it has said, by what reads its messages; end one that has said what is none."""
        try:
            message = said(line)
        except ValueError:
            self.end(f"it has said what is no message: {line[:_SHOWN_BYTES].decode(errors='replace')!r}")
            return None
        self.num_silent = 0
        self.is_heard |= not isinstance(message, Notice)  # which whoever starts it says too
        return message

    def answered(self) -> None:
        """Note that it has answered a question."""
        self.num_answered += 1
        self.num_starts = 1

    def lose(self, how: str) -> Loss:
        """Note that it has ended; what it does not know the reason of is worth another start."""
        failure, self.failure = self.failure, None
        is_known = failure is not None and bool(failure.error)
        most = MOST_STARTS_LATER if self.has_been_ready else MOST_STARTS
        is_started_again = not is_known and self.num_starts < most
        self.num_starts += is_started_again
        self.num_losses += is_started_again
        why = failure.message if failure is not None and is_known else self.why or how
        return Loss(why, failure, is_started_again)

    def look(self) -> None:
        """End it if it says nothing any more: a process, or its host, that stands still."""
        self.num_silent += 1
        if self.num_silent == (MOST_SILENT if self.is_heard else MOST_SILENT_FIRST):
            self.end(f"it said nothing for {self.num_silent * LOOK_SECONDS:.0f} s")

    def end(self, why: str) -> None:
        """End it, whatever it does; once."""
        if not self.why:
            self.why = why
            self.link.kill()


class Site(Protocol):
    """Where replicas run."""

    num_replicas: int
    hosts: Sequence[str]
    """Of each replica, a name that its host alone has."""
    cpu_bytes: int
    """Of the host's memory, what each replica may count with for keys and values."""

    def begin(self, index: int, program: str, hear: Hear) -> Link:
        """Start a replica, in the place of one that has ended.

        Args:
            index: of the replica.
            program: a module of this package, which speaks in lines.
            hear: takes these lines as they are, and last that it has gone.
        """

    def close(self) -> None:
        """End all replicas, whatever they do, and give back what they ran on."""


class Notices:
    """What replicas have said that their user should know: once what several say, and again when one says it again."""

    def __init__(self) -> None:
        self._said: Counter[tuple[int, str]] = Counter()
        self._told: Counter[str] = Counter()

    def is_new(self, index: int, text: str) -> bool:
        """Return whether what a replica says is to be told."""
        self._said[index, text] += 1
        is_new = self._said[index, text] > self._told[text]
        self._told[text] += is_new
        return is_new


class ReplicaLost(RuntimeError):
    """A replica has met a bug of ours; its traceback is the message."""


def error_of(failure: Failed, name: str) -> Exception:
    """Return the error that a replica has ended with."""
    kind = getattr(errors, failure.error, None) if failure.error else None
    if isinstance(kind, type) and issubclass(kind, FlowInferError):
        return kind(f"{name}: {failure.message}", help=failure.help)
    return ReplicaLost(f"{name} has met a bug:\n{failure.message}")
