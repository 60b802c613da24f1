"""Questions from the lines of a file, answers into lines in the same order: batches without a data set or a server."""

from __future__ import annotations

import json
import os
import queue
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

from flowinfer.backends.base import Turn
from flowinfer.errors import DataError, UsageError
from flowinfer.machine import this_machine
from flowinfer.serving.bodies import turns_of
from flowinfer.serving.flows import Asking, ServedFlow, served
from flowinfer.serving.happenings import Answered, Ended, Failed, Happening
from flowinfer.serving.problems import Problem
from flowinfer.serving.service import Service
from flowinfer.spec import Flow
from flowinfer.zoos.toy import provide


@dataclass(frozen=True)
class Line:
    """A question of a file."""

    id: str
    turns: tuple[Turn, ...]
    """The last one asks."""


def read_lines(name: str, *, as_they_are: bool = False) -> list[Line]:
    """Read a file's questions, one a line; empty lines are left out.

    Args:
        name: of the file; '-' = standard input.
        as_they_are: see `turns_of`.
    Raises:
        DataError: it cannot be read, or a line is no question.
    """
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {(error.strerror or str(error)).lower()}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: not UTF-8 at byte {error.start}") from error
    found = [
        _line(line, number, "<stdin>" if name == "-" else name, as_they_are=as_they_are)
        for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1)
        if line.strip()
    ]
    ids = [line.id for line in found]
    if len(set(ids)) < len(ids):
        twice = next(one for one in ids if ids.count(one) > 1)
        raise DataError(f"{name}: two lines have the id '{twice}'")
    return found


def answer_lines(
    flow: Flow, lines: Sequence[Line], output: Path | None, *, batch: int | Literal["auto"], say: Callable[[str], None]
) -> int:
    """Answer all lines; return how many failed.

    Args:
        flow: a checked flow.
        lines: the questions.
        output: file of answers, gone on with where it has some; None = standard output.
        batch: most rows of a decoding loop.
        say: tells the user something.
    Raises:
        UsageError: the file of answers cannot be written, or holds answers to other questions.
        RunError: models cannot be loaded or do not fit.
    """
    num_done = _opened(output, lines) if output is not None else 0
    if num_done or not lines:
        say(f"{num_done} of {len(lines)} lines are answered" + (f" in {output}" if output is not None else ""))
    if num_done == len(lines):
        return 0
    provide(flow.models.values())
    (one,), steps = served({flow.name: flow}, this_machine())
    service = Service([one], steps, lambda tell: tell(), batch=batch, on_notice=say)
    service.start()
    service.changed.wait()
    try:
        if service.loading.problem is not None:
            raise service.loading.problem
        if output is None:
            return _answer(service, one, lines, sys.stdout)
        with output.open("a", encoding="utf-8") as file:
            return _answer(service, one, lines[num_done:], file)
    finally:
        service.close()


def _answer(service: Service, flow: ServedFlow, lines: Sequence[Line], file: TextIO) -> int:
    """Hand all questions in; write each answer as soon as all before it are written."""
    ended: queue.Queue[tuple[int, Answered | Failed]] = queue.Queue()
    for index, line in enumerate(lines):

        def hear(happening: Happening, index: int = index) -> None:
            if isinstance(happening, Ended):
                ended.put((index, happening))

        service.submit(Asking(flow, line.turns[-1].content, line.turns[:-1]), hear)
    early: dict[int, Answered | Failed] = {}
    num_failed = 0
    for index, line in enumerate(lines):
        while index not in early:
            number, how = ended.get()
            early[number] = how
        happening = early.pop(index)
        num_failed += isinstance(happening, Failed)
        file.write(json.dumps(_answered(line, happening), ensure_ascii=False) + "\n")
        file.flush()
    return num_failed


def _answered(line: Line, happening: Answered | Failed) -> dict[str, Any]:
    trace = happening.trace
    said = {"error": happening.reason} if isinstance(happening, Failed) else {}
    tokens = sum(step.tokens for step in trace.steps)
    return {"id": line.id, "text": trace.answer, "finish_reason": trace.finish_reason, "tokens": tokens, **said}


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


def _opened(output: Path, lines: Sequence[Line]) -> int:
    """Return how many lines are answered in a file, which is made if it is not there.

    Raises:
        UsageError: it cannot be written, or holds something else.
    """
    try:
        num_done = _num_done(output, lines)
        with output.open("a", encoding="utf-8"):
            return num_done
    except OSError as error:
        raise UsageError(f"{output}: cannot be written: {(error.strerror or str(error)).lower()}") from None


def _num_done(output: Path, lines: Sequence[Line]) -> int:
    """Return how many lines are answered in a file; a torn last answer is cut off, nothing else.

    Raises:
        UsageError: it holds something else.
    """
    if not output.is_file():  # not there, or a pipe
        return 0
    data = output.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    torn = data[len(whole) :]
    try:
        answers = [json.loads(line) for line in whole.split(b"\n")[:-1]]
        ids = [answer["id"] for answer in answers if isinstance(answer["text"], str)]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UsageError(f"'{output}' holds no answers", help="another file with -o") from None
    if ids != [line.id for line in lines[: len(ids)]]:
        raise UsageError(f"'{output}' holds answers to other questions", help="another file with -o")
    if torn:
        awaited = [_beginning(line) for line in lines[len(ids) : len(ids) + 1]]
        if not any(torn.startswith(begins) or begins.startswith(torn) for begins in awaited):
            raise UsageError(f"'{output}' holds no answers", help="another file with -o")
        os.truncate(output, len(whole))
    return len(ids)


def _beginning(line: Line) -> bytes:
    """Return the bytes with which every answer to a line begins."""
    return json.dumps({"id": line.id, "text": ""}, ensure_ascii=False).encode("utf-8", "replace")[:-2]
