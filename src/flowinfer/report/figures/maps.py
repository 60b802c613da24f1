"""Figures that the paper lacks: accuracy against seconds and against tokens, and which order helps where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from flowinfer.report import compare
from flowinfer.report.cells import Cells
from flowinfer.report.evidence import Evidence, Wiring, has_control
from flowinfer.report.figures.bars import Tips, new_figure
from flowinfer.report.figures.style import COLOURS, INK, MARKERS, Drawing
from flowinfer.report.table import Reached, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Point:
    """A path by what it reached and cost."""

    wiring: Wiring
    accuracy: float
    cost: float
    """Of a question."""
    entry: Reached


@dataclass(frozen=True)
class _Cost:
    """What paths are drawn against."""

    key: str
    title: str
    axis: str
    unit: str
    cheaper: str


_SECONDS = _Cost("figure-pareto", "Accuracy against seconds", "seconds / question", "s", "faster")
_TOKENS = _Cost("figure-pareto-tokens", "Accuracy against cost", "tokens / question, all steps", "tokens", "cheaper")


def pareto(cells: Cells) -> list[Drawing]:
    """Draw all paths by accuracy and seconds, where there are some, and where steps may be skipped also by tokens."""
    found = [(_SECONDS, _points(cells))]
    if has_control(cells.evidence):
        found.append((_TOKENS, _by_tokens(cells)))
    return [_front(cells, cost, points) for cost, points in found if len(points) > 1]


def _front(cells: Cells, cost: _Cost, points: Sequence[Point]) -> Drawing:
    """Draw paths by accuracy and cost, and the front that no path beats in both."""
    front = on_front(points)
    tips, figure = Tips(), new_figure(3.6 + 0.16 * len(front))
    axes = figure.subplots()
    for point in points:
        kind = point.wiring.strategy or "other"
        (mark,) = axes.plot(
            point.cost,
            100 * point.accuracy,
            MARKERS[kind],
            color=COLOURS[kind],
            markersize=6,
            markeredgecolor=INK,
            markeredgewidth=0.4,
        )
        mark.set_gid(tips.add(f"{kind} {point.wiring.name}: {shown(point.entry)}"))
    xs, ys = [p.cost for p in front], [100 * p.accuracy for p in front]
    axes.step(xs, ys, where="post", color=INK, linewidth=1, alpha=0.6, zorder=1)
    for number, point in enumerate(front, start=1):
        place = (point.cost, 100 * point.accuracy)
        axes.annotate(str(number), place, (0, 6), textcoords="offset points", ha="center", fontsize=8, weight="bold")
    axes.set_xlabel(cost.axis)
    axes.set_ylabel("accuracy %")
    axes.grid(axis="x")
    axes.margins(0.06, 0.1)
    said = [f"{one.wiring.name}: {100 * one.accuracy:.1f} %, {one.cost:.2f} {cost.unit}" for one in front]
    names = [f"{number}  {name}" for number, name in enumerate(said, start=1)]
    figure.supxlabel("On the front\n" + "\n".join(names), x=0.02, ha="left", fontsize=8)
    _kinds(axes, points)
    what = "Mean over the tasks" if len(cells.places) > 1 else cells.places[0]
    caption = f"{what}. The line is the front: no path is both {cost.cheaper} and more accurate than one on it."
    return Drawing(cost.key, cost.title, caption, figure, tips.found)


def on_front(points: Sequence[Point]) -> list[Point]:
    """Return the points that none beats in both, cheapest first."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.cost, -point.accuracy)):
        if not front or point.accuracy > front[-1].accuracy:
            front.append(point)
    return front


def heat(evidence: Evidence) -> Drawing | None:
    """Draw each path's accuracy less the best single's, by task."""
    wirings = [wiring for wiring in evidence.wirings if wiring.strategy != "single"]
    gains = [[_gain(evidence, wiring, column) for column in range(len(evidence.datasets))] for wiring in wirings]
    known = [abs(gain) for row in gains for gain in row if gain is not None]
    if not known:
        return None
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    tips, figure = Tips(), new_figure(0.9 + 0.21 * len(wirings))
    axes = figure.subplots()
    reach = max(*known, 0.05) if len(known) > 1 else max(known[0], 0.05)
    norm, colours = Normalize(-100 * reach, 100 * reach), colormaps["PuOr_r"]
    for y, (wiring, row) in enumerate(zip(wirings, gains, strict=True)):
        for x, gain in enumerate(row):
            colour = colours(norm(100 * gain)) if gain is not None else "none"
            said = "-" if gain is None else f"{100 * gain:+.0f}"
            (cell,) = axes.fill([x, x + 1, x + 1, x], [y, y, y + 1, y + 1], color=colour, linewidth=0)
            cell.set_gid(tips.add(f"{wiring.name}, {evidence.datasets[x].label}: {said} points"))
            is_dark = gain is not None and abs(gain) > 0.6 * reach
            ink = INK if gain is None else "#f5f5f5" if is_dark else "#111111"
            axes.text(x + 0.5, y + 0.5, said, ha="center", va="center", fontsize=7.5, color=ink)
    axes.set_ylim(len(wirings), 0)
    axes.set_xlim(0, len(evidence.datasets))
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.set_xticks([x + 0.5 for x in range(len(evidence.datasets))], [d.label for d in evidence.datasets])
    names = [f"{wiring.strategy or 'other'}   {wiring.name}" for wiring in wirings]
    axes.set_yticks([y + 0.5 for y in range(len(wirings))], names, fontsize=7.5)
    caption = "Points over (orange) or below (purple) the task's best single model, on the same questions."
    return Drawing("figure-orders", "Which order helps where", caption, figure, tips.found)


def _gain(evidence: Evidence, wiring: Wiring, column: int) -> float | None:
    dataset = evidence.datasets[column]
    single = compare.best_single(evidence, dataset)
    mine = evidence.whole(wiring, dataset)
    theirs = evidence.whole(single, dataset) if single else None
    if not mine or not theirs or mine.accuracy is None or theirs.accuracy is None:
        return None
    return mine.accuracy - theirs.accuracy


def _points(cells: Cells) -> list[Point]:
    found = []
    for wiring in cells.evidence.wirings:
        entry = cells.whole(wiring)[-1]
        if entry.accuracy is not None and entry.seconds is not None:
            found.append(Point(wiring, entry.accuracy, entry.seconds, entry))
    return found


def _by_tokens(cells: Cells) -> list[Point]:
    found, evidence = [], cells.evidence
    for wiring in evidence.wirings:
        entry = cells.whole(wiring)[-1]
        own = [cell.tokens for dataset in evidence.datasets if (cell := evidence.whole(wiring, dataset))]
        tokens = [one for one in own if one is not None]
        if entry.accuracy is not None and len(tokens) == len(evidence.datasets):
            found.append(Point(wiring, entry.accuracy, fmean(tokens), entry))
    return found


def _kinds(axes: Axes, points: Sequence[Point]) -> None:
    from matplotlib.lines import Line2D

    kinds = dict.fromkeys(point.wiring.strategy or "other" for point in points)
    handles = [
        Line2D([], [], linestyle="", marker=MARKERS[kind], color=COLOURS[kind], markeredgecolor=INK, label=kind)
        for kind in kinds
    ]
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(handles), borderpad=0)
