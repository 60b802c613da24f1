"""Syntax tree of a `.flow` text: the words as written, with their places, and nothing decided."""

from __future__ import annotations

from dataclasses import dataclass
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
