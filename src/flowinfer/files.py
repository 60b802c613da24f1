"""Files of a user's: read with their kind, size and encoding checked, written whole or not at all."""

from __future__ import annotations

import itertools
import os
import stat
from contextlib import suppress
from pathlib import Path

from flowinfer.errors import UnreadableFile, UsageError

MOST_FLOW_BYTES = 1_000_000
"""Largest flow or zoo file: a few thousand times what anyone writes by hand."""
_MOST_BYTES = 2_000_000_000
"""Largest other file: what can be held in memory as text."""
_counter = itertools.count()


def read_text(path: Path, *, most_bytes: int = _MOST_BYTES, errors: str = "strict") -> str:
    """Return a UTF-8 file's text without its byte-order mark.

    Args:
        errors: "surrogatepass" for files of our own, which keep half of a surrogate pair that a question held.
    Raises:
        UnreadableFile: it is missing, no regular file (a pipe or device may never end), too large, or not UTF-8.
    """
    try:
        data = _read_bytes(path, most_bytes)
        return data.decode("utf-8-sig", errors)
    except UnicodeDecodeError as error:
        is_utf16 = data[:2] in (b"\xff\xfe", b"\xfe\xff")
        reason = "UTF-16, not UTF-8" if is_utf16 else f"not UTF-8 at byte {error.start}"
        raise UnreadableFile(path, reason, help="save the file as UTF-8") from error
    except (OSError, ValueError) as error:  # ValueError: a path that holds a NUL
        raise UnreadableFile(path, (getattr(error, "strerror", None) or str(error)).lower()) from error


def _read_bytes(path: Path, most_bytes: int) -> bytes:
    _refuse_kind(path, os.stat(path).st_mode)
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        _refuse_kind(path, os.fstat(file.fileno()).st_mode)  # it may be another by now
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise UnreadableFile(path, f"larger than {most_bytes / 1e6:,.0f} MB")
    return data


def _refuse_kind(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise UnreadableFile(path, "is a directory")
    if not stat.S_ISREG(mode):
        kind = "a pipe" if stat.S_ISFIFO(mode) else "a device or socket"
        raise UnreadableFile(path, f"{kind}, not a file", help="copy it into a file, or give a flow as '-' on stdin")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; one that is there keeps its mode, its owner and the links to it.

    Pipes and devices are written as they are.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    try:
        before = os.stat(path)
    except FileNotFoundError:
        before = None
    if before is not None and not stat.S_ISREG(before.st_mode):
        path.write_bytes(data)
        return
    target = Path(os.path.realpath(path))
    if before is not None and not os.access(target, os.W_OK):
        raise PermissionError(13, "Permission denied", str(path))
    partial = target.with_name(f".{os.getpid()}-{next(_counter)}.partial")
    try:
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), "wb") as file:
            if before is not None:
                _keep_owner_and_mode(file.fileno(), before)
            file.write(data)
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_asked(path: Path, data: bytes, help: str | None = None) -> None:
    """Write a file that the user named; see `write_whole`.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        write_whole(path, data)
    except OSError as error:
        raise UsageError(f"cannot write '{path}': {(error.strerror or str(error)).lower()}", help=help) from error


def _keep_owner_and_mode(handle: int, before: os.stat_result) -> None:
    now = os.fstat(handle)
    if (now.st_uid, now.st_gid) != (before.st_uid, before.st_gid):
        with suppress(PermissionError):  # only root gives files away
            os.fchown(handle, before.st_uid, before.st_gid)
    os.fchmod(handle, stat.S_IMODE(before.st_mode))
