"""Which number a text gives as its answer: boxed > anchored > concluded or after the last '=' > last."""

from __future__ import annotations

import re

from flowinfer.tasks.answers.anchors import anchored
from flowinfer.tasks.answers.asked import asked_value
from flowinfer.tasks.answers.boxes import are_listed, boxed, ends_in_box
from flowinfer.tasks.answers.conclusions import unanchored
from flowinfer.tasks.answers.corrections import corrected, is_taken_back, revised
from flowinfer.tasks.answers.numbers import clean
from flowinfer.tasks.answers.readings import answer_in
from flowinfer.tasks.answers.text import Found, Text


def find_number(text: Text, question: str = "") -> Found:
    """Find the number that a text gives as its answer; what follows a correction is heard first.

    Of several numbers side by side, the question tells which is meant.
    """
    for part in corrected(text, hears_denials=True):
        found = _find(part, question)
        if found.value is not None or (found.status != "no_answer" and part is not text):
            break
    if found.value is not None and is_taken_back(text) and part is text:
        return Found(None, "no_answer", "taken_back", found.span)
    return found


def _find(text: Text, question: str) -> Found:
    if ends_in_box(text):
        return Found(None, "truncated", "boxed", None)
    boxes = boxed(text)
    box = boxes[-1] if boxes else None
    if len(boxes) > 1 and are_listed(text, *boxes[-2:]) and boxes[-1].string != boxes[-2].string:
        return Found(None, "ambiguous", "boxed", boxes[-1].span())
    if box is not None and re.search(r"\d\s*,\s+-?\$?\d", clean(box.string)):
        return Found(None, "ambiguous", "boxed", box.span())
    held = answer_in(box.string).value if box is not None else None
    if box is not None and held is not None:
        end = text.places.index(box.places[-1])
        later = _anchored(text.part(end, len(text.string)), question)
        rest = revised(text, end + 1)
        later = later if later is not None or rest is None else _find(rest, question)
        return later if later is not None and later.value else Found(held, "ok", "boxed", box.span())
    return _anchored(text, question) or unanchored(text, question)


def _anchored(text: Text, question: str) -> Found | None:
    last: Found | None = None
    for tail in anchored(text):
        reading = answer_in(tail.string)
        if reading.is_ambiguous:
            last = Found(None, "ambiguous", "anchor", tail.span())
        elif reading.value is not None:
            last = Found(asked_value(tail.string, question, reading.value), "ok", "anchor", tail.span())
    return last
