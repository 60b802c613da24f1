"""One replica: a process that runs a plan's steps for questions that come on standard input, and tells on its output.

It ends when its input ends: whoever asks has then gone, or needs it no more.
"""

from __future__ import annotations

import gc
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, Any, Generic, Protocol, TypeVar

from flowinfer.engine.base import Observer
from flowinfer.errors import FlowInferError
from flowinfer.output.secrets import learn_environment
from flowinfer.runs.answering import Answering, Stepped, Task
from flowinfer.runs.replicas import wire
from flowinfer.runs.run_on import goes_on
from flowinfer.runs.store import record_line
from flowinfer.startup import GARBAGE_OBJECTS, STARTUP

_TOKENS_EVERY_SECONDS = 0.25
_BEAT_SECONDS = 5.0
"""Between signs of life where there are no tokens."""


A = TypeVar("A")
M = TypeVar("M")


class Program(Protocol):
    """What a replica's process does."""

    def run(self) -> None:
        """Answer until nobody asks any more."""

    @property
    def tell(self) -> Callable[[Any], None]:
        """Return what tells whoever asks; every program's messages have `wire.Failed`."""


def main(made: Callable[[IO[bytes], IO[bytes], Callable[[], None]], Program]) -> None:
    """Be a replica until standard input ends.

    Args:
        made: makes it; see `Replica`.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported
    STARTUP.is_command = True
    gc.set_threshold(GARBAGE_OBJECTS)
    learn_environment(os.environ)
    tells = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what libraries print is no message
    replica = made(sys.stdin.buffer, tells, lambda: os._exit(0))
    try:
        replica.run()
        code = 0
    except FlowInferError as error:
        replica.tell(wire.Failed(error=type(error).__name__, message=error.message, help=error.help))
        code = error.exit_code
    except BaseException:  # a bug of ours: whoever asks shows it
        replica.tell(wire.Failed(error="", message=traceback.format_exc()))
        code = 1
    sys.stderr.flush()
    os._exit(code)  # nothing is kept here that a destructor would save


class Talk(Generic[A, M]):
    """What a replica is asked and tells; see `Replica`.

    Args:
        read: reads a line that it is asked.
        line_of: writes one that it tells.
    """

    def __init__(
        self,
        asks: IO[bytes],
        tells: IO[bytes],
        leave: Callable[[], None],
        read: Callable[[bytes], A],
        line_of: Callable[[M | wire.Failed], bytes],
    ) -> None:
        self._asks, self._tells, self._leave, self._read, self._line_of = asks, tells, leave, read, line_of
        self._lock = threading.Lock()

    def first(self) -> A | None:
        """Wait for what is asked first; None: nobody asks."""
        line = self._asks.readline()
        return self._read(line) if line else None

    def listen(self, take: Callable[[A], None], over: Callable[[], None]) -> None:
        """Take what is asked further, in a thread of its own.

        Args:
            over: is called when nobody asks any more, before all is left.
        """

        def hear() -> None:
            try:
                for line in self._asks:
                    take(self._read(line))
            except Exception:  # a bug of ours: whoever asks shows it
                self.tell(wire.Failed(error="", message=traceback.format_exc()))
            over()
            self._leave()

        threading.Thread(target=hear, daemon=True).start()

    def tell(self, message: M | wire.Failed) -> None:
        """Tell whoever asks, whole, whichever thread tells it."""
        left = memoryview(self._line_of(message))
        try:
            with self._lock:
                while left:
                    left = left[self._tells.write(left) :]
        except OSError:  # nobody hears it
            self._leave()


class Replica:
    """Answers the questions of one run.

    Args:
        asks: lines of `wire`, the first of which is a `Start`.
        tells: takes lines, unbuffered.
        leave: ends all, whatever is being computed, once nobody asks any more.
    """

    def __init__(self, asks: IO[bytes], tells: IO[bytes], leave: Callable[[], None]) -> None:
        self._talk = Talk(asks, tells, leave, wire.asked, wire.line_of)
        self.tell = self._talk.tell
        self._came: queue.SimpleQueue[wire.Ask | None] = queue.SimpleQueue()
        self._open: dict[Task, wire.Ask] = {}
        """What is under way, and how it was asked."""

    def run(self) -> None:
        """Answer until nobody asks any more.

        Raises:
            LoadError, MemoryShort, RunError, DeviceLost: it cannot go on.
        """
        start = self._talk.first()
        if start is None:
            return
        assert isinstance(start, wire.Start), "the first message"
        self._talk.listen(self._take, lambda: self._came.put(None))
        with closing(_Teller(self)) as teller:
            self._answer(_answering(start, teller))

    def _answer(self, answering: Answering) -> None:
        self.tell(wire.Ready())
        steps: dict[Task, list[tuple[str, bool]]] = {}
        for event in answering.run(self._source()):
            if isinstance(event, Stepped):
                steps.setdefault(event.task, []).append((event.shared, event.is_fresh))
                continue
            needed, broken = answering.needed(event.plan), answering.broken
            done = wire.Done(
                number=self._open[event.task].number,
                plan=event.plan,
                steps=tuple(steps.pop(event.task, ())),
                broken={name: broken[name] for name in needed if name in broken},
                goes_on=goes_on(event.record),
            )
            self.tell(wire.Reply(done, record_line(event.record), event.record))
            if event.is_last:
                del self._open[event.task]

    def _take(self, message: wire.Start | wire.Ask) -> None:
        assert isinstance(message, wire.Ask), "there is one start"
        self._came.put(message)

    def _source(self) -> Iterator[Task | None]:
        """Yield questions as they come; None where there is none now and others are under way."""
        while True:
            try:
                ask = self._came.get(block=not self._open)
            except queue.Empty:
                yield None
                continue
            if ask is None:
                return
            task = Task(ask.question, ask.plans, ask.dataset)
            self._open[task] = ask
            yield task


class _Teller(Observer):
    """Passes on what a run's display shows; tokens are counted together for a moment, and none are a sign of life."""

    def __init__(self, replica: Replica) -> None:
        self._tell = replica.tell
        self._tokens = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._count, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Tell nothing more."""
        self._is_over.set()
        self._thread.join()

    def model_loading(self, name: str, device: str) -> None:
        self._tell(wire.Loading(name=name, device=device))

    def model_loaded(self, name: str, seconds: float) -> None:
        self._tell(wire.Loading(name=name, seconds=seconds))

    def notice(self, message: str) -> None:
        self._tell(wire.Notice(text=message))

    def batch_halved(self, batch: int) -> None:
        self.notice(f"memory is short, going on with batch {batch}")

    def tokens_emitted(self, count: int) -> None:
        self._tokens += count

    def _count(self) -> None:
        """Tell how many tokens came in a moment, and now and then that none did."""
        told, num_silent = 0, 0
        while not self._is_over.wait(_TOKENS_EVERY_SECONDS):
            count = self._tokens - told
            num_silent += 1
            if count or num_silent * _TOKENS_EVERY_SECONDS >= _BEAT_SECONDS:
                self._tell(wire.Tokens(count=count))
                told, num_silent = told + count, 0


def _answering(start: wire.Start, observer: Observer) -> Answering:
    """Return what answers questions of the plans."""
    from flowinfer.engine.decoders import Decoders
    from flowinfer.engine.models import ModelPool
    from flowinfer.engine.patience import Patience
    from flowinfer.planning.merge import merge
    from flowinfer.runs.cache import DiskStepCache

    plans, folder = wire.read_plans(start.plans), start.cache
    return Answering(
        plans,
        merge(plans),
        {(plan, dataset): name for plan, dataset, name in start.runs},
        None if folder is None else lambda run: DiskStepCache(Path(folder), run),
        Decoders(ModelPool(), observer, start.batch, start.engine, cpu_bytes=start.cpu_bytes),
        observer,
        patience=(lambda shared: Patience(has_answer=False)) if start.breaks_steps else None,
    )


if __name__ == "__main__":
    main(Replica)
