"""Typical slips in the tokens of one statement, each with its own message and cure.

`find_mistakes` walks brackets, texts, operators and weights. What it lets pass and the grammar still refuses,
`unexpected` names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from lark import Token, UnexpectedInput, UnexpectedToken
from rapidfuzz import process

from flowinfer.errors import Span
from flowinfer.language.operands import OWN_LINE, STAGES, OperandWalk
from flowinfer.language.reporter import Reporter
from flowinfer.language.texts import is_escape
from flowinfer.language.tokens import CLOSING, KEYWORDS, OPENING, OPERATORS, token_span

MOST_LEVELS = 64
"""Deepest nesting of brackets, and of lets: far more than anyone reads, few enough for every recursion here."""


def find_mistakes(tokens: Sequence[Token], report: Reporter) -> bool:
    """Report the slips in one statement and return whether there are any."""
    before = report.num_problems
    _check_brackets(tokens, report)
    _check_escapes(tokens, report)
    if report.num_problems == before and not _check_keyword(tokens, report):
        region = _flow_region(tokens)
        if region:
            OperandWalk(region, report).walk()
    return report.num_problems > before


def _check_brackets(tokens: Sequence[Token], report: Reporter) -> None:
    stack: list[Token] = []
    for token in tokens:
        if token.type in OPENING:
            stack.append(token)
            if len(stack) > MOST_LEVELS:
                hint = "name inner parts with let, or write fewer parentheses"
                report.error("E0022", f"nested deeper than {MOST_LEVELS} levels", token_span(token, report.file), hint)
                return
        elif token.type in CLOSING:
            if stack and stack[-1].type == CLOSING[token.type]:
                stack.pop()
                continue
            _report_closing(token, stack, report)
            return
    if stack and any(d.code == "E0003" and d.span.line >= (stack[0].line or 0) for d in report.diagnostics):
        report.num_problems += 1
        return  # the text that is not closed has swallowed what closes them
    for token in stack:
        span = token_span(token, report.file)
        report.error("E0004", f"'{token}' is never closed", span, f"add '{_pair(token)}'")


def _report_closing(token: Token, stack: Sequence[Token], report: Reporter) -> None:
    span = token_span(token, report.file)
    if not stack:
        report.error("E0005", f"'{token}' closes nothing", span, "remove it, or open its bracket before")
        return
    opening = stack[-1]
    place = f"line {opening.line}, column {opening.column}"
    message = f"'{token}' cannot close the '{opening}' of {place}"
    report.error("E0005", message, span, f"close it with '{_pair(opening)}'")


def _pair(token: Token) -> str:
    return {"(": ")", "[": "]", "{": "}"}[str(token)]


def _check_escapes(tokens: Sequence[Token], report: Reporter) -> None:
    for token in tokens:
        if token.type != "STRING":
            continue
        for match in re.finditer(r"\\(?:u[0-9a-fA-F]{0,4}|x[0-9a-fA-F]{0,2}|.)", str(token)):
            if is_escape(match[0]):
                continue
            line, column = token.line or 1, (token.column or 1) + match.start()
            span = Span(report.file, line, column, line, column + len(match[0]))
            hint = f'write \'\\{match[0]}\' for a backslash; texts between """ need no escapes'
            report.error("E0018", f"'{match[0]}' is no escape", span, hint)


_DECLARATIONS = ("model", "prompt", "param", "defaults", "let", "import")


def _check_keyword(tokens: Sequence[Token], report: Reporter) -> bool:
    """Report a misspelt or missing keyword at the start of what has a declaration's shape."""
    shapes = [token.type for token in tokens[:3]]
    span = token_span(tokens[0], report.file)
    if shapes[:2] == ["NAME", "EQUAL"] or (shapes[:2] == ["NAME", "COLON"] and shapes[2:] != ["NUMBER"]):
        hint = f"a flow stands alone, without a name; a part of one gets a name by let: let {tokens[0]} = ..."
        report.error("E0015", f"'{tokens[0]} {tokens[1]}' begins no declaration", span, hint)
        return True
    is_declaration = shapes in (
        ["NAME", "NAME", "EQUAL"],
        ["NAME", "STRING", "EQUAL"],
        ["NAME", "NAME", "COLON"],
    )
    most = {"LBRACE": 2 + 40, "STRING": 2}.get(shapes[1] if len(shapes) > 1 else "", 0)
    is_short = shapes[0] == "NAME" and 2 <= len(tokens) <= most
    if not (is_declaration or is_short):
        return False
    near = process.extractOne(str(tokens[0]), _DECLARATIONS, score_cutoff=60)
    if not near and not is_declaration:
        return False
    hint = f"did you mean '{near[0]}'?" if near else f"declarations begin with {', '.join(_DECLARATIONS)}"
    report.error("E0015", f"unknown keyword '{tokens[0]}'", span, hint)
    return True


