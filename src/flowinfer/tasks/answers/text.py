"""The text that answers are looked for in: normalized, without thinking and run-on questions, places kept."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace

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
    start = max(0, len(output) - MAX_READ)
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
    if text.status is None:
        text = _without_long_runs(text.part(max(0, len(text.string) - MAX_LENGTH), len(text.string)))
    text = replace(text, string=_ENDLESS.sub(lambda match: "?" * len(match[0]), text.string))
    return text if text.status else _without_run_on(text)


_LONG_RUN = re.compile(r"([^\d?])\1{39,}")


def _without_long_runs(text: Text) -> Text:
    """Shorten runs of one character, which hold no answer and make patterns slow."""
    kept: list[Text] = []
    begin = 0
    for match in _LONG_RUN.finditer(text.string):
        kept.append(text.part(begin, match.start() + 8))
        begin = match.end()
    kept.append(text.part(begin, len(text.string)))
    return joined(kept) if len(kept) > 1 else text


_MARKS = (
    *THOUGHTS,
    *(Thought(f"<{tag}>", f"</{tag}>") for tag in ("thinking", "thought", "reasoning")),
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


_RUN_ON = re.compile(
    r"(?P<plain>\n\s*(?:\*\*|#+ )?(?:Question|Problem|Exercise|Example|Instruction|Q|问题|题目|例题"
    r"|问)\s*(?:\*\*)?[:：])"
    r"|\n\s*(?:\*\*|#+ )?(?:(?:Next |New |Another |Follow-?up )(?:Question|Problem)|User|Human|用户"
    r"|(?:Question|Problem|Exercise|Example|Q|问题|题目|例题|问)\s*\d+)\s*(?:\*\*)?[:：.]"
    r"|(?P<bare>\n\s*\n(?:Solve|What|Find|Let(?! me\b| us\b|')|Simplify|Evaluate|Suppose|Which|Is|Factor|Expand"
    r"|Calculate|Round|Sort|List|Differentiate|How)\b[^\n]{5,}[.?]\s*\n)"
    r"|(?<=[\d.。]) (?:Question|问题)\s*\d*\s*[:：]"
    r"|(?P<listed>\n\s*(?:第?\d+[.、题]\s*)?(?:下列|下面|以下|关于)(?=[^\n]{4,}\n\s*A[.、])"
    r"|\n[^\n]{6,}[?？_)）]\s*\n\s*\(?A\)?[.、]\s?[^\n]+\n?\s*\(?B\)?[.、])"
    r"|<\|im_start\|>|<\|im_end\|>|<\|endoftext\|>|<\|eot_id\|>|<[|｜]User[|｜]>|</s>|\[INST\]"
    r"|\n\s*#*\s*Instruction\s*:"
)
_CHOSEN = re.compile(r"答案|选|boxed|\banswer|(?<![A-Za-z])[A-H](?![A-Za-z])", re.I)
_RESTATED = re.compile(r"restate|rephrase|reread|the (?:problem|question)|given|审题|题目|如下|^解\W*$", re.I)
_ANSWERED = re.compile(
    r"####|boxed|=|\b(?:answer|final|result)|答|选|\b(?:so|thus|therefore|hence|total|left|is|are|has|makes?"
    r"|yes|no|true|false)\b|共|是|为|所以|因此",
    re.I,
)


_ENDS_IN_VALUE = re.compile(r"\d\s?[^\d\s,.:?]{0,6}\s?[.。!]$")


def _without_run_on(text: Text) -> Text:
    """Cut where the model asks itself another question, if an answer may stand before."""
    for match in _RUN_ON.finditer(text.string):
        before = text.string[: match.start()].strip()
        if not re.search(r"[\dA-Za-z\u4e00-\u9fff]", before):
            continue
        if match["bare"] and (len(before) > 60 or "\n" in before or before[-1] in ":?"):
            continue
        if match["listed"] and not _CHOSEN.search(before):
            continue
        is_answered = match["plain"] is None or len(before) <= 8
        is_answered = is_answered or bool(_ANSWERED.search(before) or _ENDS_IN_VALUE.search(before))
        if is_answered and not _is_restating(before):
            return text.part(0, match.start())
    return text


def _is_restating(before: str) -> bool:
    return bool(_RESTATED.search(before)) and not re.search(r"####|boxed|=|\banswer\b|答案|选", before, re.I)
