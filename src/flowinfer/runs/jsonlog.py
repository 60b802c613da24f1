"""Files that survive a kill: logs of JSON lines that are appended whole and fsynced, and folders with one writer."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

from flowinfer.errors import DataError, RunError, UsageError
from flowinfer.output.secrets import num_known, redacted, redacted_data

T = TypeVar("T")


class JsonLog:
    """A log of JSON objects, one a line.

    A kill loses at most the line being written: a torn last line is cut when the log is opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None
        self._is_synced = True

    def append(self, *rows: Mapping[str, Any]) -> None:
        """Write objects so that nothing can lose them.

        Raises:
            OSError: the disk is full or cannot be written; a torn line is cut when the log is opened again.
        """
        self.write(*map(line_of, rows))
        self.sync()

    def write(self, *lines: bytes) -> None:
        """Write lines so that a kill cannot lose them; before `sync`, a machine that stops can.

        Raises: as `append`.
        """
        if self._file is None:
            _cut_torn_line(self._path)
            self._file = self._path.open("ab", buffering=0)  # a failed write leaves nothing behind
        self._is_synced = False
        _write_all(self._file, b"".join(lines))

    def sync(self) -> None:
        """Let the disk have all that was written."""
        if self._file is not None and not self._is_synced:
            os.fsync(self._file.fileno())
            self._is_synced = True

    def close(self) -> None:
        """Close the file; appending opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None


def line_of(row: Mapping[str, Any]) -> bytes:
    """Return an object as a line of a log, without secrets."""
    return encoded(json.dumps(redacted_data(row), ensure_ascii=False, separators=(",", ":")) + "\n")


def is_clean(line: bytes) -> bool:
    """Return whether a line that another process has made is without secrets that this one knows."""
    if not num_known():
        return True
    text = decoded(line)
    return redacted(text) == text


def encoded(text: str) -> bytes:
    """Return a text as UTF-8; half of a surrogate pair, which a question may hold, is kept too."""
    return text.encode("utf-8", errors="surrogatepass")


def decoded(data: bytes) -> str:
    """Return the text that `encoded` was given.

    Raises:
        UnicodeDecodeError: it is damaged.
    """
    return data.decode("utf-8", errors="surrogatepass")


def object_of(line: bytes) -> Any:  # whatever JSON holds
    """Read what a line holds.

    Raises:
        ValueError: it is damaged.
    """
    return json.loads(decoded(line))


def whole_lines(path: Path) -> list[bytes]:
    """Return a log's lines without their ends; one that a kill cut short does not count.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return path.read_bytes().split(b"\n")[:-1] if os.path.isfile(path) else []
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def read_rows(path: Path, keys: Collection[str] = (), cure: str = "remove the line") -> Iterator[Mapping[str, Any]]:
    """Yield a log's objects; see `read_each`.

    Args:
        keys: what every object must have.
    """

    def whole(line: bytes) -> Mapping[str, Any]:
        row = object_of(line)
        if not isinstance(row, dict) or not all(key in row for key in keys):
            raise ValueError("keys are missing")
        return row

    return read_each(path, whole, cure)


def read_each(path: Path, make: Callable[[bytes], T], cure: str, what: str = "line") -> Iterator[T]:
    """Yield what is made of a log's lines; a last one that a kill cut short does not count, nor do empty ones.

    Raises:
        DataError: nothing can be made of a line; says of which.
    """
    for number, line in enumerate(whole_lines(path), start=1):
        if line.strip():
            try:
                made = make(line)
            except (ValueError, TypeError, AttributeError, RecursionError) as error:
                raise DataError(f"{path}:{number}: damaged {what}", help=cure) from error
            yield made


@contextmanager
def writing(path: Path, what: str = "run") -> Iterator[None]:
    """Turn a disk that is full or read-only into a message that says what is safe.

    Raises:
        RunError: writing failed.
    """
    try:
        yield
    except OSError as error:
        raise RunError(
            f"cannot write to {what} '{path}': {error.strerror or error}",
            help="what was answered before is kept: make room and go on with --resume, or use another --out FOLDER",
        ) from error


def lock(path: Path, what: str = "run") -> IO[bytes]:
    """Become the only writer of a folder until the returned file is closed.

    Raises:
        UsageError: another process writes it, or nobody here may.
    """
    try:
        handle = (path / ".lock").open("wb")
    except OSError as error:
        hint = f"copy the folder to where you may write, and name the copy: cp -r {shlex.quote(str(path))} FOLDER"
        raise UsageError(f"cannot write to {what} '{path}': {(error.strerror or '').lower()}", help=hint) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        handle.close()
        raise UsageError(f"{what} '{path.name}' is being written by another process") from error
    return handle


def _write_all(log: IO[bytes], line: bytes) -> None:
    """Write a line whole: an unbuffered file may take less than it is given."""
    view = memoryview(line)
    while view:
        view = view[log.write(view) :]


def _cut_torn_line(log: Path) -> None:
    if not log.is_file():
        return
    data = log.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(log, whole)
