"""Thinking: what models write between the marks of a thought (`THOUGHTS`), and what is left without it."""

from __future__ import annotations

import re

from flowinfer.spec import THOUGHTS

_OPENS = re.compile("|".join(re.escape(thought.opens) for thought in THOUGHTS))
_CLOSES = re.compile("|".join(re.escape(thought.closes) for thought in THOUGHTS))
_CHANNEL, _FINAL = "<|channel|>", "<|channel|>final<|message|>"
"""How gpt-oss begins a part of its answer, and the part that is for others to read."""


def strip_thinking(text: str, *, opened: bool = False) -> str:
    """Return a text without its thinking.

    A closing mark without an opening one cuts everything before it: the opening mark may stand in the template.
    An opening mark that is never closed leaves what stood before it. Of an answer in channels the final one is left.

    Args:
        text: what the model wrote.
        opened: whether its prompt ended inside a thought.
    """
    if text.startswith(_CHANNEL):
        return text.rpartition(_FINAL)[2].lstrip("\n") if _FINAL in text else ""
    if closed := list(_CLOSES.finditer(text)):
        before = text[: closed[-1].start()]
        begun = _OPENS.search(before)
        head = before[: begun.start()] if begun and not opened else ""
        return (head + text[closed[-1].end() :]).lstrip("\n")
    if opened:
        return ""
    begun = _OPENS.search(text)
    return text[: begun.start()].rstrip() if begun else text
