"""A file of answers, in the order of their questions: begun, or gone on with where it has some.

Each answer says what made it (`system_fingerprint`, of the flow with all its options) and what was asked (`asked`), so
that answers to other questions, or of another flow, are never taken for these. Answers that come before their turn wait
in `FILE.ahead`, so that a kill at any moment loses only what is under way.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from flowinfer.errors import RunError, UsageError

_ANOTHER = "another file with -o, or remove this one"


class AnswerFile:
    """Use as a context manager.

    Args:
        path: the file.
        made_by: the fingerprint of the flow that answers now.
        says_steps: whether answers tell of every step.
    Raises:
        UsageError: it cannot be written, or holds something else.
    """

    def __init__(self, path: Path, made_by: str, *, says_steps: bool) -> None:
        self._path, self._ahead_path = path, Path(f"{path}.ahead")
        self._made_by, self._says_steps = made_by, says_steps
        self._held: list[dict[str, Any]] = []
        self._ends: list[int] = []
        """Where each line that is held ends, in bytes."""
        self._torn = b""
        self._ahead: dict[str, dict[str, Any]] = {}
        """Answers that came before their turn, by id."""
        self._ahead_file: IO[bytes] | None = None
        try:
            self._file = path.open("ab", buffering=0)
            try:
                self._become_only_writer()
                self._read()
            except BaseException:
                self._file.close()
                raise
        except OSError as error:
            raise UsageError(f"{path}: cannot be written: {(error.strerror or str(error)).lower()}") from None

    @property
    def num_held(self) -> int:
        """Return how many answers it has, failed ones too."""
        return len(self._held)

    def go_on(self, asked: Sequence[tuple[str, str]], follows: tuple[str, str] | None) -> int:
        """Return how many answers are whole and stay; a torn one is cut off, failed ones are asked again.

        Args:
            asked: id and hash of the questions that its answers should be to, in their order.
            follows: those of the question behind them, if there is one.
        Raises:
            UsageError: its answers are to others; the file stays as it is.
        """
        for number, (held, (name, what)) in enumerate(zip(self._held, asked, strict=False), start=1):
            if (held["id"], held.get("asked")) != (name, what):
                raise self._foreign(f"line {number} answers another question than '{name}' here")
        if len(asked) < len(self._held):
            raise self._foreign(f"it has {len(self._held)} answers, and there are {len(asked)} questions")
        if self._torn:
            begins = beginning(follows[0]) if follows else b""
            if not follows or not (self._torn.startswith(begins) or begins.startswith(self._torn)):
                raise UsageError(f"'{self._path}' holds no answers", help=_ANOTHER)
        failed = next((index for index, held in enumerate(self._held) if "error" in held), len(self._held))
        try:
            for held in self._held[failed:]:
                self._keep_ahead(held)
            if self._path.is_file():
                os.truncate(self._path, self._ends[failed - 1] if failed else 0)
        except OSError as error:
            raise self._lost(error) from None
        return failed

    def known(self, name: str, what: str) -> Mapping[str, Any] | None:
        """Return the answer to a question that came before its turn, if there is one."""
        held = self._ahead.get(name)
        return held if held is not None and held.get("asked") == what else None

    def put(self, answer: Mapping[str, Any]) -> None:
        """Write the next answer.

        Raises:
            RunError: the disk is full or cannot be written.
        """
        try:
            self._file.write(_line(answer))
        except OSError as error:
            raise self._lost(error) from None

    def put_ahead(self, answer: Mapping[str, Any]) -> None:
        """Keep an answer that came before its turn.

        Raises:
            RunError: the disk is full or cannot be written.
        """
        try:
            self._keep_ahead(answer)
        except OSError as error:
            raise self._lost(error) from None

    def finish(self) -> None:
        """Remove what waited: every answer is in its place."""
        with suppress(OSError):
            self._ahead_path.unlink(missing_ok=True)

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()
        if self._ahead_file is not None:
            self._ahead_file.close()

    def _become_only_writer(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another process writes '{self._path}' now", help="another file with -o") from None
        except OSError:  # a pipe, or a disk that knows no locks
            return

    def _read(self) -> None:
        if not self._path.is_file():  # not there, or a pipe
            return
        data = self._path.read_bytes()
        end = data.rfind(b"\n") + 1
        self._torn = data[end:]
        try:
            for held in _answers(data[:end]):
                self._held.append(held)
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UsageError(f"'{self._path}' holds no answers", help=_ANOTHER) from None
        for line in data[:end].split(b"\n")[:-1]:
            self._ends.append((self._ends[-1] if self._ends else 0) + len(line) + 1)
        for held in self._held:
            if held.get("system_fingerprint") != self._made_by:
                raise self._foreign("another flow, or other settings, have made its answers")
            if not self._is_of_this_form(held):
                raise self._foreign("its answers tell of every step (--json), or these would")
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):  # each is only a saving
            for held in _answers(self._ahead_path.read_bytes()):
                if held.get("system_fingerprint") == self._made_by and self._is_of_this_form(held):
                    self._ahead[held["id"]] = held

    def _is_of_this_form(self, held: Mapping[str, Any]) -> bool:
        return ("steps" in held) == self._says_steps

    def _keep_ahead(self, answer: Mapping[str, Any]) -> None:
        if "error" in answer or not self._path.is_file():
            return
        self._ahead[answer["id"]] = dict(answer)
        if self._ahead_file is None:
            self._ahead_file = self._ahead_path.open("ab", buffering=0)
            if self._ahead_file.tell():
                self._ahead_file.write(b"\n")  # what a kill has torn ends here
        self._ahead_file.write(_line(answer))

    def _foreign(self, why: str) -> UsageError:
        return UsageError(f"cannot go on with '{self._path}': {why}", help=_ANOTHER)

    def _lost(self, error: OSError) -> RunError:
        return RunError(
            f"{self._path}: cannot be written: {(error.strerror or str(error)).lower()}",
            help="make room and run it again: what is answered is kept",
        )


def beginning(name: str) -> bytes:
    """Return the bytes with which every answer to the question of an id begins."""
    return _line({"id": name, "text": ""})[:-3]


def _line(answer: Mapping[str, Any]) -> bytes:
    return json.dumps(answer, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def _answers(data: bytes) -> Iterator[dict[str, Any]]:
    """Yield the answers of whole lines.

    Raises:
        ValueError, KeyError, TypeError, RecursionError: a line is none.
    """
    for line in data.split(b"\n")[:-1]:
        held = json.loads(line)
        if not isinstance(held["id"], str) or not isinstance(held["text"], str):
            raise TypeError("no answer")
        yield held
