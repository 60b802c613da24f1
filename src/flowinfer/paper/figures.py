"""The paper's figures 6 to 15, as data: bars of which lines, by what, showing what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flowinfer.paper.paths import Strategy

Measure = Literal["accuracy", "seconds"]
_SERIAL_PARALLEL: tuple[Strategy, ...] = ("SI", "PI")
_COMPOSITES: tuple[Strategy, ...] = ("S2P", "P2S")


@dataclass(frozen=True)
class Bars:
    """One figure of grouped bars; `{kinds}` in its texts are the strategies that are there."""

    number: int
    title: str
    caption: str
    lines: Literal["singles and bests", "orders", "order means", "best", "mean"]
    """singles and bests, best, mean: by task; orders: by path, a panel for each task; order means: by path."""
    measures: tuple[Measure, ...]
    """Of two, the second only where it was measured; `{measures}` in the caption are those that were."""
    kinds: tuple[Strategy, ...] = ()
    """Only these strategies."""


def _by_task(number: int, what: str, measure: Measure) -> Bars:
    caption = f"{what} of single models and of each strategy's best path by task"
    return Bars(number, f"{what} by task", caption, "singles and bests", (measure,))


def _by_order(number: int, kinds: tuple[Strategy, ...]) -> tuple[Bars, Bars, Bars]:
    titles = [f"{what} of {{kinds}} by path" for what in ("Accuracy", "Seconds per question")]
    return (
        Bars(number, titles[0], titles[0], "orders", ("accuracy",), kinds),
        Bars(number + 1, titles[1], titles[1], "orders", ("seconds",), kinds),
        Bars(
            number + 2,
            "Means of {kinds} by path",
            "Mean over the tasks, {measures}",
            "order means",
            ("accuracy", "seconds"),
            kinds,
        ),
    )


FIGURES = (
    _by_task(6, "Accuracy", "accuracy"),
    _by_task(7, "Seconds per question", "seconds"),
    *_by_order(8, _SERIAL_PARALLEL),
    *_by_order(11, _COMPOSITES),
    Bars(14, "Best path by task", "Best path by task, {measures}", "best", ("accuracy", "seconds")),
    Bars(15, "Mean over paths by task", "Mean over paths by task, {measures}", "mean", ("accuracy", "seconds")),
)
