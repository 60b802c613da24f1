"""flowinfer graph: the flow as a picture or text."""

from __future__ import annotations

import shutil
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowinfer.cli.inputs import Expression, FlowFile, SetOption, ZooOption, read_checked, settings
from flowinfer.errors import UsageError
from flowinfer.files import write_asked

if TYPE_CHECKING:
    from flowinfer.spec import Flow

_FORMS = ("text", "mermaid", "dot", "svg", "png")
_SUFFIXES = {".txt": "text", ".mmd": "mermaid", ".mermaid": "mermaid", ".dot": "dot", ".gv": "dot"}
_SUFFIXES |= {".svg": "svg", ".png": "png"}


def command(
    file: FlowFile = None,
    expression: Expression = None,
    format_: Annotated[str | None, typer.Option("--format", help="text, mermaid, dot, svg or png.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write to this file.")] = None,
    ascii_: Annotated[bool, typer.Option("--ascii", help="Draw with ASCII characters only.")] = False,
    width: Annotated[
        int | None, typer.Option(min=1, help="Columns of the text drawing; the terminal's by default.")
    ] = None,
    theme: Annotated[str, typer.Option(help="light or dark, for png.")] = "light",
    zoo: ZooOption = None,
    set_: SetOption = None,
) -> None:
    """Draw a flow. Only the drawing goes to standard output."""
    form = format_ or _form_of(output)
    if form not in _FORMS:
        raise UsageError(f"--format '{form}'", help=f"one of: {', '.join(_FORMS)}")
    if theme not in ("light", "dark"):
        raise UsageError(f"--theme '{theme}'", help="light or dark")
    flow = read_checked(file, expression, zoo, settings(set_))
    if form == "png":
        _write(output, _png(flow, output, theme))
        return
    text = _text(form, flow, ascii_, width or shutil.get_terminal_size((100, 24)).columns)
    if output is None and form == "text":
        print(text)
    else:
        _write(output, (text + "\n").encode())


def _form_of(output: Path | None) -> str:
    if output is None:
        return "text"
    form = _SUFFIXES.get(output.suffix.lower())
    if form is None:
        known = ", ".join(_SUFFIXES)
        raise UsageError(f"-o '{output}': no form goes with that ending", help=f"one of {known}, or say --format")
    return form


def _text(form: str, flow: Flow, ascii_: bool, width: int) -> str:
    if form in ("mermaid", "dot", "svg"):
        drawing = import_module(f"flowinfer.drawing.{form}")  # each alone: two of them need networkx
        return str(drawing.render(flow))
    from flowinfer.drawing import text

    encoding = (sys.stdout.encoding or "utf-8").lower()
    return text.render(flow, width=width, ascii=ascii_ or "utf" not in encoding)


def _png(flow: Flow, output: Path | None, theme: str) -> bytes:
    from flowinfer.drawing.png import missing_glyphs, render

    if output is None and sys.stdout.isatty():
        raise UsageError("a png does not fit into a terminal", help="-o FILE.png")
    if problem := missing_glyphs(flow):
        print(f"note: {problem}", file=sys.stderr)
    return render(flow, theme=theme)


def _write(output: Path | None, data: bytes) -> None:
    if output is None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    else:
        write_asked(output, data)
