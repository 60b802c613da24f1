"""Questions of `exec` that come from no data set, or are answered by another process: lines of a file, a server."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

import typer

from flowinfer.errors import UsageError
from flowinfer.output.secrets import learn

if TYPE_CHECKING:
    from flowinfer.runs.remote import Server
    from flowinfer.spec import Flow


def answer(flow: Flow, name: str, output: Path | None, batch: int | Literal["auto"] | None, *, quiet: bool) -> None:
    """Answer the lines of a file; exit 4 where some failed."""
    from flowinfer.language.prompts import AS_THEY_ARE
    from flowinfer.serving.lines import answer_lines, read_lines

    say = (lambda message: None) if quiet else (lambda message: print(message, file=sys.stderr, flush=True))
    lines = read_lines(name, as_they_are=flow.prompts == AS_THEY_ARE)
    if num_failed := answer_lines(flow, lines, output, batch=batch or "auto", say=say):
        print(f"{num_failed} questions failed; their lines say why", file=sys.stderr)
        raise typer.Exit(4)


def server_of(url: str | None, model: str | None, variable: str | None, *, has_data: bool) -> Server | None:
    """Return the server that is to answer, if one is.

    Raises:
        UsageError: there is no data set, no such address, or no key in the variable.
    """
    if url is None:
        if model is not None or variable is not None:
            raise UsageError("--model and --api-key-env say how to reach a server", help="--url http://host:8000")
        return None
    if not has_data:
        raise UsageError("--url asks a server a data set's questions", help="--dataset gsm8k|ceval|mathematics|FILE")
    if not _is_address(url):
        raise UsageError(f"--url '{url}': no address of a server", help="--url http://host:8000")
    from flowinfer.runs.remote import Server

    key = None
    if variable is not None:
        key = os.environ.get(variable, "").strip()
        learn(key)
        if not re.fullmatch(r"[!-~]+", key):
            raise UsageError(f"the environment variable {variable} holds no key", help=f"export {variable}=...")
    return Server(url.rstrip("/").removesuffix("/v1"), key, model)


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # no port, or half an address of IPv6
        return False
