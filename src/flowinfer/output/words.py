"""Counts in words."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Return how many there are. Example: 1, "question" -> "1 question"; 2 -> "2 questions"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