def _flow_region(tokens: Sequence[Token]) -> Sequence[Token]:
    """Return the tokens of a statement that state a flow, none for other declarations."""
    first = tokens[0].type
    if first == "LET":
        return tokens[3:] if len(tokens) > 3 and tokens[2].type == "EQUAL" else ()
    if first in KEYWORDS and len(tokens) > 1 and tokens[1].type not in OPERATORS:
        return ()
    return tokens


_PLAIN = ("NAME", "NUMBER", "COLON")
_WORDS = {
    "NAME": "a name",
    "STRING": "a text in quotes",
    "LONG_STRING": "a text in quotes",
    "NUMBER": "a number",
    "PARAMETER": "a $param",
    "EQUAL": "'='",
    "COLON": "':'",
    "COMMA": "','",
    "LPAR": "'('",
    "RPAR": "')'",
    "LSQB": "'['",
    "RSQB": "']'",
    "LBRACE": "'{'",
    "RBRACE": "'}'",
    "_ARROW": "'->'",
    "_PIPE": "'|'",
    "_AMP": "'&'",
}


def unexpected(error: UnexpectedInput, tokens: Sequence[Token], report: Reporter) -> None:
    """Report what the grammar refused, in the user's words; silent where an open text has swallowed the rest."""
    if any(d.code == "E0003" and d.span.line >= (tokens[0].line or 0) for d in report.diagnostics):
        return
    found = error.token if isinstance(error, UnexpectedToken) else tokens[-1]
    accepted = error.accepts or error.expected if isinstance(error, UnexpectedToken) else set()
    wanted = sorted({_WORDS[kind] for kind in accepted if kind in _WORDS})
    if {"NUMBER", "STRING", "LSQB"} <= set(accepted):
        wanted = ["a value"]
    listed = ", ".join(wanted[:-1]) + (" or " if len(wanted) > 1 else "") + wanted[-1] if wanted else "something else"
    if found.type == "$END":
        last = token_span(tokens[-1], report.file)
        report.error("E0017", f"the statement ends too early: expected {listed}", last)
        return
    span = token_span(found, report.file)
    before = [token for token in tokens if (token.start_pos or 0) < (found.start_pos or 0)]
    is_inside = sum((token.type in OPENING) - (token.type in CLOSING) for token in before) > 0
    if is_inside and {"COMMA", "_NL"} & set(accepted) and found.type in (*STAGES, *KEYWORDS, "NUMBER", "LSQB"):
        report.error("E0014", f"missing ',' before '{found}'", span)
    elif "_NL" in accepted and (found.type in STAGES or found.type in KEYWORDS):
        report.error("E0014", f"'{found}' stands behind a whole statement", span, OWN_LINE)
    elif found.type in KEYWORDS:
        report.error("E0016", f"'{found}' is a reserved word", span, f'quote it: "{found}"')
    else:
        unquoted = str(found) if wanted == ["a text in quotes"] and found.type == "NAME" else None
        if found.type == "COLON" and {"COMMA", "RSQB", "RBRACE"} & set(accepted):
            unquoted = _written_together(tokens, found)
        report.error("E0014", f"expected {listed}, found '{found}'", span, unquoted and f'quote it: "{unquoted}"')


def _written_together(tokens: Sequence[Token], found: Token) -> str | None:
    """Return the text without spaces that a token stands in: a device or an address whose quotes were left out."""
    first = last = next(index for index, token in enumerate(tokens) if token is found)
    while first and tokens[first - 1].end_pos == tokens[first].start_pos and tokens[first - 1].type in _PLAIN:
        first -= 1
    while (
        last + 1 < len(tokens)
        and tokens[last].end_pos == tokens[last + 1].start_pos
        and tokens[last + 1].type in _PLAIN
    ):
        last += 1
    return "".join(map(str, tokens[first : last + 1])) if first < last else None
