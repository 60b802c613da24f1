"""Questions from the lines of a file, answers into lines in the same order: batches without a data set or a server."""

from __future__ import annotations

import hashlib
import itertools
import json
import queue
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flowinfer.backends.base import Turn
from flowinfer.errors import DataError
from flowinfer.machine import this_machine
from flowinfer.output.secrets import redacted_data
from flowinfer.output.words import counted
from flowinfer.planning.plain import system_fingerprint
from flowinfer.planning.plan import compile
from flowinfer.runs.ask import Answer
from flowinfer.serving.answerfile import AnswerFile
from flowinfer.serving.bodies import turns_of
from flowinfer.serving.flows import Asking, ServedFlow, served
from flowinfer.serving.happenings import Answered, Ended, Failed, Happening
from flowinfer.serving.problems import Problem
from flowinfer.serving.service import Service
from flowinfer.spec import Flow
from flowinfer.tasks.base import refuse_open
from flowinfer.zoos.toy import provide

_MOST_AHEAD = 4096
"""Lines that are read before the first of them is answered."""


@dataclass(frozen=True)
class Line:
    """A question of a file."""

    id: str
    turns: tuple[Turn, ...]
    """The last one asks."""

    @property
    def key(self) -> tuple[str, str]:
        """Return its id, and a hash of all that is asked."""
        said = json.dumps([[turn.role, turn.content] for turn in self.turns])
        return self.id, hashlib.sha256(said.encode()).hexdigest()[:12]


def read_lines(name: str, *, as_they_are: bool = False) -> Iterable[Line]:
    """Read a file's questions, one a line; empty lines are left out.

    Args:
        name: of the file, which is read and checked whole; '-' = standard input, line by line as they come.
        as_they_are: see `turns_of`.
    Raises:
        DataError: it cannot be read, or a line is no question.
    """
    if name == "-":
        return _checked(_arriving(), "<stdin>", as_they_are=as_they_are)
    try:
        return list(_checked(Path(name).read_bytes().split(b"\n"), name, as_they_are=as_they_are))
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {(error.strerror or str(error)).lower()}") from error


def _arriving() -> Iterator[bytes]:
    """Yield the lines of standard input; read past Python's buffer, whose lock a thread that waits would keep."""
    source = getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)
    rest = b""
    try:
        while data := source.read(1 << 16):
            *whole, rest = (rest + data).split(b"\n")
            yield from whole
    except OSError as error:
        raise DataError(f"<stdin>: cannot be read: {(error.strerror or str(error)).lower()}") from error
    yield rest


def _checked(lines: Iterable[bytes], name: str, *, as_they_are: bool) -> Iterator[Line]:
    numbers: dict[str, int] = {}
    for number, data in enumerate(lines, start=1):
        try:
            text = data.decode("utf-8-sig" if number == 1 else "utf-8").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise DataError(f"{name}:{number}: not UTF-8 at byte {error.start}") from error
        if not text.strip():
            continue
        line = _line(text, number, name, as_they_are=as_they_are)
        if line.id in numbers:
            raise DataError(f"{name}:{number}: the id '{line.id}' is that of line {numbers[line.id]}")
        numbers[line.id] = number
        yield line


def answer_lines(
    flow: Flow,
    lines: Iterable[Line],
    output: Path | None,
    *,
    batch: int | Literal["auto"],
    says_steps: bool,
    say: Callable[[str], None],
) -> int:
    """Answer all lines; return how many failed.

    Args:
        flow: a checked flow.
        lines: the questions.
        output: file of answers, gone on with where it has some; None = standard output.
        batch: most rows of a decoding loop.
        says_steps: whether answers tell of every step.
        say: tells the user something.
    Raises:
        UsageError: the file of answers cannot be written, or holds answers to other questions or of another flow.
        RunError: models cannot be loaded or do not fit.
        DataError: a line of standard input is no question; those before it are answered. The flow needs choices.
    """
    refuse_open(flow, (), "a file of prompts")
    made_by = system_fingerprint(compile(flow))
    lines = iter(lines)
    with AnswerFile(output, made_by, says_steps=says_steps) if output else nullcontext() as file:
        if file is not None:
            lines = _left(file, lines, say)
        first = next(lines, None)
        if first is None:
            say("no line is left to answer")
            return 0
        lines = itertools.chain([first], lines)
        provide(flow.models.values())
        (one,), steps = served({flow.name: flow}, this_machine())
        service = Service([one], steps, lambda tell: tell(), batch=batch, on_notice=say)
        service.start_and_wait()
        try:
            return _Batch(service, one, file, made_by, says_steps=says_steps).answer(lines)
        finally:
            service.close()


