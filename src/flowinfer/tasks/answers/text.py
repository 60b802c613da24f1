"""The text that answers are looked for in: normalized, without thinking and run-on questions, places kept."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

from flowinfer.results import Status
from flowinfer.spec import THOUGHTS, Thought

MAX_READ = 400_000
"""Longer outputs are read from their end on."""
MAX_LENGTH = 24_000
"""What is longer without its thinking is judged by its end, where answers stand."""


@dataclass(frozen=True)
class Found:
    """An answer, or why there is none."""

    value: str | None
    status: Status
    rule: str
    span: tuple[int, int] | None


@dataclass(frozen=True)
class Text:
    """Normalized text that knows where in the output each of its characters stood."""

    string: str
    places: Sequence[int]
    """Index in the output of each character."""
    status: Status | None = None
    """Why nothing can be found, where that is clear already."""

    def part(self, start: int, end: int) -> Text:
        """Return a stretch of it."""
        return Text(self.string[start:end], self.places[start:end])

    def span(self) -> tuple[int, int] | None:
        """Return where it stands in the output."""
        return (self.places[0], self.places[-1] + 1) if self.places else None


def joined(parts: Sequence[Text]) -> Text:
    """Return stretches of one output as one text."""
    return Text("".join(part.string for part in parts), [place for part in parts for place in part.places])


_PLAIN = {
    **dict.fromkeys("\u2212\u2010\u2011\ufe63", "-"),
    **dict.fromkeys("\u00a0\u3000", " "),
    **dict.fromkeys("\ufe0e\ufe0f", ""),  # how the character before is drawn
    **{"\u00d7": "*", "\u00b0": "°"},
    **{raised: f"^{sign}" for raised, sign in zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻ⁿ", "0123456789-n", strict=True)},
    **{chr(begin + at): chr(65 + at) for begin in (0x1F150, 0x1F170) for at in range(26)},  # white letters, as 🅱
}
"""What NFKC does not know or would spoil."""


def normalize(output: str) -> Text:
    """Apply NFKC and one minus sign, character by character, so that places stay known."""
    start = max(0, len(output) - MAX_READ)
    read = output[start:]
    plain = {character: _plain(character) for character in set(read) if character > "~"}
    if all(len(text) == 1 for text in plain.values()):
        return Text("".join([plain.get(character, character) for character in read]), range(start, len(output)))
    pieces = [plain.get(character, character) for character in read]
    pieces = [_beside(before, piece) if len(piece) > 1 else piece for before, piece in pairwise(["", *pieces])]
    return Text("".join(pieces), [at for at, piece in enumerate(pieces, start) for _ in piece])


@cache
def _plain(character: str) -> str:
    known = _PLAIN.get(character)
    if known is not None:
        return known
    return unicodedata.normalize("NFKC", character).replace("\u2044", "/").replace("\u2212", "-")


def _beside(before: str, piece: str) -> str:
    """Return what a character becomes behind another: ⁻³ is one power, and 2⅔ a mixed number."""
    if piece[0] == "^" and before[:1] == "^" and len(before) > 1:
        return piece[1:]
    return f" {piece}" if "/" in piece and before[-1:].isdigit() else piece


_ENDLESS = re.compile(r"\d{61,}")


def prepare(output: str) -> Text:
    """Normalize, remove thinking, and blank digits without end, which are no number."""
    text = _without_thinking(normalize(output))
    if text.status is None:
        text = _without_long_runs(text.part(max(0, len(text.string) - MAX_LENGTH), len(text.string)))
    return replace(text, string=_ENDLESS.sub(lambda match: "?" * len(match[0]), text.string))


_LONG_RUN = re.compile(r"\s{40,}|([^\d?])\1{39,}")


def _without_long_runs(text: Text) -> Text:
    """Shorten runs of blanks or of one character, which hold no answer and make patterns slow."""
    runs = [match.span() for match in _LONG_RUN.finditer(text.string)]
    begins, ends = [0, *(end for _, end in runs)], [*(start + 8 for start, _ in runs), len(text.string)]
    return joined([text.part(*span) for span in zip(begins, ends, strict=True)]) if runs else text


_MARKS = (
    *THOUGHTS,
    *(Thought(f"<{tag}>", f"</{tag}>") for tag in ("thinking", "thought", "reasoning")),
    Thought("<|begin_of_thought|>", "<|end_of_thought|>"),
    Thought("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
)
"""What models write, and the channels of gpt-oss."""
_THOUGHT_BEGINS = re.compile("|".join(re.escape(mark.opens) for mark in _MARKS), re.I)
_THOUGHT_ENDS = re.compile("|".join(re.escape(mark.closes) for mark in _MARKS), re.I)


def _without_thinking(text: Text) -> Text:
    closed = [match.end() for match in _THOUGHT_ENDS.finditer(text.string)]
    if closed:
        text = text.part(closed[-1], len(text.string))
    opened = _THOUGHT_BEGINS.search(text.string)
    if opened:
        before = text.part(0, opened.start())
        return before if before.string.strip() else Text("", (), "truncated")
    return text
