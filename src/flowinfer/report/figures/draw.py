"""Every figure of a section: the paper's figures 6 to 15 in form, and two that it lacks."""

from __future__ import annotations

from dataclasses import replace

from flowinfer.paper.figures import FIGURES, Bars
from flowinfer.paper.paths import Strategy, row_name
from flowinfer.report.cells import Cells
from flowinfer.report.evidence import Evidence
from flowinfer.report.figures import maps
from flowinfer.report.figures.bars import Panel, Series, Tips, draw_panels
from flowinfer.report.figures.fonts import legible
from flowinfer.report.figures.style import COLOURS, HATCHES, SINGLES, Drawing, styled
from flowinfer.report.table import NOWHERE, Reached


def figures(evidence: Evidence) -> list[Drawing]:
    """Return the figures for which there are numbers; their captions say which names no font here can write."""
    evidence, lettering = legible(evidence)
    cells = Cells(evidence)
    with styled(lettering.families):
        found = [*(_bars(cells, spec) for spec in FIGURES), *maps.pareto(cells), maps.heat(evidence)]
    return [
        replace(drawing, caption=f"{drawing.caption} {lettering.note}".rstrip(), families=lettering.families)
        for drawing in found
        if drawing is not None
    ]


def _bars(cells: Cells, spec: Bars) -> Drawing | None:
    """Draw a figure of the paper's, or return None where its first measure has no number."""
    kinds = [kind for kind in cells.evidence.collaborations if kind in spec.kinds or not spec.kinds]
    names = dict.fromkeys(row_name(wiring.strategy, wiring.models) for wiring in cells.evidence.of(*kinds))
    orders = list(names) if spec.lines in ("orders", "order means") else []
    panels = _panels(cells, spec, kinds, orders)
    if not any(panel.has_numbers for panel in panels if panel.measure == spec.measures[0]):
        return None
    if len(spec.measures) > 1:
        panels = [panel for panel in panels if panel.has_numbers]
        height = 3.8 if len(panels) > 1 else 2.2
    else:
        height = 0.5 + 1.55 * len(panels) if spec.lines == "orders" else 3.0
    tips = Tips()
    figure = draw_panels(panels, orders or cells.places, height, tips)
    words = {"kinds": " and ".join(kinds), "measures": " and ".join(dict.fromkeys(panel.measure for panel in panels))}
    caption = f"{spec.caption.format(**words)} (the paper's figure {spec.number})."
    if "accuracy" in spec.measures:
        caption += " Whiskers: 95 % Wilson intervals."
    return Drawing(f"figure-{spec.number}", spec.title.format(**words), caption, figure, tips.found)


def _panels(cells: Cells, spec: Bars, kinds: list[Strategy], orders: list[str]) -> list[Panel]:
    sets = cells.evidence.datasets
    match spec.lines:
        case "orders":
            return [
                Panel(_of_orders(cells, kinds, orders, index), spec.measures[0], one.label)
                for index, one in enumerate(sets)
            ]
        case "order means":
            series = _of_orders(cells, kinds, orders, -1) if len(sets) > 1 else []
        case _:
            series = _of_tasks(cells, spec, kinds)
    return [Panel(series, measure) for measure in spec.measures]


def _of_tasks(cells: Cells, spec: Bars, kinds: list[Strategy]) -> list[Series]:
    """Return singles, their mean, and strategies' best paths by task; or strategies' best paths or means alone."""
    if spec.lines != "singles and bests":
        return [_of_kind(kind, cells.lines[f"{kind} {spec.lines}"]) for kind in kinds]
    singles = cells.evidence.of("single")
    series = [
        Series(wiring.name, SINGLES[index % len(SINGLES)], "", cells.whole(wiring))
        for index, wiring in enumerate(singles)
    ]
    if len(singles) > 1:
        series.append(Series("mean of singles", SINGLES[-1], "--", cells.lines["single mean"]))
    return series + [_of_kind(kind, cells.lines[f"{kind} best"], ", best") for kind in kinds]


def _of_orders(cells: Cells, kinds: list[Strategy], orders: list[str], place: int) -> list[Series]:
    """Return a series for each strategy: one task's column of table 6 or 7, or the mean behind the last task."""
    series = []
    for kind in kinds:
        found = {row_name(kind, wiring.models): cells.whole(wiring)[place] for wiring in cells.evidence.of(kind)}
        series.append(_of_kind(kind, [found.get(order, NOWHERE) for order in orders]))
    return series


def _of_kind(kind: Strategy, entries: list[Reached], said: str = "") -> Series:
    return Series(f"{kind}{said}", COLOURS[kind], HATCHES[kind], entries)
