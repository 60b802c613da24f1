r"""The boxes of LaTeX answers: `\boxed{...}`, balanced; those that are denied (`\neq \boxed{5}`) are none."""

from __future__ import annotations

import re

from flowinfer.tasks.answers.text import Text

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*(?=\{)|\\boxed\s+(?=\S)")
_DENIED = re.compile(r"(?:\bnot|\bthan|≠|\\neq?|不是|而非)[\s$(]*$")
_WORD = re.compile(r"[^\s$,.;]+")
_BRACE = re.compile(r"\\[{}\\]|[{}]")
_NAME = re.compile(r"[a-zA-Z]\s*=(?=\s*\\?$)")
_LISTS = re.compile(r"[\s${}()\\]*(?:and|or|[,、和或及与])+[\s${}()\\]*")
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


def last_boxes(text: Text) -> Text | None:
    r"""Return the last box, with those right before it that it is listed with.

    Example: "x = \boxed{2} and y = \boxed{3}" gives "x = 2 , y = 3".
    """
    found = boxed(text)
    if not found:
        return None
    last = first = found[-1]
    listed: list[str] = [last.string]
    names: list[str] = []
    for earlier in reversed(found[:-1]):
        between = text.string[text.places.index(earlier.places[-1]) + 1 : text.places.index(first.places[0])]
        between = re.sub(r"\\(?:text|boxed|quad)", "", between).rstrip("{")
        name = _NAME.search(between)
        if earlier.string == first.string or not _LISTS.fullmatch(between[: name.start()] if name else between):
            break
        first = earlier
        names.insert(0, name[0] if name else "")
        listed.insert(0, earlier.string)
    if first is last:
        return last
    before = text.string[: text.places.index(first.places[0])]
    name = _NAME.search(re.sub(r"\\boxed\s*\{$", "", before)) if any(names) else None
    named = zip([name[0] if name else "", *names], listed, strict=True)
    joined = " , ".join(f"{name} {value}".strip() for name, value in named)
    return Text(joined, [first.places[0]] * (len(joined) - 1) + [last.places[-1]])


def last_box(text: str) -> str | None:
    """Return the content of the last closed box of a plain text, None where there is none."""
    return next((box.string for box in reversed(boxed(Text(text, range(len(text)))))), None)


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
