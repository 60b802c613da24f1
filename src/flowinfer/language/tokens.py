"""Tokens of a `.flow` text, and where one statement ends and the next begins.

A newline ends a statement except inside brackets or beside an operator, so that a mistake in one statement does not
hide those in others.
"""

from __future__ import annotations

from collections.abc import Sequence

from lark import Token

from flowinfer.errors import Span

OPERATORS = frozenset({"_ARROW", "_PIPE", "_AMP", "_SLASH"})
OPENING = {"LPAR": "RPAR", "LSQB": "RSQB", "LBRACE": "RBRACE"}
CLOSING = {closing: opening for opening, closing in OPENING.items()}
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
        depth += (token.type in OPENING) - (token.type in CLOSING and depth > 0)
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


def token_span(token: Token, file: str) -> Span:
    """Return where a token stands."""
    assert token.line and token.column and token.end_line and token.end_column, "lexed tokens have places"
    return Span(file, token.line, token.column, token.end_line, token.end_column)
