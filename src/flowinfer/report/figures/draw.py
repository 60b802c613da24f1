"""Every figure of a section: the paper's figures 6 to 15 in form, and two that it lacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from flowinfer.paper.paths import Strategy
from flowinfer.report import scores
from flowinfer.report.evidence import Evidence, Wiring
from flowinfer.report.figures import maps
from flowinfer.report.figures.bars import Series, Tips, accuracy_bars, legend, new_figure, seconds_bars
from flowinfer.report.figures.fonts import legible
from flowinfer.report.figures.style import COLOURS, HATCHES, SINGLES, Drawing, styled
from flowinfer.report.orders import order_name
from flowinfer.report.scores import NOWHERE, Against
from flowinfer.report.table import Reached

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WHISKERS = "Whiskers: 95 % Wilson intervals."


def figures(evidence: Evidence) -> list[Drawing]:
    """Return the figures for which there are numbers; their captions say which names no font here can write."""
    evidence, lettering = legible(evidence)
    with styled(lettering.families):
        found: list[Drawing | None] = [
            _tasks(evidence, "6", is_accuracy=True),
            _tasks(evidence, "7", is_accuracy=False),
            _by_order(evidence, ("SI", "PI"), "8", is_accuracy=True),
            _by_order(evidence, ("SI", "PI"), "9", is_accuracy=False),
            _order_means(evidence, ("SI", "PI"), "10"),
            _by_order(evidence, ("S2P", "P2S"), "11", is_accuracy=True),
            _by_order(evidence, ("S2P", "P2S"), "12", is_accuracy=False),
            _order_means(evidence, ("S2P", "P2S"), "13"),
            _strategies(evidence, "14", "Best path by task", _best),
            _strategies(evidence, "15", "Mean over paths by task", _mean),
            maps.pareto(evidence),
            maps.heat(evidence),
        ]
    return [
        replace(drawing, caption=f"{drawing.caption} {lettering.note}".rstrip(), families=lettering.families)
        for drawing in found
        if drawing is not None
    ]


def _tasks(evidence: Evidence, number: str, *, is_accuracy: bool) -> Drawing | None:
    """Figures 6 and 7: singles, their mean, and strategies' best paths by task."""
    singles = evidence.of("single")
    series = [
        Series(wiring.name, SINGLES[index % len(SINGLES)], "", _by_task(evidence, [wiring]))
        for index, wiring in enumerate(singles)
    ]
    if len(singles) > 1:
        series.append(Series("mean of singles", SINGLES[-1], "--", _by_task(evidence, singles)))
    series += [
        Series(f"{kind}, best", COLOURS[kind], HATCHES[kind], _best(evidence, kind)) for kind in evidence.collaborations
    ]
    if not series or not _has_numbers(series, is_accuracy):
        return None
    tips, figure = Tips(), new_figure(3.0)
    axes = figure.subplots()
    (accuracy_bars if is_accuracy else seconds_bars)(axes, _groups(evidence), series, tips)
    legend(figure, axes, series)
    what = "Accuracy" if is_accuracy else "Seconds per question"
    caption = f"{what} of single models and of each strategy's best path by task (the paper's figure {number})."
    return Drawing(f"figure-{number}", f"{what} by task", _with_whiskers(caption, is_accuracy), figure, tips.found)


def _by_order(
    evidence: Evidence, kinds: tuple[Strategy, Strategy], number: str, *, is_accuracy: bool
) -> Drawing | None:
    """Figures 8, 9, 11 and 12: two strategies by path, one panel for each task."""
    panels = [_order_series(evidence, kinds, index) for index in range(len(evidence.datasets))]
    orders = _orders(evidence, kinds)
    if not orders or not any(_has_numbers(series, is_accuracy) for series in panels):
        return None
    tips, figure = Tips(), new_figure(0.5 + 1.55 * len(panels))
    rows = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axes, dataset, series in zip(rows, evidence.datasets, panels, strict=True):
        (accuracy_bars if is_accuracy else seconds_bars)(axes, orders, series, tips)
        axes.set_title(dataset.label)
    legend(figure, rows[0], panels[0])
    what = "Accuracy" if is_accuracy else "Seconds per question"
    title = f"{what} of {' and '.join(_there(evidence, kinds))} by path"
    caption = _with_whiskers(f"{title} (the paper's figure {number}).", is_accuracy)
    return Drawing(f"figure-{number}", title, caption, figure, tips.found)


