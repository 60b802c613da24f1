"""Thinking: what R1-like models write between <think> and </think>, and what is left without it."""

from __future__ import annotations

_OPEN, _CLOSE = "<think>", "</think>"
_CHANNEL, _FINAL = "<|channel|>", "<|channel|>final<|message|>"
"""How gpt-oss begins a part of its answer, and the part that is for others to read."""

EMPTY_THOUGHT = "\n</think>\n\n"
"""What closes a thought that a chat template has opened with "<think>\n", as hybrid models' templates write it."""


def strip_thinking(text: str, *, opened: bool = False) -> str:
    """Return a text without its thinking.

    A closing tag without an opening one cuts everything before it: the opening tag may stand in the template.
    An opening tag that is never closed leaves what stood before it. Of an answer in channels the final one is left.

    Args:
        text: what the model wrote.
        opened: whether its prompt ended with an open <think>.
    """
    if text.startswith(_CHANNEL):
        return text.rpartition(_FINAL)[2].lstrip("\n") if _FINAL in text else ""
    if _CLOSE in text:
        before, _, after = text.rpartition(_CLOSE)
        head = before.split(_OPEN, 1)[0] if _OPEN in before and not opened else ""
        return (head + after).lstrip("\n")
    if opened:
        return ""
    return text.split(_OPEN, 1)[0].rstrip() if _OPEN in text else text
