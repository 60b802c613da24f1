"""Command lines that messages propose: to be pasted into a shell as they are."""

from __future__ import annotations

import shlex
from pathlib import Path


def word(text: str | Path) -> str:
    """Return a text as one word of a shell."""
    text = str(text)
    if text.isprintable():
        return shlex.quote(text)
    marked = text.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + "".join(one if one.isprintable() else _escape(one) for one in marked) + "'"


def option(name: str, value: str | Path) -> str:
    """Return an option with its value; one that begins with a dash is not taken for an option."""
    return f"{name}={word(value)}" if str(value).startswith("-") else f"{name} {word(value)}"


def command(name: str, *words: str | Path, options: str = "") -> str:
    """Return a `flowinfer` command; its words may begin with a dash, its options are written as `option` does."""
    dashes = "--" if any(str(one).startswith("-") for one in words) else ""
    return " ".join(part for part in ("flowinfer", name, options, dashes, *map(word, words)) if part)


def options(out: str | Path, usual: str, name: str, value: str) -> str:
    """Return `--out FOLDER`, unless that is the usual one, and another option."""
    return option(name, value) if str(out) == usual else f"{option('--out', out)} {option(name, value)}"


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a name that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