def _left(file: AnswerFile, lines: Iterator[Line], say: Callable[[str], None]) -> Iterator[Line]:
    """Return the lines that a file has no answers to."""
    taken = list(itertools.islice(lines, file.num_held))
    follows = next(lines, None)
    num_done = file.go_on([line.key for line in taken], follows.key if follows else None)
    if num_done:
        say(f"{counted(num_done, 'line')} answered already")
    return itertools.chain(taken[num_done:], [follows] if follows else [], lines)


class _Batch:
    """Answer lines, all at once; write each answer as soon as all before it are written."""

    def __init__(
        self, service: Service, flow: ServedFlow, file: AnswerFile | None, made_by: str, *, says_steps: bool
    ) -> None:
        self._service, self._flow, self._file = service, flow, file
        self._made_by, self._says_steps = made_by, says_steps
        self._came: queue.Queue[tuple[int, Mapping[str, Any]] | _End] = queue.Queue()
        self._room = threading.Semaphore(_MOST_AHEAD)

    def answer(self, lines: Iterator[Line]) -> int:
        """Answer them; return how many failed."""
        threading.Thread(target=self._ask_all, args=(lines,), name="lines", daemon=True).start()
        early: dict[int, Mapping[str, Any]] = {}
        end: _End | None = None
        num_written = num_failed = 0
        while end is None or num_written < end.count:
            came = self._came.get()
            if isinstance(came, _End):
                end = came
                continue
            early[came[0]] = came[1]
            if self._file is not None and came[0] > num_written:
                self._file.put_ahead(came[1])
            while (answer := early.pop(num_written, None)) is not None:
                self._write(answer)
                num_written += 1
                num_failed += "error" in answer
                self._room.release()
        if self._file is not None:
            self._file.finish()
        if end.error is not None:
            raise end.error
        return num_failed

    def _ask_all(self, lines: Iterator[Line]) -> None:
        """Hand the questions in as they come, in a thread of its own: standard input may keep it waiting."""
        count, error = 0, None
        try:
            for line in lines:
                self._room.acquire()
                self._ask(count, line)
                count += 1
        except BaseException as raised:  # handed to who waits for answers
            error = raised
        self._came.put(_End(count, error))

    def _ask(self, index: int, line: Line) -> None:
        if self._file is not None and (known := self._file.known(*line.key)) is not None:
            self._came.put((index, known))
            return

        def hear(happening: Happening) -> None:
            if isinstance(happening, Ended):
                self._came.put((index, self._told(line, happening)))

        self._service.submit(Asking(self._flow, line.turns[-1].content, line.turns[:-1]), hear)

    def _told(self, line: Line, happening: Answered | Failed) -> dict[str, Any]:
        """Return what is written of an answer; its id and text come first."""
        trace = happening.trace
        whole = Answer(trace.answer, trace).to_json()
        said = {"tokens": sum(step.tokens for step in trace.steps), "asked": line.key[1]}
        shown = whole if self._says_steps else {name: whole[name] for name in ("text", "finish_reason")}
        why = {"error": happening.reason} if isinstance(happening, Failed) else {}
        told: dict[str, Any] = redacted_data(
            {"id": line.id, **shown, **said, "system_fingerprint": self._made_by, **why}
        )
        return told

    def _write(self, answer: Mapping[str, Any]) -> None:
        if self._file is not None:
            self._file.put(answer)
        else:
            print(json.dumps(answer, ensure_ascii=False), flush=True)


@dataclass(frozen=True)
class _End:
    """There are no more lines."""

    count: int
    error: BaseException | None


def _line(text: str, number: int, name: str, *, as_they_are: bool) -> Line:
    if not text.lstrip().startswith("{"):
        return Line(str(number), (Turn("user", text),))
    try:
        data = json.loads(text)
        unknown = set(data) - {"id", "prompt", "messages"}
        if unknown or ("prompt" in data) == ("messages" in data):
            raise Problem(400, "expected id (or none), and either prompt or messages")
        messages = data.get("messages", [{"role": "user", "content": data.get("prompt")}])
        if not isinstance(messages, list):
            raise Problem(400, "messages must be a list")
        named = data.get("id", number)
        if not isinstance(named, str | int) or isinstance(named, bool) or not str(named).isprintable():
            raise Problem(400, "id must be a text or a whole number")
        return Line(str(named), tuple(turns_of(messages, as_they_are=as_they_are)))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}:{number}: not JSON: {error}") from None
    except Problem as problem:
        raise DataError(f"{name}:{number}: {problem.message}") from None
