"""PNG pictures: the SVG rendered offline by resvg."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache

import resvg_py

from flowinfer.drawing import svg
from flowinfer.spec import Flow

_SCALE = 2
_CHINESE = re.compile(r"[\u2e80-\u9fff\uac00-\ud7af\u3040-\u30ff\uf900-\ufaff]")


def render(flow: Flow, *, theme: str = "light") -> bytes:
    """Return a PNG of a flow at twice its SVG's size."""
    document = svg.render(flow, theme=theme).replace(svg.FONT, "sans-serif")
    return bytes(resvg_py.svg_to_bytes(svg_string=document, zoom=_SCALE, sans_serif_family=_family()))


@cache
def _family() -> str:
    """Return the family that this machine shows for sans-serif."""
    tool = shutil.which("fc-match")
    if tool is None:
        return "Arial"
    found = subprocess.run([tool, "--format=%{family[0]}", "sans-serif"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "Arial"


def missing_glyphs(flow: Flow) -> str | None:
    """Return a warning where the picture needs Chinese characters and no font here has them."""
    if not _CHINESE.search(svg.render(flow)) or has_chinese_font():
        return None
    return (
        "no font with Chinese characters was found, they will show as boxes;"
        " install one (e.g. fonts-noto-cjk) or use --format svg"
    )


@cache
def has_chinese_font() -> bool:
    """Return whether fontconfig knows a font with Chinese characters; True where it cannot be asked."""
    tool = shutil.which("fc-list")
    if tool is None:
        return True
    found = subprocess.run([tool, ":lang=zh", "family"], capture_output=True, text=True, check=False)
    return bool(found.stdout.strip())
