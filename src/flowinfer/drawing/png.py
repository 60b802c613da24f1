"""PNG pictures: the SVG rendered offline by resvg."""

from __future__ import annotations

import re

import resvg_py

from flowinfer.drawing import svg
from flowinfer.drawing.fonts import has_chinese_font, sans_serif_family
from flowinfer.spec import Flow

_SCALE = 2
_CHINESE = re.compile(r"[\u2e80-\u9fff\uac00-\ud7af\u3040-\u30ff\uf900-\ufaff]")


def render(flow: Flow, *, theme: str = "light") -> bytes:
    """Return a PNG of a flow at twice its SVG's size."""
    document = svg.render(flow, theme=theme).replace(svg.FONT, "sans-serif")
    return bytes(resvg_py.svg_to_bytes(svg_string=document, zoom=_SCALE, sans_serif_family=sans_serif_family()))


def missing_glyphs(flow: Flow) -> str | None:
    """Return a warning where the picture needs Chinese characters and no font here has them."""
    if not _CHINESE.search(svg.render(flow)) or has_chinese_font():
        return None
    return (
        "no font with Chinese characters was found, they will show as boxes;"
        " install one (e.g. fonts-noto-cjk) or use --format svg"
    )
