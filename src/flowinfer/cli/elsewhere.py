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
from flowinfer.output.secrets import MASK, learn, learn_address
from flowinfer.output.words import counted

if TYPE_CHECKING:
    from flowinfer.runs.remote import Server
    from flowinfer.spec import Flow


def answer(
    flow: Flow, name: str, output: Path | None, batch: int | Literal["auto"] | None, *, says_steps: bool, quiet: bool
) -> None:
    """Answer the lines of a file; exit 4 where some failed."""
    from flowinfer.language.prompts import AS_THEY_ARE
    from flowinfer.serving.lines import answer_lines, read_lines

    def say(message: str) -> None:
        if not quiet:
            print(message, file=sys.stderr, flush=True)

    lines = read_lines(name, as_they_are=flow.prompts == AS_THEY_ARE)
    if num_failed := answer_lines(flow, lines, output, batch=batch or "auto", says_steps=says_steps, say=say):
        print(f"{counted(num_failed, 'question')} failed: the output's lines say why", file=sys.stderr)
        raise typer.Exit(4)


def check_server(url: str | None, model: str | None, variable: str | None, *, has_data: bool, resumes: bool) -> None:
    """Refuse options of a server where none can be asked.

    Raises:
        UsageError: there is no server, or no data set.
    """
    if url is None and not resumes and (model is not None or variable is not None):
        raise UsageError("--model and --api-key-env say how to reach a server", help="--url http://host:8000")
    if url is not None and not has_data and not resumes:
        cure = "--dataset gsm8k|ceval|mathematics|FILE; `flowinfer chat --url` asks one question after the other"
        raise UsageError("--url asks a server a data set's questions", help=cure)


def server_of(url: str | None, model: str | None, variable: str | None) -> Server | None:
    """Return the server at an address; None where none is named, or `here` is.

    Raises:
        UsageError: the address is none, or the variable holds no key.
    """
    if url is None or url == "here":
        return None
    if not _is_address(url):
        raise UsageError(f"--url '{url}': no address of a server", help="--url http://host:8000")
    if MASK in url:
        raise UsageError("the server's address was kept without its password", help="give the whole --url again")
    from flowinfer.runs.remote import Server

    learn_address(url)
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
