"""Syntax tree of a `.flow` text: the words as written, with their places, and nothing decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from flowinfer.errors import Diagnostic, Span


@dataclass(frozen=True)
class Name:
    """A name as written, unquoted."""

    text: str
    span: Span


@dataclass(frozen=True)
class Value:
    """What stands after a '='."""

    kind: Literal["number", "string", "word", "parameter", "list", "applied"]
    data: Any
    """int or float; str; str; str without '$'; tuple of Values; tuple of the word and the name in its parentheses."""
    raw: str
    """As written."""
    span: Span


@dataclass(frozen=True)
class Option:
    """key = value, in brackets or braces."""

    key: str
    """By its present word."""
    value: Value
    span: Span
    """Of the key."""
    word: str
    """The key as written, which may be a former word."""


@dataclass(frozen=True)
class Call:
    """A name that stands for a model or a `let`."""

    name: Name
    options: tuple[Option, ...]
    label: Name | None
    span: Span


@dataclass(frozen=True)
class Chain:
    """Stages joined by '->'; at least one."""

    stages: tuple[Stage, ...]
    span: Span


@dataclass(frozen=True)
class Branch:
    """A chain in a group, with its weight as written."""

    chain: Chain
    weight: float | None
    weight_span: Span | None
    weight_text: str = ""
    """As written."""


@dataclass(frozen=True)
class Group:
    """Branches in parentheses."""

    kind: Literal["fuse", "answers", "choice"]
    branches: tuple[Branch, ...]
    options: tuple[Option, ...]
    label: Name | None
    span: Span
    times: Value | None = None
    """How often it runs, a number."""


Stage = Call | Group


@dataclass(frozen=True)
class Model:
    """model NAME = "ref" { options }"""

    name: Name
    ref: Value
    options: tuple[Option, ...]
    span: Span


@dataclass(frozen=True)
class Prompt:
    """prompt NAME = \"\"\"template\"\"\""""

    name: Name
    template: Value
    span: Span


@dataclass(frozen=True)
class Param:
    """param NAME: type = default"""

    name: Name
    type: Name
    default: Value | None
    span: Span


@dataclass(frozen=True)
class Defaults:
    """defaults { options }"""

    options: tuple[Option, ...]
    span: Span


@dataclass(frozen=True)
class Let:
    """let NAME = chain"""

    name: Name
    chain: Chain
    span: Span


@dataclass(frozen=True)
class Import:
    """import "file.flow" """

    path: str
    span: Span


@dataclass(frozen=True)
class FlowStatement:
    """The flow itself."""

    chain: Chain
    span: Span


Statement = Model | Prompt | Param | Defaults | Let | Import | FlowStatement


def expanded(chain: Chain, lets: Mapping[str, Chain], within: frozenset[str] = frozenset()) -> Chain:
    """Return a chain with lets in their places; those that are not known, or are being expanded, stay names."""
    stages: list[Stage] = []
    for stage in chain.stages:
        if isinstance(stage, Group):
            branches = (replace(one, chain=expanded(one.chain, lets, within)) for one in stage.branches)
            stages.append(replace(stage, branches=tuple(branches)))
        elif stage.name.text in lets and stage.name.text not in within and not stage.options:
            name = stage.name.text
            inner = expanded(lets[name], lets, within | {name}).stages
            last = replace(inner[-1], label=stage.label) if stage.label else inner[-1]
            stages += [*inner[:-1], last]
        else:
            stages.append(stage)
    return replace(chain, stages=tuple(stages))


@dataclass(frozen=True)
class Comment:
    """A comment, '#' included."""

    text: str
    line: int
    is_alone: bool
    """Whether nothing else stands on its line."""


@dataclass(frozen=True)
class Document:
    """A whole file: what could be read, and what could not."""

    file: str
    text: str
    statements: tuple[Statement, ...]
    comments: tuple[Comment, ...]
    problems: tuple[Diagnostic, ...]
    is_whole: bool = True
    """Whether every statement could be read, so that none would be lost by writing them out."""
    codes: frozenset[str] = frozenset()
    """Of all problems, also those that are too many to be listed."""
    num_untold: int = 0
    """How many problems are not listed."""
