"""Work that waits for another process, in a thread of its own: while it waits, whoever began it does something else.

A coroutine that may wait anywhere. Its thread runs only while `Aside.go_on` waits for it, so of the two only one ever
works, and nothing that they share needs a lock; what waits inside it says so by `waiting()`. A lock that others may
hold while they wait is to be taken and given back inside of that.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

Found = TypeVar("Found")

_here = threading.local()


class Aside(Generic[Found]):
    """A thread that does one piece of work after the other."""

    def __init__(self) -> None:
        self._work: Callable[[], Found] | None = None
        self._found: Found | None = None
        self._error: BaseException | None = None
        self._floor, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._is_in = threading.Event()
        """Cleared while the work waits for something."""
        self._is_in.set()
        self._is_over = False
        self._thread: threading.Thread | None = None

    @property
    def is_idle(self) -> bool:
        """Return whether it has nothing to do."""
        return self._work is None

    def begin(self, work: Callable[[], Found]) -> None:
        """Give it something to do, which `go_on` does."""
        self._work = work
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="aside", daemon=True)
            self._thread.start()

    def go_on(self) -> bool:
        """Let the work run until it waits for something; return whether it has ended."""
        if not self._is_in.is_set():
            return False
        self._floor.release()
        try:
            self._back.acquire()
        except BaseException:  # an interrupt: what is being worked on comes to rest first
            self._back.acquire()
            raise
        return self.is_idle

    def found(self) -> Found:
        """Return what the work that has ended returned, or raise what it raised."""
        error, self._error = self._error, None
        if error is not None:
            raise error
        found, self._found = self._found, None
        return found  # type: ignore[return-value]  # None only where that is what it returned

    def wait(self) -> None:
        """Wait until the work can go on."""
        self._is_in.wait()

    def end(self) -> None:
        """End the thread; work that waits for something ends by a `GeneratorExit` once it has come."""
        self._is_over = True
        self._floor.release()

    def _run(self) -> None:
        _here.aside = self
        while True:
            self._floor.acquire()
            if self._is_over:
                return
            assert self._work is not None, "only what has begun goes on"
            try:
                self._found = self._work()
            except BaseException as error:  # it is raised where the work was begun
                self._error = error
            self._work = None
            self._back.release()

    def _leave(self) -> None:
        if self._is_over:
            raise GeneratorExit
        self._is_in.clear()
        self._back.release()

    def _return(self) -> None:
        self._is_in.set()
        self._floor.acquire()
        if self._is_over:
            raise GeneratorExit


@contextmanager
def waiting() -> Iterator[None]:
    """Let others work while something is waited for that another process does; for any thread, aside or not."""
    aside: Aside[object] | None = getattr(_here, "aside", None)
    if aside is None:
        yield
        return
    aside._leave()
    _here.aside = None  # what waits inside of a wait is one wait
    try:
        yield
    finally:
        _here.aside = aside
        aside._return()
