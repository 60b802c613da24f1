"""Put the page into one HTML file, and say what a browser may do in it."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

_SCRIPTS = ("elements", "server", "answer", "tokens", "inspector", "graph", "turn", "chat", "run", "main")
"""In the order in which they need one another."""


@dataclass(frozen=True)
class Page:
    """The page, the same for every server."""

    html: str
    policy: str
    """Its Content-Security-Policy: this script and no other, this server and no other."""


@cache
def page() -> Page:
    """Return the page."""
    script = '"use strict";\n' + "\n".join(_file(f"{name}.js") for name in _SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; connect-src 'self';"
        " img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    html = _file("page.html").replace("/*style*/", _file("page.css")).replace("/*script*/", script)
    return Page(html, policy)


def _file(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")
