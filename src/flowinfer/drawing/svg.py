"""SVG drawings by the same recursion as the terminal's: boxes in pixels that know the height of their line."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
_GAP, _BRANCH_GAP, _BEND = 44.0, 18.0, 30.0
_HUES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#7F7F7F")
"""Colours that colour-blind readers can tell apart. Source: Okabe and Ito, 2008, two added."""

LIGHT = {"ink": "#1b1f24", "soft": "#57606a", "line": "#8c959f", "paper": "#ffffff", "fill": "#f6f8fa"}
DARK = {"ink": "#e6edf3", "soft": "#9da7b3", "line": "#6e7681", "paper": "#0d1117", "fill": "#161b22"}


@dataclass(frozen=True)
class _Shape:
    """A drawn part: its size, the height at which its line enters and leaves, and its elements around (0, 0)."""

    width: float
    height: float
    axis: float
    elements: tuple[str, ...]
    forks: bool = False
    """Whether its line forks at once, so that no arrow points at its edge."""


def render(flow: Flow, *, theme: str | None = None) -> str:
    """Return an SVG document.

    Args:
        flow: a checked flow.
        theme: light or dark for fixed colours; None follows the reader's own.
    """
    shape = draw(flow, _Painter(_colours(flow)))
    pad = 16.0
    width, height = shape.width + 2 * pad, shape.height + 2 * pad
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


def _framed(
    kind: str, title: str, width: float, height: float, base: int, detail: str = "", stroke: str = ""
) -> _Shape:
    """Return a frame with a title whose letters stand on a height, and perhaps a line below."""
    rx = 8 if detail else height / 2
    elements = [
        f'<rect class="{kind}" width="{width:.1f}" height="{height:.0f}" rx="{rx:.0f}"{stroke}/>',
        f'<text x="{width / 2:.1f}" y="{base}">{_escaped(title)}</text>',
    ]
    if detail:
        elements.append(f'<text class="soft" x="{width / 2:.1f}" y="39">{_escaped(detail)}</text>')
    return _Shape(width, height, height / 2, tuple(elements))


def _moved(shape: _Shape, x: float, y: float) -> str:
    return f'<g transform="translate({x:.1f} {y:.1f})">' + "".join(shape.elements) + "</g>"


def _arrow(path: str, kind: str, x: float, y: float) -> str:
    return f'<path class="{kind}" d="{path}"/><path class="tip" d="M{x:.1f} {y:.1f}l-8 -4v8z"/>'


class _Painter:
    """Draws left to right, each model in its colour."""

    def __init__(self, colours: Mapping[str, str]) -> None:
        self._colours = colours

    def box(self, title: str, detail: str = "") -> _Shape:
        """Return the question, the answer, or a model with its part in the flow."""
        if not detail:
            return _framed("end", title, _pixels(title, _SIZE) + 28, 32.0, 21)
        width = max(92.0, _pixels(title, _SIZE) + 28, _pixels(detail, _SMALL) + 24)
        return _framed("box", title, width, 50.0, 21, detail, f' stroke="{self._colours[title]}"')

    def series(self, parts: Sequence[_Shape]) -> _Shape:
        """Put parts side by side, their lines at one height, joined by arrows."""
        axis = max(part.axis for part in parts)
        height = axis + max(part.height - part.axis for part in parts)
        elements: list[str] = []
        x = 0.0
        for index, part in enumerate(parts):
            if index:
                line = f"M{x - _GAP:.1f} {axis:.1f}H{x if part.forks else x - 6:.1f}"
                elements.append(f'<path class="text" d="{line}"/>' if part.forks else _arrow(line, "text", x, axis))
            elements.append(_moved(part, x, axis - part.axis))
            x += part.width + _GAP
        return _Shape(x - _GAP, height, axis, tuple(elements), parts[0].forks)

    def group(self, group: Parallel, parts: Sequence[_Shape], title: str) -> _Shape:
        """Stack branches between a fork and a join; the group's line runs through the middle."""
        inner = max(part.width for part in parts)
        height = sum(part.height for part in parts) + _BRANCH_GAP * (len(parts) - 1)
        tops = [sum(part.height + _BRANCH_GAP for part in parts[:index]) for index in range(len(parts))]
        lines = [top + part.axis for top, part in zip(tops, parts, strict=True)]
        middle = (lines[0] + lines[-1]) / 2
        is_fuse = group.kind == "fuse"
        join = _framed("fuse" if is_fuse else "end", title, _pixels(title, _SIZE) + 26, 34.0, 22)
        weights = [weight_text(group, branch) for branch in group.branches]
        note = max((_pixels(weight, _SMALL) + 12 for weight in weights if weight), default=0.0)
        turn = max(_BEND, min(80.0, height * 0.07))  # many branches get gentler curves
        out = turn + inner + note + turn
        elements: list[str] = []
        for part, top, line, weight in zip(parts, tops, lines, weights, strict=True):
            into = (
                f"M0 {middle:.1f}C{turn * 0.6:.1f} {middle:.1f} {turn * 0.4:.1f} {line:.1f} {turn - 6:.1f} {line:.1f}"
            )
            forks = part.forks
            elements.append(f'<path class="text" d="{into}h6"/>' if forks else _arrow(into, "text", turn, line))
            elements.append(_moved(part, turn, top))
            begin = turn + part.width
            bend = turn + inner + note
            path = (
                f"M{begin:.1f} {line:.1f}H{bend:.1f}"
                f"C{bend + turn * 0.6:.1f} {line:.1f} {bend + turn * 0.4:.1f} {middle:.1f} {out:.1f} {middle:.1f}"
            )
            elements.append(f'<path class="{"tokens" if is_fuse else "text"}" d="{path}"/>')
            if weight:
                elements.append(
                    f'<text class="soft" x="{turn + inner + note / 2:.1f}" y="{line - 5:.1f}">{weight}</text>'
                )
        top = min(0.0, middle - join.axis)
        elements.append(_moved(join, out, middle - join.axis))
        shifted = tuple([f'<g transform="translate(0 {-top:.1f})">', *elements, "</g>"])
        return _Shape(
            out + join.width,
            max(height, middle + join.height - join.axis) - top,
            middle - top,
            shifted,
            forks=True,
        )
