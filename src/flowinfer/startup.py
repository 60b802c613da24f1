"""What a process waits for until its first token: one clock that all parts report to. Imports nothing heavy."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NEEDLESS = ("scipy", "sklearn", "pandas", "torchvision", "torchaudio")
"""What transformers imports where it is installed, for losses, drafts, pictures and sounds that no run asks for."""


GARBAGE_OBJECTS = 200_000
"""Objects between looks for garbage: imports and tables make millions that stay, and Python's 700 costs a sixth."""
_LEAST_SECONDS = 1e-3
"""What takes less is not told."""


@dataclass
class Part:
    """Something that was waited for; parts may overlap, where several things are done at once."""

    part: str
    """What was done: import, devices, weights, tokenizer, check, compile, ..."""
    of: str
    """To what: a package, a model, a step."""
    begin: float
    """Seconds since the process began."""
    seconds: float | None = None
    """None = still at it."""


class Startup:
    """The seconds of one process until its first token; what comes later is not noted."""

    def __init__(self, age: float = 0.0) -> None:
        """Begin, `age` seconds after the process did."""
        self._origin = time.monotonic() - age
        self._turn = threading.Lock()
        self._parts: list[Part] = []
        self._listener: Callable[[str], None] | None = None
        self.seconds: float | None = None
        """Until the first token; None before it."""
        self.is_command = False
        """Whether the process is the command line's own, so that nobody else's imports matter."""
        self._has_hidden = False
        """Whether transformers was imported, or will be, without packages that are hidden from it."""

    @contextmanager
    def waiting_for(self, part: str, of: str = "") -> Iterator[None]:
        """Note how long a block takes."""
        if self.seconds is not None:
            yield
            return
        noted = Part(part, of, self._now())
        with self._turn:
            self._parts.append(noted)
        self._tell()
        try:
            yield
        finally:
            noted.seconds = self._now() - noted.begin
            self._tell()

    @contextmanager
    def without(self, *packages: str) -> Iterator[None]:
        """Let what is imported inside find packages absent that nothing has imported yet; in a command's process.

        Not where transformers was imported before, as by a plug-in: it has noted what there is, and relies on it.
        """
        is_first = not self._has_hidden and "transformers" not in sys.modules
        self._has_hidden = self.is_command and (self._has_hidden or is_first)
        hidden = [name for name in packages if name not in sys.modules] if self._has_hidden else []
        sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None = absent, for import and find_spec
        try:
            yield
        finally:
            for name in hidden:
                sys.modules.pop(name, None)

    def done(self, part: str) -> None:
        """Note that a part took all the time since the process began."""
        if self.seconds is None:
            with self._turn:
                self._parts.append(Part(part, "", 0.0, self._now()))

    def first_token(self) -> None:
        """Note the first token; later ones change nothing."""
        if self.seconds is None:
            self.seconds = self._now()
            self._tell()

    def listen(self, listener: Callable[[str], None] | None) -> None:
        """Let somebody hear what is waited for, whenever that changes; an empty text = nothing any more."""
        self._listener = listener

    @property
    def parts(self) -> tuple[Part, ...]:
        """Return what has been waited for, in the order in which it began."""
        with self._turn:
            return tuple(sorted(self._parts, key=lambda one: one.begin))

    def to_json(self) -> dict[str, Any]:
        """Return the clock as plain data: seconds until the first token, and the parts."""
        parts = [
            {"part": one.part, "of": one.of, "begin": round(one.begin, 3), "seconds": round(one.seconds, 3)}
            for one in self.parts
            if one.seconds is not None and one.seconds >= _LEAST_SECONDS
        ]
        return {"seconds": None if self.seconds is None else round(self.seconds, 3), "parts": parts}

    def _now(self) -> float:
        return time.monotonic() - self._origin

    def _tell(self) -> None:
        if self._listener is not None:
            now = [f"{one.part} {one.of}".strip() for one in self.parts if one.seconds is None]
            self._listener("" if self.seconds is not None else ", ".join(dict.fromkeys(now)))


def _age() -> float:
    """Return how long ago this process began, where the system tells it; its resolution is 10 ms."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        begun = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - begun)
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0


STARTUP = Startup(_age())
"""This process's."""
