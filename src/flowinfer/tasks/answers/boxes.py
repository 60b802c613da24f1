r"""The boxes of LaTeX answers: `\boxed{...}`, balanced, scanned in one pass."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_OPEN = re.compile(r"\\f?boxed\s*(?=\{)|\\boxed\s+(?=[\w-])")
_BRACE = re.compile(r"\\[{}\\]|[{}]")


@dataclass(frozen=True)
class Box:
    """One box: where its content stands, and whether its brace is closed."""

    start: int
    """Of the content."""
    end: int
    outer_start: int
    """Of the command itself."""
    is_closed: bool


def boxes(text: str) -> Iterator[Box]:
    """Yield outermost boxes in order; an unclosed one (cut-off text) reaches to the end."""
    position = 0
    while match := _OPEN.search(text, position):
        start = match.end()
        if text[start] != "{":
            word = re.compile(r"-?\w+").match(text, start)
            end = word.end() if word else start + 1
            yield Box(start, end, match.start(), True)
            position = end
            continue
        closed = closing_brace(text, start)
        if closed is None:
            yield Box(start + 1, len(text), match.start(), False)
            return
        yield Box(start + 1, closed, match.start(), True)
        position = closed + 1


def closing_brace(text: str, start: int) -> int | None:
    """Return the index of the brace that closes the one at `start`, None if nothing does."""
    depth = 0
    for match in _BRACE.finditer(text, start):
        if match.group() == "{":
            depth += 1
        elif match.group() == "}":
            depth -= 1
            if depth == 0:
                return match.start()
    return None


def last_box(text: str) -> str | None:
    """Return the content of the last closed box, None where there is none."""
    found = [text[box.start : box.end] for box in boxes(text) if box.is_closed]
    return found[-1] if found else None
