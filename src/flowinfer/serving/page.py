"""The page at the server's own address: which flows it serves, and how to ask them."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from flowinfer.drawing.svg import render
from flowinfer.serving.flows import ServedFlow


def page(flows: Sequence[ServedFlow]) -> str:
    """Return the page as HTML."""
    shown = "".join(f"<section><h2>{escape(flow.name)}</h2>{render(flow.flow)}</section>" for flow in flows)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>flowinfer</title>'
        '<meta name="viewport" content="width=device-width"><style>body{font-family:system-ui,sans-serif;margin:2rem}'
        "svg{max-width:100%}:root{color-scheme:light dark}</style>"
        "<h1>flowinfer</h1><p>Each flow is a model of this server: <code>POST /v1/chat/completions</code>.</p>"
        f"{shown}</html>"
    )
