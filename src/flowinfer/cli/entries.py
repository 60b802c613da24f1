"""What somebody says in a conversation: one entry after the other, typed, pasted or piped."""

from __future__ import annotations

import sys
from contextlib import suppress

from flowinfer.errors import DataError

_QUOTES = '"""'


class Entries:
    """Read entries from standard input.

    Args:
        is_typed: whether somebody sits there: then a line that ends with a backslash goes on in the next one, and
            three quotes begin a text of several lines, up to three more. Else each line is an entry.
        prompts: whether to ask for each entry; by Python's own `input`, which edits lines at a terminal.
    """

    def __init__(self, *, is_typed: bool, prompts: bool) -> None:
        self._is_typed, self._prompts = is_typed, prompts
        self._number = 0
        if prompts:
            with suppress(ImportError):  # a Python without it edits no lines
                import readline

                # Line breaks of what is pasted are then no ends of lines.
                readline.parse_and_bind("set enable-bracketed-paste on")

    def next(self, prompt: str) -> str | None:
        """Return the next entry; None at the end.

        Raises:
            DataError: a line is not UTF-8; the next one can be read.
        """
        line = self._line(prompt)
        if line is None or not self._is_typed:
            return line
        lines = [line]
        if line.lstrip().startswith(_QUOTES):
            lines = [line.lstrip().removeprefix(_QUOTES)]
            while not lines[-1].rstrip().endswith(_QUOTES):
                if (line := self._line("... ")) is None:
                    return "\n".join(lines)
                lines.append(line)
            return "\n".join([*lines[:-1], lines[-1].rstrip().removesuffix(_QUOTES)]).strip("\n")
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1].removesuffix("\\")
            if (line := self._line("... ")) is None:
                break
            lines.append(line)
        return "\n".join(lines)

    def _line(self, prompt: str) -> str | None:
        self._number += 1
        try:
            if self._prompts:
                return input(prompt)
            if self._is_typed:
                print(prompt, end="", file=sys.stderr, flush=True)
            data = sys.stdin.buffer.readline()
            return data.decode("utf-8-sig").removesuffix("\n").removesuffix("\r") if data else None
        except EOFError:
            return None
        except UnicodeDecodeError as error:
            raise DataError(f"line {self._number}: not UTF-8 at byte {error.start}") from None
