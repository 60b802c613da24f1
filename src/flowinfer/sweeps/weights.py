"""Weights of a grid: `0.7:0.3` goes, by place, to every group of two that a generated path has."""

from __future__ import annotations

import re

from flowinfer.errors import UsageError

_GROUP = re.compile(r"\(([^()]*)\)")


def parse_weights(text: str) -> tuple[float, ...]:
    """Return the numbers of a grid value.

    Raises:
        UsageError: they are no positive numbers.
    """
    try:
        found = tuple(float(part) for part in text.split(":"))
    except ValueError:
        found = ()
    if len(found) < 2 or not all(0 < value < float("inf") for value in found):
        raise UsageError(f"--grid weights={text}: expected positive numbers by place", help="weights=0.5:0.5,0.7:0.3")
    return found


def weighted(flow: str, weights: str) -> str:
    """Write weights into the groups of as many members.

    Example: Qwen -> (Yi | Ds), 2:1 -> Qwen -> (Yi:2 | Ds:1).
    """
    shares = weights.split(":")

    def write(match: re.Match[str]) -> str:
        names = [name.strip() for name in match[1].split("|")]
        if len(names) != len(shares):
            return match[0]
        return "(" + " | ".join(f"{name}:{share}" for name, share in zip(names, shares, strict=True)) + ")"

    return _GROUP.sub(write, flow)
