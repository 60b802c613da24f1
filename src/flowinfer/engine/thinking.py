"""Thinking: what R1-like models write between <think> and </think>, and what is left without it."""

from __future__ import annotations

_OPEN, _CLOSE = "<think>", "</think>"

EMPTY_THOUGHT = "\n</think>\n\n"
"""What closes a thought that a chat template has opened with "<think>\n", as hybrid models' templates write it."""


def strip_thinking(text: str, *, opened: bool = False) -> str:
    """Return a text without its thinking.

    A closing tag without an opening one cuts everything before it: the opening tag may stand in the template.
    An opening tag that is never closed leaves what stood before it.

    Args:
        text: what the model wrote.
        opened: whether its prompt ended with an open <think>.
    """
    if _CLOSE in text:
        before, _, after = text.rpartition(_CLOSE)
        head = before.split(_OPEN, 1)[0] if _OPEN in before and not opened else ""
        return (head + after).lstrip("\n")
    if opened:
        return ""
    return text.split(_OPEN, 1)[0].rstrip() if _OPEN in text else text
