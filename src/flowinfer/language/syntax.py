"""`.flow` text -> syntax tree. The grammar is grammar/collab.lark; tokens are split into statements before it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from functools import cache
from pathlib import Path
from typing import Any

from lark import Lark, Token, Tree, UnexpectedInput
from lark.lexer import BasicLexer

from flowinfer.errors import Span
from flowinfer.language.characters import lex
from flowinfer.language.mistakes import find_mistakes, unexpected
from flowinfer.language.reporter import NEWLINE, Reporter
from flowinfer.language.texts import unquote
from flowinfer.language.tokens import split_statements, token_span
from flowinfer.language.tree import (
    Branch,
    Call,
    Chain,
    Comment,
    Defaults,
    Document,
    FlowStatement,
    Group,
    Import,
    Let,
    Model,
    Name,
    Option,
    Param,
    Prompt,
    Statement,
    Value,
)
from flowinfer.spec import RENAMED

_LEAST_STATEMENTS = 4
"""So many in a file, none of which can be read, are no flow with a mistake but another text."""


def parse(text: str, file: str = "<flow>") -> Document:
    """Read a `.flow` text; problems are listed in the result, never raised."""
    text = NEWLINE.sub("\n", text.removeprefix("\ufeff"))
    report = Reporter(file, text)
    tokens = lex(_lexer(), text, report)
    comments = _comments(tokens)
    statements: list[Statement] = []
    num_sound = 0
    parts, builder = split_statements(tokens), _Builder(file)
    for part in parts:
        lines = range(part[0].line or 1, (part[-1].end_line or 1) + 1)
        is_spoiled = any(line in report.spoiled_lines for line in lines)
        told = Reporter(file, "") if is_spoiled else report  # what follows from a spoiled line is not told
        if find_mistakes(part, told):
            continue
        try:
            statements.append(builder.built(_parsed(part)))
            num_sound += not is_spoiled
        except UnexpectedInput as error:
            unexpected(error, part, told)
    if not num_sound and len(parts) >= _LEAST_STATEMENTS and not file.startswith("<"):
        place, statements = token_span(parts[0][0], file), []
        report = Reporter(file, "")  # whose lines are shown to nobody
        hint = "a flow is written like: Qwen -> (Yi | Ds)"
        report.error("E0023", f"this is no flow: none of its {len(parts)} statements can be read", place, hint)
    is_whole = len(statements) == len(parts)
    problems, codes = tuple(report.diagnostics), frozenset(report.codes)
    return Document(file, text, tuple(statements), comments, problems, is_whole, codes, report.num_untold)


def grammar_text() -> str:
    """Return the grammar, from the package or from a checkout."""
    inside = Path(__file__).parents[1] / "collab.lark"
    path = inside if inside.is_file() else Path(__file__).parents[3] / "grammar" / "collab.lark"
    return path.read_text(encoding="utf-8")


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


@cache
def _lexer() -> BasicLexer:
    """Return what cuts a whole text, comments and blanks too; `Lark.lex` would make and check one for each text."""
    conf = copy(_parser().lexer_conf)
    conf.ignore = ()
    return BasicLexer(conf)


def _parsed(tokens: Iterable[Token]) -> Tree[Token]:
    interactive = _parser().parse_interactive(start="statement")
    last = None
    for last in tokens:
        interactive.feed_token(last)
    tree: Tree[Token] = interactive.feed_eof(last)
    return tree


_AS_THEY_STAND = {"prompt": Prompt, "param": Param, "defaults": Defaults, "let": Let, "flow": FlowStatement}
"""Rules whose parts are their node's."""


class _Builder:
    """Build syntax nodes by the method that is named as the rule; judges nothing, so that it never raises."""

    def __init__(self, file: str) -> None:
        self._file = file

    def built(self, found: Any) -> Any:  # a tree becomes its rule's node; tokens and what is absent stay
        """Build what a rule stands for, as deep as brackets may nest."""
        if not isinstance(found, Tree):
            return found
        children = list(map(self.built, found.children))
        if found.data in _AS_THEY_STAND:
            return _AS_THEY_STAND[found.data](*children, self._span(found.meta))
        return getattr(self, found.data)(found.meta, children)

    def _span(self, meta: Any) -> Span:  # lark's Meta carries its places dynamically
        return Span(self._file, meta.line, meta.column, meta.end_line, meta.end_column)

    def model(self, meta: Any, children: list[Any]) -> Model:
        name, ref, settings = children
        return Model(name, ref, settings or (), self._span(meta))

    def import_(self, meta: Any, children: list[Any]) -> Import:
        return Import(unquote(children[0]), token_span(children[0], self._file))

    def chain(self, meta: Any, children: list[Any]) -> Chain:
        return Chain(tuple(children), self._span(meta))

    def call(self, meta: Any, children: list[Any]) -> Call:
        name, options, label = children
        return Call(name, options or (), label, self._span(meta))

    def group(self, meta: Any, children: list[Any]) -> Group:
        (kind, branches), times, options, label = children
        return Group(kind, branches, options or (), label, self._span(meta), times)

    def times(self, meta: Any, children: list[Any]) -> Value:
        return self.number(meta, children)

    def fused(self, meta: Any, children: list[Any]) -> tuple[str, tuple[Branch, ...]]:
        return "fuse", tuple(children)

    def answers(self, meta: Any, children: list[Any]) -> tuple[str, tuple[Branch, ...]]:
        return "answers", tuple(children)

    def choice(self, meta: Any, children: list[Any]) -> tuple[str, tuple[Branch, ...]]:
        return "choice", tuple(children)

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

    def name(self, meta: Any, children: list[Any]) -> Name:
        return Name(str(children[0]), token_span(children[0], self._file))

    key = name

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

    def applied(self, meta: Any, children: list[Any]) -> Value:
        word, name = children
        return Value("applied", (str(word), name), f"{word}({name.text})", self._span(meta))

    def parameter(self, meta: Any, children: list[Any]) -> Value:
        return self._value("parameter", str(children[0])[1:], children[0])

    def list(self, meta: Any, children: list[Any]) -> Value:
        items = tuple(child for child in children if isinstance(child, Value))
        raw = "[" + ", ".join(item.raw for item in items) + "]"
        return Value("list", items, raw, self._span(meta))

    def _value(self, kind: Any, data: Any, token: Token) -> Value:  # kind is one of Value.kind
        return Value(kind, data, str(token), token_span(token, self._file))
