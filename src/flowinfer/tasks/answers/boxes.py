r"""The boxes of LaTeX answers: `\boxed{...}`, balanced; those that are denied (`\neq \boxed{5}`) are none."""

from __future__ import annotations

import re

from flowinfer.tasks.answers.text import Text

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*(?=\{)|\\boxed\s+(?=\S)")
_DENIED = re.compile(r"(?:\bnot|\bthan|≠|\\neq?|不是|而非)[\s$(]*$")
_WORD = re.compile(r"[^\s$,.;]+")
_BRACE = re.compile(r"\\[{}\\]|[{}]")
_MAX_BOX = 4000


def boxed(text: Text) -> list[Text]:
    r"""List the contents of the closed, non-empty \boxed{}, in order."""
    found = []
    for match in _BOX.finditer(text.string):
        begin = match.end()
        if _DENIED.search(text.string[max(0, match.start() - 16) : match.start()]):
            continue
        if text.string[begin] != "{":
            word = _WORD.match(text.string, begin)
            found += [text.part(begin, word.end())] if word else []
            continue
        end = closing(text.string, begin)
        if end is not None and text.string[begin + 1 : end].strip():
            found.append(text.part(begin + 1, end))
    return found


def are_listed(text: Text, one: Text, other: Text) -> bool:
    """Return whether two boxes stand side by side as answers, as in "2 and 3"."""
    between = text.string[text.places.index(one.places[-1]) + 1 : text.places.index(other.places[0])]
    bare = re.sub(r"\\(?:text|boxed|quad)|[a-zA-Z]\s*=", "", between)
    return bool(re.fullmatch(r"[\s${}()\\]*(?:and|or|[,、和或及])+[\s${}()\\]*", bare))


def last_boxed(text: Text) -> Text | None:
    r"""Return the content of the last closed, non-empty \boxed{}."""
    return next(reversed(boxed(text)), None)


def last_box(text: str) -> str | None:
    """Return the content of the last closed box of a plain text, None where there is none."""
    box = last_boxed(Text(text, range(len(text))))
    return box.string if box is not None else None


def is_boxed(string: str) -> bool:
    """Return whether a text has a box, closed or not."""
    return bool(_BOX.search(string))


def ends_in_box(text: Text) -> bool:
    r"""Return whether the text breaks off inside a \boxed{."""
    last = [match.end() for match in _BOX.finditer(text.string) if text.string[match.end()] == "{"][-1:]
    return bool(last) and closing(text.string, last[0]) is None


def closing(string: str, opening: int) -> int | None:
    """Return the index of the brace that closes the one at `opening`, or None."""
    depth = 0
    for match in _BRACE.finditer(string, opening, opening + _MAX_BOX):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if not depth:
            return match.start()
    return None
