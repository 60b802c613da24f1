"""The text that answers are looked for in: normalized, without thinking and run-on questions, places kept."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace

from flowinfer.results import Status

MAX_LENGTH = 60_000
"""Longer outputs are judged by their end, where answers stand."""


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


_KEPT = {
    "\u2212": "-",
    "\u2010": "-",
    "\u2011": "-",
    "\ufe63": "-",
    "\u00a0": " ",
    "\u3000": " ",
    "\u00d7": "*",
}
_SUPER = {"\u00b2": "^2", "\u00b3": "^3", "\u00b0": "°"}


def normalize(output: str) -> Text:
    """Apply NFKC and one minus sign, character by character, so that places stay known."""
    start = max(0, len(output) - MAX_LENGTH)
    characters: list[str] = []
    places: list[int] = []
    for index, character in enumerate(output[start:], start=start):
        plain = _KEPT.get(character) or _SUPER.get(character)
        if plain is None:
            plain = character if character < "\x7f" else unicodedata.normalize("NFKC", character)
            plain = plain.replace("\u2044", "/").replace("\u2212", "-")
        characters.append(plain)
        places += [index] * len(plain)
    return Text("".join(characters), places)


_ENDLESS = re.compile(r"\d{61,}")


def prepare(output: str) -> Text:
    """Normalize, remove thinking, cut run-on questions, and blank digits without end, which are no number."""
    text = _without_thinking(normalize(output))
    text = replace(text, string=_ENDLESS.sub(lambda match: "?" * len(match[0]), text.string))
    return text if text.status else _without_run_on(text)


def _without_thinking(text: Text) -> Text:
    end = text.string.rfind("</think>")
    if end >= 0:
        text = text.part(end + len("</think>"), len(text.string))
    begin = text.string.find("<think>")
    if begin >= 0:
        before = text.part(0, begin)
        return before if before.string.strip() else Text("", (), "truncated")
    return text


_RUN_ON = re.compile(
    r"\n\s*(?:\*\*|#+ )?(?:Question|Problem|User|Human|Q|问题|题目|用户|问)\s*\d*\s*[:：]"
    r"|\n\s*(?:\d+[.、]\s*)?下列(?=[^\n]{4,}\n\s*A[.、])"
    r"|<\|im_start\|>|<\|im_end\|>|<\|endoftext\|>|<｜User｜>|<\|User\|>|</s>|\n\s*Instruction\s*:"
)


def _without_run_on(text: Text) -> Text:
    """Cut where the model asks itself another question, if an answer may stand before."""
    for match in _RUN_ON.finditer(text.string):
        before = text.string[: match.start()]
        if before.strip() and re.search(r"[\dA-Za-z\u4e00-\u9fff]", before):
            return text.part(0, match.start())
    return text
