"""Which fonts this machine has, asked of fontconfig."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache


@cache
def sans_serif_family() -> str:
    """Return the family that this machine shows for sans-serif."""
    tool = shutil.which("fc-match")
    if tool is None:
        return "Arial"
    found = subprocess.run([tool, "--format=%{family[0]}", "sans-serif"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "Arial"


@cache
def has_chinese_font() -> bool:
    """Return whether fontconfig knows a font with Chinese characters; True where it cannot be asked."""
    tool = shutil.which("fc-list")
    if tool is None:
        return True
    found = subprocess.run([tool, ":lang=zh", "family"], capture_output=True, text=True, check=False)
    return bool(found.stdout.strip())
