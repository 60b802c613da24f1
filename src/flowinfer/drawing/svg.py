"""SVG drawings by the same recursion as the terminal's: boxes in pixels that know where their line runs.

A drawing goes left to right, or top-down: then it is the same with both axes turned. Sizes and places are therefore
given along the line and across it. What stands for a part of the flow has its id as `data-part`: pages look for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from xml.sax.saxutils import escape

from flowinfer.drawing.labels import draw, weight_text
from flowinfer.language.diagnostics import display_width
from flowinfer.spec import Flow, Parallel

FONT = (
    "system-ui, -apple-system, 'Segoe UI', 'Noto Sans', 'Noto Sans CJK SC', 'PingFang SC', 'Microsoft YaHei',"
    " sans-serif"
)
_SIZE, _SMALL = 15.0, 11.5
"""Pixels of the letters, as the style says."""
_WIDTHS = {
    **dict.fromkeys("iljtfrI.,:;'|!()[]{}-/ ", 0.42),
    **dict.fromkeys("mwMW@%=+<>~⊕", 1.0),
    **dict.fromkeys("ABCDEFGHJKLNOPQRSTUVXYZ", 0.79),
}
"""Widths of characters, in parts of their size, in the widest of the usual sans-serif fonts (DejaVu Sans)."""
_GAP, _TALL_GAP, _BRANCH_GAP, _BEND = 44.0, 34.0, 18.0, 30.0
_HUES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#7F7F7F")
"""Colours that colour-blind readers can tell apart. Source: Okabe and Ito, 2008, two added."""

LIGHT = {"ink": "#1b1f24", "soft": "#57606a", "line": "#8c959f", "paper": "#ffffff", "fill": "#f6f8fa"}
DARK = {"ink": "#e6edf3", "soft": "#9da7b3", "line": "#6e7681", "paper": "#0d1117", "fill": "#161b22"}


@dataclass(frozen=True)
class _Shape:
    """A drawn part: its size, the place across at which its line runs, and its elements around (0, 0)."""

    length: float
    """Along the line."""
    breadth: float
    """Across it."""
    axis: float
    elements: tuple[str, ...]
    forks: bool = False
    """Whether its line forks at once, so that no arrow points at its edge."""


def render(flow: Flow, *, theme: str | None = None, is_tall: bool = False) -> str:
    """Return an SVG document.

    Args:
        flow: a checked flow.
        theme: light or dark for fixed colours; None follows the reader's own.
        is_tall: whether it goes top-down instead of left to right.
    """
    shape = draw(flow, _Painter(_colours(flow), is_tall=is_tall))
    pad = 16.0
    length, breadth = shape.length + 2 * pad, shape.breadth + 2 * pad
    width, height = (breadth, length) if is_tall else (length, breadth)
    title = _escaped(flow.name)
    body = "\n".join(shape.elements)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}"'
        f' height="{height:.0f}" role="img" aria-labelledby="t d">\n'
        f'<title id="t">{title}</title>\n<desc id="d">{_escaped(" ".join(flow.source.split())[:300])}</desc>\n'
        f"<style>{_style(theme)}</style>\n"
        f'<rect class="paper" width="{width:.0f}" height="{height:.0f}" rx="10"/>\n'
        f'<g transform="translate({pad:.0f} {pad:.0f})">\n{body}\n</g>\n</svg>'
    )


def _escaped(text: str) -> str:
    """Return a text as XML may hold it: no control characters, not even escaped ones."""
    return escape("".join(character for character in text if character.isprintable()))


def _style(theme: str | None) -> str:
    rules = (
        "text{{font-family:{font};font-size:15px;fill:{ink};text-anchor:middle}}"
        ".soft{{font-size:11.5px;fill:{soft}}} .box{{fill:{fill};stroke-width:1.8}}"
        " .end{{fill:none;stroke:{line};stroke-width:1.4}} .text{{fill:none;stroke:{line};stroke-width:1.6}}"
        " .tokens{{fill:none;stroke:{line};stroke-width:1.6;stroke-dasharray:5 4}} .tip{{fill:{line}}}"
        " .fuse{{fill:{paper};stroke:{ink};stroke-width:1.6}} .paper{{fill:{paper}}}"
    )
    if theme is not None:
        return rules.format(font=FONT, **(DARK if theme == "dark" else LIGHT))
    light, dark = (rules.format(font=FONT, **colours) for colours in (LIGHT, DARK))
    return f"{light} @media (prefers-color-scheme: dark){{{dark}}}"


def _colours(flow: Flow) -> Mapping[str, str]:
    """Give each model a colour of its own, the same in every drawing where the names allow it."""
    taken: dict[str, str] = {}
    for name in sorted(flow.models):
        start = int(hashlib.sha256(name.encode()).hexdigest(), 16) % len(_HUES)
        order = [*_HUES[start:], *_HUES[:start]]
        taken[name] = next((hue for hue in order if hue not in taken.values()), order[0])
    return taken


def _pixels(text: str, size: float) -> float:
    """Return the room that a text takes at most."""
    columns = (display_width(character) for character in text)
    widths = zip(text, columns, strict=True)
    return size * sum(_WIDTHS.get(character, 0.65 if column < 2 else 1.05) for character, column in widths if column)


class _Painter:
    """Draws along a line, each model in its colour.

    Args:
        colours: by model.
        is_tall: whether the line goes down instead of to the right.
    """

    def __init__(self, colours: Mapping[str, str], *, is_tall: bool) -> None:
        self._colours, self._is_tall = colours, is_tall

    def box(self, title: str, detail: str = "", part: str = "") -> _Shape:
        """Return the question, the answer, or a model with its part in the flow."""
        if not detail:
            return self._framed("end", title, _pixels(title, _SIZE) + 28, 32.0, 21, part=part or title)
        width = max(92.0, _pixels(title, _SIZE) + 28, _pixels(detail, _SMALL) + 24)
        stroke = f' stroke="{self._colours[title]}"'
        return self._framed("box", title, width, 50.0, 21, detail, stroke, part=part)

    def series(self, parts: Sequence[_Shape]) -> _Shape:
        """Put parts one after another, their lines at one place, joined by arrows."""
        axis = max(part.axis for part in parts)
        breadth = axis + max(part.breadth - part.axis for part in parts)
        gap = _TALL_GAP if self._is_tall else _GAP
        elements: list[str] = []
        at = 0.0
        for index, part in enumerate(parts):
            if index:
                line = f"M{self._point(at - gap, axis)}L{self._point(at if part.forks else at - 6, axis)}"
                elements.append(self._line("text", line) if part.forks else self._arrow(line, at, axis))
            elements.append(self._moved(part, at, axis - part.axis))
            at += part.length + gap
        return _Shape(at - gap, breadth, axis, tuple(elements), parts[0].forks)

    def group(self, group: Parallel, parts: Sequence[_Shape], title: str) -> _Shape:
        """Put branches beside one another between a fork and a join; the group's line runs through the middle."""
        inner = max(part.length for part in parts)
        breadth = sum(part.breadth for part in parts) + _BRANCH_GAP * (len(parts) - 1)
        sides = [sum(part.breadth + _BRANCH_GAP for part in parts[:index]) for index in range(len(parts))]
        lines = [side + part.axis for side, part in zip(sides, parts, strict=True)]
        middle = (lines[0] + lines[-1]) / 2
        join_kind = "fuse" if group.kind == "fuse" else "end"
        join = self._framed(join_kind, title, _pixels(title, _SIZE) + 26, 34.0, 22, part=group.id)
        weights = [weight_text(group, branch) for branch in group.branches]
        note = self._note(weights)
        turn = max(_BEND, min(80.0, breadth * 0.07))  # many branches get gentler curves
        out = turn + inner + note + turn
        elements: list[str] = []
        for part, side, line, weight in zip(parts, sides, lines, weights, strict=True):
            into = f"M{self._bend(0, middle, turn - 6, line, turn)}"
            is_plain = part.forks
            elements.append(
                self._line("text", f"{into}L{self._point(turn, line)}") if is_plain else self._arrow(into, turn, line)
            )
            elements.append(self._moved(part, turn, side))
            bend = turn + inner + note
            path = f"M{self._point(turn + part.length, line)}L{self._bend(bend, line, out, middle, turn)}"
            elements.append(self._line("tokens" if group.kind == "fuse" else "text", path))
            if weight:
                elements.append(self._weight(weight, turn + inner + note / 2, line))
        side = min(0.0, middle - join.axis)
        elements.append(self._moved(join, out, middle - join.axis))
        whole = max(breadth, middle + join.breadth - join.axis) - side
        shape = _Shape(out + join.length, whole, middle - side, tuple(elements), forks=True)
        return replace(shape, elements=(self._moved(shape, 0, -side),))

    def _framed(
        self,
        kind: str,
        title: str,
        width: float,
        height: float,
        base: int,
        detail: str = "",
        stroke: str = "",
        *,
        part: str,
    ) -> _Shape:
        """Return a frame with a title whose letters stand on a height, and perhaps a line below."""
        rx = 8 if detail else height / 2
        elements = [
            f'<g data-part="{_escaped(part)}">',
            f'<rect class="{kind}" width="{width:.1f}" height="{height:.0f}" rx="{rx:.0f}"{stroke}/>',
            f'<text x="{width / 2:.1f}" y="{base}">{_escaped(title)}</text>',
        ]
        if detail:
            elements.append(f'<text class="soft" x="{width / 2:.1f}" y="39">{_escaped(detail)}</text>')
        length, breadth = (height, width) if self._is_tall else (width, height)
        return _Shape(length, breadth, breadth / 2, (*elements, "</g>"))

    def _note(self, weights: Sequence[str]) -> float:
        """Return the length of line that weights need."""
        if self._is_tall:
            return 16.0 if any(weights) else 0.0
        return max((_pixels(weight, _SMALL) + 12 for weight in weights if weight), default=0.0)

    def _weight(self, weight: str, along: float, line: float) -> str:
        x, y = (line + 6, along + 4) if self._is_tall else (along, line - 5)
        anchor = ' style="text-anchor:start"' if self._is_tall else ""
        return f'<text class="soft" x="{x:.1f}" y="{y:.1f}"{anchor}>{weight}</text>'

    def _point(self, along: float, across: float) -> str:
        return f"{across:.1f} {along:.1f}" if self._is_tall else f"{along:.1f} {across:.1f}"

    def _bend(self, begin: float, line: float, end: float, to: float, turn: float) -> str:
        """Return a curve between two lines, without the command that leads to its first point."""
        first, second = self._point(begin + turn * 0.6, line), self._point(begin + turn * 0.4, to)
        return f"{self._point(begin, line)}C{first} {second} {self._point(end, to)}"

    def _moved(self, shape: _Shape, along: float, across: float) -> str:
        return f'<g transform="translate({self._point(along, across)})">' + "".join(shape.elements) + "</g>"

    def _line(self, kind: str, path: str) -> str:
        return f'<path class="{kind}" d="{path}"/>'

    def _arrow(self, path: str, along: float, across: float) -> str:
        tip = "l-4 -8h8z" if self._is_tall else "l-8 -4v8z"
        return self._line("text", path) + self._line("tip", f"M{self._point(along, across)}{tip}")
