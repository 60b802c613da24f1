"""flowinfer run: some models, and a question that they answer together; no file is needed."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated

import typer

from flowinfer.cli.inputs import (
    MODELS,
    NiceOption,
    PromptsOption,
    SetOption,
    ThreadsOption,
    ZooOption,
    checked_text,
    read_stdin,
    settings,
)
from flowinfer.errors import UsageError


def command(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL... [QUESTION]",
            help="ollama:NAME, hf:OWNER/REPO, a .gguf file, a model's folder or a zoo's name; then what to ask.",
        ),
    ],
    trace: Annotated[bool, typer.Option("--trace", help="Show which head wanted which token.")] = False,
    zoo: ZooOption = None,
    set_: SetOption = None,
    prompts: PromptsOption = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    threads: ThreadsOption = None,
    nice: NiceOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on standard error.")] = False,
) -> None:
    """Let models answer a question: several write one text together, one answers alone."""
    from flowinfer.cli.exec import ask_one, read_ahead
    from flowinfer.language.joined import flow_of
    from flowinfer.zoo import select_zoo

    named = select_zoo(explicit=zoo).models
    models, question = _parted(words, named)
    if question is None:
        question = "" if sys.stdin.isatty() else read_stdin()
    if not (question := question.strip()):
        raise UsageError("no question", help="say it last, in quotes, or on standard input")
    flow = checked_text(flow_of(models, named), MODELS, Path(), zoo, settings(set_, prompts))
    read_ahead(flow)
    ask_one(flow, question, trace=trace, as_json=json_, quiet=quiet)


def _parted(words: Sequence[str], named: Collection[str]) -> tuple[list[str], str | None]:
    """Return the models, and the question that follows them, if one does.

    Raises:
        UsageError: the first word is no model, or a word before the last is none.
    """
    from flowinfer.language.joined import models_in

    models = list(itertools.takewhile(lambda word: models_in(word, named), words))
    rest = words[len(models) :]
    if not models or len(rest) > 1:
        raise UsageError(f"'{rest[0]}' is no model", help=_cure(rest[0], named))
    return [one for word in models for one in models_in(word, named)], next(iter(rest), None)


def _cure(word: str, named: Collection[str]) -> str:
    from flowinfer.language.joined import FORMS
    from flowinfer.language.nearness import did_you_mean
    from flowinfer.output import shell

    if word.endswith(".flow"):
        return f"it is a flow: {shell.command('exec', word, options='--prompt TEXT')}"
    return did_you_mean(word, named) or f"{FORMS}; a question of several words stands in quotes"
