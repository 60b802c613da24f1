"""flowinfer explain: what a code means, with a wrong and a right example."""

from __future__ import annotations

from typing import Annotated

import typer

from flowinfer.errors import UsageError


def command(
    code: Annotated[str | None, typer.Argument(help="A code such as E0100; without one, all are listed.")] = None,
) -> None:
    """Explain a diagnostic's code."""
    from flowinfer.language.codes import CODES

    if code is None:
        for name, listed in CODES.items():
            print(f"{name}  {listed.title}")
        return
    entry = CODES.get(code.upper())
    if entry is None:
        raise UsageError(f"unknown code '{code}'", help="`flowinfer explain` lists all codes")
    examples = f"wrong:\n{_indented(entry.wrong)}\n\nright:\n{_indented(entry.right)}"
    print(f"{code.upper()}: {entry.title}\n\n{entry.text}\n\n{examples}")


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.split("\n"))
