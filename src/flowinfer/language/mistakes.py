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
from flowinfer.language.reporter import Reporter
from flowinfer.language.texts import is_escape
from flowinfer.language.tokens import KEYWORDS, OPENING, OPERATORS, token_span

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
            _FlowWalk(region, report).walk()
    return report.num_problems > before


_CLOSING = {closing: opening for opening, closing in OPENING.items()}


def _check_brackets(tokens: Sequence[Token], report: Reporter) -> None:
    stack: list[Token] = []
    for token in tokens:
        if token.type in OPENING:
            stack.append(token)
            if len(stack) > MOST_LEVELS:
                hint = "name inner parts with let, or write fewer parentheses"
                report.error("E0022", f"nested deeper than {MOST_LEVELS} levels", token_span(token, report.file), hint)
                return
        elif token.type in _CLOSING:
            if stack and stack[-1].type == _CLOSING[token.type]:
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


_STAGES = frozenset({"NAME", "STRING", "LPAR"}) | (KEYWORDS - {"AS"})


class _FlowWalk:
    """Walk the operators and operands of one flow, level by level of its parentheses."""

    def __init__(self, tokens: Sequence[Token], report: Reporter) -> None:
        self._tokens = tokens
        self._report = report
        self._at = 0

    def walk(self) -> None:
        self._level(opening=None)

    def _level(self, opening: Token | None) -> None:
        """Walk to the end of this level; stop at its closing parenthesis."""
        last: Token | None = opening
        has_operand = False
        kind: Token | None = None
        while self._at < len(self._tokens):
            token = self._tokens[self._at]
            self._at += 1
            if token.type == "RPAR":
                if not has_operand:
                    self._nothing(last, token)
                return
            if token.type in _STAGES:
                self._stage(token, opening, has_operand=has_operand)
                has_operand, last = True, token
            elif token.type in OPERATORS:
                if not has_operand:
                    self._nothing(last, token)
                kind = self._operator(token, opening, kind)
                has_operand, last = False, token
            elif token.type == "COMMA":
                self._comma(token)
                has_operand, last = has_operand and self._peek("NUMBER"), token
            elif token.type == "COLON":
                self._weight(token, opening)
            else:
                self._stray(token)
                has_operand = True
        if not has_operand:
            self._nothing(last, None)

    def _stage(self, token: Token, opening: Token | None, *, has_operand: bool) -> None:
        if has_operand and token.type == "LPAR" and self._peek("NAME") and self._peek("EQUAL", 1):
            self._options_elsewhere(token)
            return
        if has_operand and not opening and token.type in KEYWORDS and (self._peek("NAME") or self._peek("STRING")):
            self._error("E0014", f"'{token}' stands behind a whole statement", token, _OWN_LINE)
            self._at = len(self._tokens)  # what follows is no part of the flow
            return
        if has_operand:
            hint = "join stages with '->'" + (", branches with '|' or '&'" if opening else "")
            self._error("E0006", f"missing operator before '{token}'", token, hint)
        elif token.type in KEYWORDS:
            self._reserved(token)
        if token.type == "LPAR":
            self._level(token)
        self._suffixes()

    def _operator(self, token: Token, opening: Token | None, kind: Token | None) -> Token | None:
        if token.type == "_ARROW":
            return kind
        if opening is None:
            if kind is None:
                hint = f"put the group in parentheses: (A {token} B)"
                self._error("E0011", f"'{token}' outside parentheses", token, hint)
        elif kind is not None and kind.type != token.type:
            hint = "nest one kind in the other: ((A | B) & C)"
            self._error("E0010", "'|' and '&' mixed in one group", token, hint)
        return kind or token

    def _comma(self, token: Token) -> None:
        before = self._tokens[self._at - 2] if self._at > 1 else token
        if before.type == "NUMBER" and self._peek("NUMBER"):
            after = self._tokens[self._at]
            self._at += 1
            hint = f"write {before}.{after} with a point"
            self._error("E0013", "a decimal comma in a weight", token, hint)
        else:
            self._error("E0009", "',' in a flow", token, "separate the branches of a group with '|' or '&'")

    def _stray(self, token: Token) -> None:
        """Report a token that no flow has here, and pass over what belongs to it."""
        if token.type in ("LBRACE", "LSQB"):
            self._options_elsewhere(token)
        elif token.type == "NUMBER" and self._peek("COLON"):
            self._at += 2
            hint = "write it after the whole branch: (A:0.7 | B:0.3)"
            self._error("E0013", "a weight before its branch", token, hint)
        elif token.type == "AS":
            self._at += self._peek("NAME") or self._peek("STRING")
            self._error("E0014", "a second label", token, "a stage has one label")
        else:
            hint = "a stage is a model's name or a group in parentheses"
            self._error("E0014", f"unexpected '{token}' in a flow", token, hint)

    def _options_elsewhere(self, opening: Token) -> None:
        """Report options in the wrong brackets, or away from their stage, and pass over them."""
        self._at -= 1
        self._skip_brackets()
        hint = "options stand in square brackets behind a stage, before its label: Qwen[max_tokens=64] as draft"
        self._error("E0014", f"unexpected '{opening}' in a flow", opening, hint)

    def _skip_brackets(self) -> None:
        """Go behind the bracket that closes the one here."""
        depth = 0
        while self._at < len(self._tokens):
            token = self._tokens[self._at]
            self._at += 1
            depth += (token.type in OPENING) - (token.type in _CLOSING)
            if not depth:
                return

    def _suffixes(self) -> None:
        """Skip options and label of an operand."""
        if self._peek("LSQB"):
            self._skip_brackets()
        if not self._peek("AS"):
            return
        word = self._tokens[self._at]
        self._at += 1
        label = self._tokens[self._at] if self._at < len(self._tokens) else word
        if label.type in ("NAME", "STRING") or label.type in KEYWORDS:
            self._at += label is not word
        if label.type in KEYWORDS and label is not word:
            self._reserved(label)
        elif label.type not in ("NAME", "STRING"):
            self._error("E0017", "a label must follow 'as'", word, "for example: Qwen as draft")

    def _reserved(self, token: Token) -> None:
        self._error("E0016", f"'{token}' is a reserved word", token, f'quote it: "{token}"')

    def _weight(self, colon: Token, opening: Token | None) -> None:
        if opening is None:
            self._at += self._peek("NUMBER")
            self._error("E0013", "a weight outside a group", colon, "weights belong to branches: (A:0.7 | B:0.3)")
        elif not self._peek("NUMBER"):
            self._at += any(self._peek(kind) for kind in ("NAME", "PARAMETER", "STRING"))
            self._error("E0013", "a weight must be a number", colon, "write it as a number: (A:0.7 | B:0.3)")
        else:
            self._at += 1
            if self._peek("_ARROW"):
                hint = "write the weight after the whole branch: (A -> B:0.7 | C:0.3)"
                self._error("E0013", "a weight inside a branch", colon, hint)

    def _nothing(self, last: Token | None, found: Token | None) -> None:
        """Report that an operand is missing between two tokens."""
        place = found or last
        if place is None:
            return
        if last is not None and last.type in OPERATORS and found is not None and found.type in OPERATORS:
            self._nothing_between(last, found)
        elif last is not None and last.type == "LPAR" and found is not None and found.type == "RPAR":
            self._error("E0012", "empty group", last, "name at least one model in it")
        elif last is None or last.type == "LPAR":
            self._error("E0012", f"nothing before '{place}'", place, "name a model before it, or remove it")
        else:
            self._error("E0012", f"nothing after '{last}'", last, "name a model after it, or remove it")

    def _nothing_between(self, last: Token, found: Token) -> None:
        is_close = last.end_pos == found.start_pos
        if last.type == found.type and (is_close or last.type == "_ARROW"):
            written = f"{last}{found}" if is_close else f"{last} {found}"
            self._error("E0007", f"doubled operator '{written}'", found, "remove one of them")
        else:
            self._error("E0012", f"nothing between '{last}' and '{found}'", found, "name a model, or remove one")

    def _peek(self, kind: str, ahead: int = 0) -> bool:
        at = self._at + ahead
        return at < len(self._tokens) and self._tokens[at].type == kind

    def _error(self, code: str, message: str, token: Token, help: str) -> None:
        self._report.error(code, message, token_span(token, self._report.file), help)


_OWN_LINE = "write it in a line of its own: a statement ends with its line"
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
    if "_NL" in accepted and (found.type in _STAGES or found.type in KEYWORDS):
        report.error("E0014", f"'{found}' stands behind a whole statement", span, _OWN_LINE)
    elif found.type in KEYWORDS:
        report.error("E0016", f"'{found}' is a reserved word", span, f'quote it: "{found}"')
    else:
        hint = f'quote it: "{found}"' if wanted == ["a text in quotes"] and found.type == "NAME" else None
        report.error("E0014", f"expected {listed}, found '{found}'", span, hint)
