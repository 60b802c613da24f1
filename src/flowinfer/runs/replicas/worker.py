"""One replica: a process that runs a plan's steps for questions that come on standard input, and tells on its output.

It ends when its input ends: whoever asks has then gone, or needs it no more.
"""

from __future__ import annotations

import gc
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

from pydantic import BaseModel

from flowinfer.engine.base import NoCache, Observer
from flowinfer.errors import FlowInferError
from flowinfer.results import Question
from flowinfer.runs.replicas import wire
from flowinfer.startup import GARBAGE_OBJECTS, STARTUP

if TYPE_CHECKING:
    from flowinfer.engine.scheduler import Scheduler
    from flowinfer.engine.work import Asked

_TOKENS_EVERY_SECONDS = 0.25


class Program(Protocol):
    """What a replica's process does."""

    def run(self) -> None:
        """Answer until nobody asks any more."""

    def tell(self, message: BaseModel) -> None:
        """Tell whoever asks."""


def main(made: Callable[[IO[bytes], IO[bytes], Callable[[], None]], Program]) -> None:
    """Be a replica until standard input ends.

    Args:
        made: makes it; see `Replica`.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported
    STARTUP.is_command = True
    gc.set_threshold(GARBAGE_OBJECTS)
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


class Voice:
    """Says lines, each whole, whichever thread says it; see `Replica`."""

    def __init__(self, tells: IO[bytes], leave: Callable[[], None]) -> None:
        self._tells, self._leave = tells, leave
        self._lock = threading.Lock()

    def say(self, line: bytes) -> None:
        """Say a line."""
        left = memoryview(line)
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
        self._asks, self._leave = asks, leave
        self._voice = Voice(tells, leave)
        self._came: queue.SimpleQueue[wire.Ask | None] = queue.SimpleQueue()
        self._numbers: dict[Asked, int] = {}
        """What is under way, with the number that it was asked by."""
        self._chooses = False
        """Whether steps may be skipped."""

    def tell(self, message: BaseModel) -> None:
        """Tell whoever asks."""
        self._voice.say(wire.line_of(message))

    def run(self) -> None:
        """Answer until nobody asks any more.

        Raises:
            LoadError, MemoryShort, RunError, DeviceLost: it cannot go on.
        """
        first = self._asks.readline()
        if not first:
            return
        start = wire.asked(first)
        assert isinstance(start, wire.Start), "the first message"
        self._chooses = any(plan.selections for plan in wire.read_plans(start.plans))
        threading.Thread(target=self._hear, daemon=True).start()
        scheduler = _scheduler(start, _Teller(self))
        self.tell(wire.Ready())
        held: dict[Asked, list[wire.Ended]] = {}
        for finished in scheduler.run(self._source()):
            one, shared = finished.asked, finished.shared.id
            ended = wire.Ended(
                number=self._numbers[one],
                shared=shared,
                is_fresh=finished.is_fresh,
                result=one.results.get(shared),
                error=one.errors.get(shared),
                is_broken=shared in scheduler.broken,
                choices=_choices(one) if one.is_done else None,
            )
            held.setdefault(one, []).append(ended)
            if one.is_done or not self._chooses:  # what was chosen is told whole, so that it can be asked anew whole
                for message in held.pop(one):
                    self.tell(message)
            if one.is_done:
                del self._numbers[one]

    def _hear(self) -> None:
        try:
            for line in self._asks:
                message = wire.asked(line)
                assert isinstance(message, wire.Ask), "there is one start"
                self._came.put(message)
        except Exception:  # a bug of ours: whoever asks shows it
            self.tell(wire.Failed(error="", message=traceback.format_exc()))
        self._came.put(None)
        self._leave()

    def _source(self) -> Iterator[Asked | None]:
        """Yield questions as they come; None where there is none now and others are under way."""
        from flowinfer.engine.work import Asked
        from flowinfer.runs.experiment import majority

        while True:
            try:
                ask = self._came.get(block=not self._numbers)
            except queue.Empty:
                yield None
                continue
            if ask is None:
                return
            one = Asked(
                ask.question,
                _saying(ask.text),
                ask.dataset,
                list(ask.paths),
                dict.fromkeys(ask.wanted),
                dict(ask.results),
                errors=dict(ask.errors),
                noise_id=ask.noise_id,
                vote=majority,
            )
            self._numbers[one] = ask.number
            yield one


class _Teller(Observer):
    """Passes on what a run's display shows; tokens are counted together for a moment."""

    def __init__(self, replica: Replica) -> None:
        self._tell = replica.tell
        self._tokens, self._told = 0, time.monotonic()

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
        if time.monotonic() - self._told >= _TOKENS_EVERY_SECONDS:
            self._tell(wire.Tokens(count=self._tokens))
            self._tokens, self._told = 0, time.monotonic()


def _scheduler(start: wire.Start, observer: Observer) -> Scheduler:
    """Return a scheduler of the plans."""
    from flowinfer.engine.decoders import Decoders
    from flowinfer.engine.models import ModelPool
    from flowinfer.engine.patience import Patience
    from flowinfer.engine.scheduler import Caching, Scheduler
    from flowinfer.planning.merge import SharedStep, merge
    from flowinfer.runs.cache import DiskStepCache, member_order, step_key

    runs = {(plan, dataset): name for plan, dataset, name in start.runs}
    folder = Path(start.cache) if start.cache is not None else None

    def run_of(shared: SharedStep, asked: Asked) -> str:
        return runs.get((shared.owner, asked.dataset), "")

    def cache_of(shared: SharedStep, asked: Asked) -> DiskStepCache | NoCache:
        return DiskStepCache(folder, run_of(shared, asked)) if folder else NoCache()

    key = step_key if folder else lambda plan, step, prompts, question_id: ""
    return Scheduler(
        merge(wire.read_plans(start.plans)).steps,
        Decoders(ModelPool(), observer, start.batch, start.engine, cpu_bytes=start.cpu_bytes),
        Caching(cache_of, run_of, key, member_order),
        observer,
        patience=(lambda shared: Patience(has_answer=False)) if start.breaks_steps else None,
    )


def _choices(asked: Asked) -> wire.Choices | None:
    """Return what was decided while a question ran; None where nothing was."""
    if not asked.tried and not asked.taken:
        return None
    return wire.Choices(
        tried={name: tuple(tried) for name, tried in asked.tried.items()},
        taken=asked.taken,
        lost=tuple((name, member, of) for name, lost in asked.lost.items() for member, of in lost.items()),
    )


def _saying(text: str) -> Callable[[Question], str]:
    return lambda question: text


if __name__ == "__main__":
    main(Replica)
