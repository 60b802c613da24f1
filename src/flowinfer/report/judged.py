"""What a test says of a claim, in words that always carry their numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["holds", "does not hold", "cannot be told"]


@dataclass(frozen=True)
class Judged:
    """A verdict with its reasons."""

    verdict: Verdict
    sentences: tuple[str, ...]


def percent(value: float | None) -> str:
    """Return a share."""
    return f"{100 * (value or 0.0):.1f} %"


def p_text(value: float) -> str:
    """Return a p-value."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"
