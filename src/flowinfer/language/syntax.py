"""`.flow` text -> syntax tree: the words as written, with their places, and nothing decided.

The grammar is grammar/collab.lark. Tokens are split into statements here (a newline ends one except inside brackets or
beside an operator), so that a mistake in one statement does not hide those in others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from lark import Lark, Token, Tree, UnexpectedInput, v_args
from lark.visitors import Transformer_NonRecursive

from flowinfer.errors import Diagnostic, Span
from flowinfer.language.texts import unquote
from flowinfer.spec import RENAMED


@dataclass(frozen=True)
class Name:
    """A name as written, unquoted."""

    text: str
    span: Span


@dataclass(frozen=True)
class Value:
    """What stands after a '='."""

    kind: Literal["number", "string", "word", "parameter", "list"]
    data: Any
    """int or float; str; str; str without '$'; tuple of Values."""
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

    kind: Literal["fuse", "answers"]
    branches: tuple[Branch, ...]
    options: tuple[Option, ...]
    label: Name | None
    span: Span


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


def parse(text: str, file: str = "<flow>") -> Document:
    """Read a `.flow` text; problems are listed in the result, never raised."""
    from flowinfer.language.characters import lex
    from flowinfer.language.mistakes import find_mistakes, unexpected
    from flowinfer.language.reporter import NEWLINE, Reporter

    text = NEWLINE.sub("\n", text.removeprefix("\ufeff"))
    report = Reporter(file, text)
    tokens = lex(_parser(), text, report)
    comments = _comments(tokens)
    statements: list[Statement] = []
    parts = split_statements(tokens)
    for part in parts:
        lines = range(part[0].line or 1, (part[-1].end_line or 1) + 1)
        is_spoiled = any(line in report.spoiled_lines for line in lines)
        told = Reporter(file, "") if is_spoiled else report  # what follows from a spoiled line is not told
        if find_mistakes(part, told):
            continue
        try:
            statements.append(_parse_statement(part, file))
        except UnexpectedInput as error:
            unexpected(error, part, told)
    is_whole = len(statements) == len(parts)
    problems, codes = tuple(report.diagnostics), frozenset(report.codes)
    return Document(file, text, tuple(statements), comments, problems, is_whole, codes, report.num_untold)


def grammar_text() -> str:
    """Return the grammar, from the package or from a checkout."""
    inside = Path(__file__).parents[1] / "collab.lark"
    path = inside if inside.is_file() else Path(__file__).parents[3] / "grammar" / "collab.lark"
    return path.read_text(encoding="utf-8")


OPERATORS = frozenset({"_ARROW", "_PIPE", "_AMP"})
OPENING = {"LPAR": "RPAR", "LSQB": "RSQB", "LBRACE": "RBRACE"}
KEYWORDS = frozenset({"MODEL", "PROMPT", "PARAM", "DEFAULTS", "LET", "IMPORT", "AS"})
_GLUE = OPERATORS | {"EQUAL", "COMMA", "COLON"}


def split_statements(tokens: Sequence[Token]) -> list[list[Token]]:
    """Cut tokens into statements at the newlines that end one."""
    words: list[Token] = []
    for token in tokens:
        is_repeated = token.type == "_NL" and bool(words) and words[-1].type == "_NL"
        if token.type not in ("WS", "COMMENT") and not is_repeated:
            words.append(token)
    parts: list[list[Token]] = [[]]
    depth = 0
    for index, token in enumerate(words):
        if token.type == "_NL":
            following = words[index + 1] if index + 1 < len(words) else None
            if _ends_statement(parts[-1], following, depth) or _begins_declaration(words, index):
                parts.append([])
                depth = 0
            continue
        depth += (token.type in OPENING) - (token.type in OPENING.values() and depth > 0)
        parts[-1].append(token)
    return [part for part in parts if part]


def _ends_statement(before: Sequence[Token], following: Token | None, depth: int) -> bool:
    if depth or not before or before[-1].type in _GLUE:
        return False
    return following is None or following.type not in OPERATORS


def _begins_declaration(words: Sequence[Token], newline: int) -> bool:
    """Return whether a new declaration follows, even inside a bracket that was never closed."""
    ahead = words[newline + 1 : newline + 4]
    if not ahead or ahead[0].type not in KEYWORDS - {"AS"}:
        return False
    shapes = [token.type for token in ahead[1:]]
    if ahead[0].type == "DEFAULTS":
        return shapes[:1] == ["LBRACE"]
    if ahead[0].type == "IMPORT":
        return shapes[:1] == ["STRING"]
    return len(shapes) == 2 and shapes[1] in ("EQUAL", "COLON") and shapes[0] in ("NAME", "STRING")


def _comments(tokens: Sequence[Token]) -> tuple[Comment, ...]:
    busy = {
        line
        for token in tokens
        if token.type not in ("WS", "COMMENT", "_NL")
        for line in range(token.line or 0, (token.end_line or 0) + 1)
    }
    return tuple(
        Comment(str(token).rstrip(), token.line or 0, token.line not in busy)
        for token in tokens
        if token.type == "COMMENT"
    )


@cache
def _parser() -> Lark:
    return Lark(
        grammar_text(),
        parser="lalr",
        lexer="basic",
        start=["start", "statement"],
        propagate_positions=True,
        maybe_placeholders=True,
    )


def _parse_statement(tokens: Iterable[Token], file: str) -> Statement:
    interactive = _parser().parse_interactive(start="statement")
    last = None
    for last in tokens:
        interactive.feed_token(last)
    tree: Tree[Token] = interactive.feed_eof(last)
    statement: Statement = _Builder(file).transform(tree)
    return statement


def token_span(token: Token, file: str) -> Span:
    """Return where a token stands."""
    assert token.line and token.column and token.end_line and token.end_column, "lexed tokens have places"
    return Span(file, token.line, token.column, token.end_line, token.end_column)


@v_args(meta=True)
class _Builder(Transformer_NonRecursive[Token, Any]):
    """Build syntax nodes; judges nothing, so that it never raises."""

    def __init__(self, file: str) -> None:
        super().__init__()
        self._file = file

    def _span(self, meta: Any) -> Span:  # lark's Meta carries its places dynamically
        return Span(self._file, meta.line, meta.column, meta.end_line, meta.end_column)

    def model(self, meta: Any, children: list[Any]) -> Model:
        name, ref, settings = children
        return Model(name, ref, settings or (), self._span(meta))

    def prompt(self, meta: Any, children: list[Any]) -> Prompt:
        return Prompt(children[0], children[1], self._span(meta))

    def param(self, meta: Any, children: list[Any]) -> Param:
        return Param(children[0], children[1], children[2], self._span(meta))

    def defaults(self, meta: Any, children: list[Any]) -> Defaults:
        return Defaults(children[0], self._span(meta))

    def let(self, meta: Any, children: list[Any]) -> Let:
        return Let(children[0], children[1], self._span(meta))

    def import_(self, meta: Any, children: list[Any]) -> Import:
        return Import(unquote(children[0]), token_span(children[0], self._file))

    def flow(self, meta: Any, children: list[Any]) -> FlowStatement:
        return FlowStatement(children[0], self._span(meta))

    def chain(self, meta: Any, children: list[Any]) -> Chain:
        return Chain(tuple(children), self._span(meta))

    def call(self, meta: Any, children: list[Any]) -> Call:
        name, options, label = children
        return Call(name, options or (), label, self._span(meta))

    def group(self, meta: Any, children: list[Any]) -> Group:
        (kind, branches), options, label = children
        return Group(kind, branches, options or (), label, self._span(meta))

    def fused(self, meta: Any, children: list[Any]) -> tuple[str, tuple[Branch, ...]]:
        return "fuse", tuple(children)

    def answers(self, meta: Any, children: list[Any]) -> tuple[str, tuple[Branch, ...]]:
        return "answers", tuple(children)

    def branch(self, meta: Any, children: list[Any]) -> Branch:
        chain, weight = children
        if weight is None:
            return Branch(chain, None, None)
        return Branch(chain, float(weight), token_span(weight, self._file), str(weight))

    def options(self, meta: Any, children: list[Any]) -> tuple[Option, ...]:
        return tuple(child for child in children if isinstance(child, Option))

    settings = options

    def option(self, meta: Any, children: list[Any]) -> Option:
        key, value = children
        return Option(RENAMED.get(key.text, key.text), value, key.span, key.text)

    def key(self, meta: Any, children: list[Any]) -> Name:
        return Name(str(children[0]), token_span(children[0], self._file))

    def name(self, meta: Any, children: list[Any]) -> Name:
        return Name(str(children[0]), token_span(children[0], self._file))

    def quoted(self, meta: Any, children: list[Any]) -> Name:
        return Name(unquote(children[0]), token_span(children[0], self._file))

    def number(self, meta: Any, children: list[Any]) -> Value:
        text = str(children[0])
        is_integer = text.lstrip("+-").isdigit() and len(text) < 400  # Python refuses to read far longer ones
        return self._value("number", int(text) if is_integer else float(text), children[0])

    def string(self, meta: Any, children: list[Any]) -> Value:
        return self._value("string", unquote(children[0]), children[0])

    long_string = string

    def word(self, meta: Any, children: list[Any]) -> Value:
        return self._value("word", str(children[0]), children[0])

    def parameter(self, meta: Any, children: list[Any]) -> Value:
        return self._value("parameter", str(children[0])[1:], children[0])

    def list(self, meta: Any, children: list[Any]) -> Value:
        items = tuple(child for child in children if isinstance(child, Value))
        raw = "[" + ", ".join(item.raw for item in items) + "]"
        return Value("list", items, raw, self._span(meta))

    def _value(self, kind: Any, data: Any, token: Token) -> Value:  # kind is one of Value.kind
        return Value(kind, data, str(token), token_span(token, self._file))
