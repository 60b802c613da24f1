"""Texts on their way to a terminal: what would steer it is made visible, what is secret is hidden.

Standard output and error are wrapped once, at the start (`guard`), so that whoever prints whatever, also a traceback or
another library, prints it safely. Rich steers the terminal itself and writes past the wrapper; its consoles come from
here (`console`), show every text as it is, and never read markup or emoji codes in it.
"""

from __future__ import annotations

import io
import sys

from flowinfer.output.secrets import redacted, shown

_STEERING = {code: chr(0x2400 + code) for code in range(0x20) if code not in (0x09, 0x0A)} | {0x7F: "\u2421"}
_HIDDEN = (*range(0x80, 0xA0), 0x061C, 0x200B, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2060, 0x2065))
_MARKS = (
    _STEERING
    | dict.fromkeys((*_HIDDEN, *range(0x2066, 0x206A), 0xFEFF), "\ufffd")
    | dict.fromkeys(range(0xD800, 0xE000), "\ufffd")
)
"""Characters that steer a terminal, turn or hide text, and what is shown instead; as many as they were. Joiners stay:
emoji and several scripts are written with them."""


def visible(text: str) -> str:
    """Return a text in which nothing steers a terminal; line breaks and tabs stay."""
    return text.replace("\r\n", "\n").translate(_MARKS)


def visible_line(text: str) -> str:
    """Return a text that stays on one line, with as many characters as before."""
    return text.translate(_MARKS).replace("\n", "\u240a")


class GuardedStream(io.TextIOWrapper):
    """Standard output or error, safe to print anything on."""

    is_error = False

    def write(self, text: str) -> int:
        """Write what is not secret; on a terminal, and in messages, what steers is made visible."""
        if self.is_error:
            start = "\r" if text.startswith("\r") and "\n" not in text else ""  # a progress bar of another library
            return super().write(start + visible(shown(text[len(start) :])))
        text = redacted(text)
        return super().write(visible(text) if self.isatty() else text)

    def write_made(self, text: str) -> int:
        """Write what has been made visible and steers on purpose."""
        return super().write(redacted(text))


def guard() -> None:
    """Wrap standard output and error, once."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if type(stream) is io.TextIOWrapper:
            encoding, is_line_buffered = stream.encoding, stream.line_buffering
            buffer = stream.buffer if stream is getattr(sys, f"__{name}__") else stream.detach()
            guarded = GuardedStream(buffer, encoding, "backslashreplace", line_buffering=is_line_buffered)
            guarded.is_error = name == "stderr"
            setattr(sys, name, guarded)
