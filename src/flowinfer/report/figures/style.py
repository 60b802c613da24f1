"""One look for all figures: colours that colour-blind readers can tell apart, with hatches and markers beside them.

Colours: Okabe and Ito 2008, "Color Universal Design".
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from typing import Any, Final

import matplotlib
from matplotlib.figure import Figure

from flowinfer.report.figures.fonts import LATIN

INK: Final = "#1a1a1b"
"""Text and lines; the page puts its own colour in its place, so that figures are readable on dark ground."""
_PAPER: Final = "#ffffff"
WIDTH: Final = 6.6
"""Inches."""

COLOURS: Final[Mapping[str, str]] = {
    "SI": "#0072B2",
    "PI": "#E69F00",
    "S2P": "#009E73",
    "P2S": "#CC79A7",
    "single": "#8c8c8c",
    "other": "#56B4E9",
}
HATCHES: Final[Mapping[str, str]] = {"SI": "", "PI": "//", "S2P": "", "P2S": "\\\\", "single": "", "other": "xx"}
MARKERS: Final[Mapping[str, str]] = {"SI": "o", "PI": "^", "S2P": "D", "P2S": "v", "single": "s", "other": "X"}
SINGLES: Final = ("#5f5f5f", "#8c8c8c", "#b5b5b5", "#d0d0d0")
"""Single models, in their order."""


@dataclass(frozen=True)
class Drawing:
    """A figure that is ready to be saved."""

    key: str
    """Name of its files."""
    title: str
    caption: str
    figure: Figure
    tips: Mapping[str, str] = field(default_factory=dict)
    """Id of a mark -> what it says under the pointer."""
    families: tuple[str, ...] = (LATIN,)
    """Fonts of its names."""


@contextmanager
def styled(families: Sequence[str]) -> Iterator[None]:
    """Draw in this look.

    Args:
        families: fonts, asked in this order for each character.
    """
    settings: dict[Any, Any] = {  # matplotlib types its keys as literals of its own version
        "font.family": list(families),
        "font.size": 8.5,
        "axes.titlesize": 9,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "axes.titlecolor": INK,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": INK,
        "grid.alpha": 0.15,
        "grid.linewidth": 0.6,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "legend.frameon": False,
        "legend.fontsize": 8,
        "hatch.linewidth": 0.6,
        "hatch.color": INK,
        "svg.fonttype": "path",
        "svg.hashsalt": "flowinfer",
        "figure.facecolor": _PAPER,
        "axes.facecolor": "none",
        "figure.dpi": 100,
        "text.parse_math": False,  # a $ in a name is a $
        "pdf.fonttype": 42 if list(families) == [LATIN] else 3,  # Noto CJK is no TrueType font, which 42 means
    }
    with matplotlib.rc_context(settings):
        yield


def files(drawing: Drawing) -> dict[str, bytes]:
    """Return a drawing as svg, png and pdf."""
    with styled(drawing.families):
        return {
            "svg": _slim(_saved(drawing.figure, "svg", metadata={"Date": None})),
            "png": _saved(drawing.figure, "png", dpi=200),
            "pdf": _saved(drawing.figure, "pdf", metadata={"CreationDate": None}),
        }


def for_page(svg: str, drawing: Drawing, prefix: str) -> str:
    """Return an SVG to stand inside a page: themed by it, with ids of its own, marks that speak, and a name.

    Args:
        prefix: unique in the page.
    """
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor").replace(f"fill: {_PAPER}", "fill: none")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    for mark, tip in drawing.tips.items():
        svg = svg.replace(f'<g id="{mark}">', f'<g id="{mark}" class="mark"><title>{escape(tip)}</title>', 1)
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = svg.replace('href="#', f'href="#{prefix}').replace("url(#", f"url(#{prefix}")
    label = escape(f"{drawing.title}: {drawing.caption}", quote=True)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def _slim(svg: bytes) -> bytes:
    """Return an SVG without what no one sees: comments, indentation, thousandths of a point."""
    text = re.sub(r"<!-- .*? -->", "", svg.decode(), flags=re.S)
    text = re.sub(r"\s*\n\s*", "\n", text).replace(">\n<", "><")
    text = text.replace("DejaVuSans-", "g")  # names of glyphs
    places = r' d="[^"]*"| [xy]="[^"]*"|translate\([^)]*\)'
    return re.sub(places, lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), text).encode()


def _saved(figure: Figure, form: str, **options: object) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format=form, bbox_inches="tight", pad_inches=0.08, **options)  # type: ignore[arg-type]
    return out.getvalue()
