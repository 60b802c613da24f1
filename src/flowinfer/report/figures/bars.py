"""Grouped bars with 95 % intervals: the form of the paper's figures 6 to 15."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flowinfer.paper.figures import Measure
from flowinfer.report.figures.style import INK, WIDTH
from flowinfer.report.table import Reached, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Series:
    """Bars of one colour, one for each group."""

    name: str
    colour: str
    hatch: str
    entries: Sequence[Reached]


@dataclass(frozen=True)
class Panel:
    """Bars above one axis."""

    series: Sequence[Series]
    measure: Measure
    title: str = ""

    @property
    def has_numbers(self) -> bool:
        """Whether there is a bar to be drawn."""
        return any(_value(entry, self.measure) is not None for one in self.series for entry in one.entries)


class Tips:
    """Ids of marks and what they say."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def add(self, text: str) -> str:
        """Return a new id."""
        mark = f"mark{len(self.found) + 1}"
        self.found[mark] = text
        return mark


def draw_panels(panels: Sequence[Panel], groups: Sequence[str], height: float, tips: Tips) -> Figure:
    """Draw panels one above the other, with one legend."""
    figure = new_figure(height)
    rows = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axes, panel in zip(rows, panels, strict=True):
        _bars(axes, groups, panel, tips)
        if panel.title:
            axes.set_title(panel.title)
    _legend(figure, panels[0].series)
    return figure


def new_figure(height: float) -> Figure:
    """Return an empty figure of the common width."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), layout="constrained")


def _bars(axes: Axes, groups: Sequence[str], panel: Panel, tips: Tips) -> None:
    """Draw accuracies in % with their intervals as whiskers, or seconds per question."""
    width = 0.8 / len(panel.series)
    whiskers: list[tuple[float, float, float]] = []
    for index, one in enumerate(panel.series):
        for place, entry in enumerate(one.entries):
            x = place + (index - (len(panel.series) - 1) / 2) * width
            value = _value(entry, panel.measure)
            if value is None:
                axes.text(x, 0, "-", ha="center", va="bottom", fontsize=7)
                continue
            bar = axes.bar(x, value, width * 0.9, color=one.colour, hatch=one.hatch, linewidth=0)
            bar.patches[0].set_gid(tips.add(f"{one.name}, {groups[place]}: {shown(entry)}"))
            whiskers.append((x, 100 * entry.low, 100 * entry.high))
    if panel.measure == "accuracy":
        xs, lows, highs = ([entry[index] for entry in whiskers] for index in range(3))
        axes.vlines(xs, lows, highs, color=INK, linewidth=0.8)
        axes.plot(xs + xs, lows + highs, linestyle="", marker="_", color=INK, markersize=3, markeredgewidth=0.8)
        axes.set_ylim(0, 100)
        axes.set_ylabel("accuracy %")
    else:
        axes.set_ylabel("seconds / question")
        axes.set_ylim(bottom=0)
    axes.set_xticks(range(len(groups)), groups)
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.5, len(groups) - 0.5)


def _value(entry: Reached, measure: Measure) -> float | None:
    if measure == "seconds":
        return entry.seconds
    return None if entry.accuracy is None else 100 * entry.accuracy


def _legend(figure: Figure, series: Sequence[Series]) -> None:
    """Put the names of the series above the figure."""
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=one.colour, hatch=one.hatch, label=one.name, linewidth=0) for one in series]
    columns = min(len(handles), 4 if len(handles) % 4 == 0 or len(handles) > 6 else 6)
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, handlelength=1.4, columnspacing=1.2)