def _order_means(evidence: Evidence, kinds: tuple[Strategy, Strategy], number: str) -> Drawing | None:
    """Figures 10 and 13: means over the tasks by path, accuracy above seconds."""
    if len(evidence.datasets) < 2:
        return None
    series, orders = _order_series(evidence, kinds, len(evidence.datasets)), _orders(evidence, kinds)
    if not orders or not _has_numbers(series, is_accuracy=True):
        return None
    tips = Tips()
    figure, measured = _both(orders, series, tips)
    title = f"Means of {' and '.join(_there(evidence, kinds))} by path"
    caption = _with_whiskers(f"Mean over the tasks, {measured} (the paper's figure {number}).", True)
    return Drawing(f"figure-{number}", title, caption, figure, tips.found)


def _strategies(
    evidence: Evidence, number: str, title: str, entries: Callable[[Evidence, Strategy], tuple[Reached, ...]]
) -> Drawing | None:
    """Figures 14 and 15: strategies by task, accuracy above seconds."""
    series = [Series(kind, COLOURS[kind], HATCHES[kind], entries(evidence, kind)) for kind in evidence.collaborations]
    if not series or not _has_numbers(series, is_accuracy=True):
        return None
    tips = Tips()
    figure, measured = _both(_groups(evidence), series, tips)
    caption = _with_whiskers(f"{title}, {measured} (the paper's figure {number}).", True)
    return Drawing(f"figure-{number}", title, caption, figure, tips.found)


def _both(groups: Sequence[str], series: Sequence[Series], tips: Tips) -> tuple[Figure, str]:
    """Draw accuracy above seconds, alone where nothing was timed; return the figure and what it shows."""
    is_timed = _has_numbers(series, is_accuracy=False)
    figure = new_figure(3.8 if is_timed else 2.2)
    panels = figure.subplots(1 + is_timed, sharex=True, squeeze=False)[:, 0]
    accuracy_bars(panels[0], groups, series, tips)
    if is_timed:
        seconds_bars(panels[1], groups, series, tips)
    legend(figure, panels[0], series)
    return figure, "accuracy and seconds" if is_timed else "accuracy"


def _groups(evidence: Evidence) -> list[str]:
    labels = [dataset.label for dataset in evidence.datasets]
    return [*labels, "mean"] if len(labels) > 1 else labels


def _by_task(evidence: Evidence, wirings: Sequence[Wiring]) -> tuple[Reached, ...]:
    return _with_mean([scores.over_paths(evidence, wirings, dataset) for dataset in evidence.datasets])


def _mean(evidence: Evidence, kind: Strategy) -> tuple[Reached, ...]:
    return _by_task(evidence, evidence.of(kind))


def _best(evidence: Evidence, kind: Strategy) -> tuple[Reached, ...]:
    return _with_mean([scores.of_best(evidence, kind, dataset, Against()) for dataset in evidence.datasets])


def _with_mean(entries: list[Reached]) -> tuple[Reached, ...]:
    return (*entries, scores.over_sets(entries)) if len(entries) > 1 else tuple(entries)


def _orders(evidence: Evidence, kinds: tuple[Strategy, Strategy]) -> list[str]:
    return list(dict.fromkeys(order_name(wiring) for wiring in evidence.of(*kinds)))


def _order_series(evidence: Evidence, kinds: tuple[Strategy, Strategy], column: int) -> list[Series]:
    """Return a series for each strategy: one task's column of table 6 or 7, or the mean behind the last task."""
    found = []
    for kind in _there(evidence, kinds):
        by_order = {order_name(wiring): _whole(evidence, wiring)[column] for wiring in evidence.of(kind)}
        entries = tuple(by_order.get(order, NOWHERE) for order in _orders(evidence, kinds))
        found.append(Series(kind, COLOURS[kind], HATCHES[kind], entries))
    return found


def _whole(evidence: Evidence, wiring: Wiring) -> tuple[Reached, ...]:
    entries = [scores.of_cell(evidence.whole(wiring, dataset)) for dataset in evidence.datasets]
    return _with_mean(entries)


def _there(evidence: Evidence, kinds: tuple[Strategy, Strategy]) -> list[Strategy]:
    return [kind for kind in kinds if evidence.of(kind)]


def _has_numbers(series: Sequence[Series], is_accuracy: bool) -> bool:
    values = [entry.accuracy if is_accuracy else entry.seconds for one in series for entry in one.entries]
    return any(value is not None for value in values)


def _with_whiskers(caption: str, is_accuracy: bool) -> str:
    return f"{caption} {_WHISKERS}" if is_accuracy else caption
