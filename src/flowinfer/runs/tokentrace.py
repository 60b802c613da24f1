"""The token trace: for each emitted token, what each head wanted."""

from __future__ import annotations

import sys

from flowinfer.engine.base import HeadWish, TokenEvent
from flowinfer.language.diagnostics import display_width
from flowinfer.output.terminal import visible_line

_WIDTH = 14


def print_token(step: str, event: TokenEvent) -> None:
    """Print one token's line on standard error."""
    print(token_line(step, event), file=sys.stderr, flush=True)


def token_line(step: str, event: TokenEvent) -> str:
    """Return step, number, token, its fused probability, and each head's favourite ('=' where it agrees).

    Where one head writes and the others verify, tokens that all heads chose are marked with a plus.
    """
    emitted = show_piece(event.piece)
    wishes = "  ".join(_wish(head, event.piece) for head in event.heads)
    mark = "+" if event.is_fused else " "
    return f"{step} {event.index:>4} {_padded(emitted)} {event.probability:5.2f} {mark}| {wishes}"


def show_piece(piece: bytes | None) -> str:
    """Return bytes as a quoted text, and the end as <end>."""
    if piece is None:
        return "<end>"
    text = piece.decode("utf-8", errors="backslashreplace")
    return "'" + visible_line(text.replace("\n", "\\n").replace("\t", "\\t")) + "'"


def _wish(head: HeadWish, emitted: bytes | None) -> str:
    if head.piece == emitted:
        return f"{head.model} = {head.probability:.2f}"
    return f"{head.model} {show_piece(head.piece)} {head.probability:.2f} (gave {head.probability_of_emitted:.2f})"


def _padded(text: str) -> str:
    return text + " " * max(0, _WIDTH - display_width(text))
