"""Typical slips in `.flow` text, each with its own message and cure.

`sanitize` reads characters: full-width punctuation, wrong arrows, unterminated texts. `find_mistakes` walks the tokens
of one statement: brackets, operators, weights. What both let pass and the grammar still refuses, `unexpected` names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from lark import Lark, Token, UnexpectedCharacters, UnexpectedInput, UnexpectedToken
from rapidfuzz import process

from flowinfer.errors import Diagnostic, Severity, Span
from flowinfer.syntax import KEYWORDS, OPENING, OPERATORS, token_span

FULL_WIDTH = {
    "（": "(",
    "）": ")",
    "｜": "|",
    "：": ":",
    "，": ",",
    "“": '"',
    "”": '"',
    "＝": "=",
    "＆": "&",
    "［": "[",
    "］": "]",
    "【": "[",
    "】": "]",
    "｛": "{",
    "｝": "}",
    "＄": "$",
    "＃": "#",
    "＂": '"',
    "－": "-",
    "＞": ">",
    "、": ",",
    "；": " ",
    "‘": "'",
    "’": "'",
}
"""Full-width characters and what was meant; equal lengths, so that places stay true."""

_PIECE = re.compile(
    r'(?P<comment>#[^\r\n]*)|(?P<long>"""(?:[^\\]|\\[\s\S])*?""")|(?P<text>"(?!"")(?:[^"\\\r\n]|\\.)*"|\'(?:[^\'\\\r\n]|\\.)*\')'
    r'|(?P<open>"""[\s\S]*|["\'][^\r\n]*)|(?P<wide_text>“[^”\r\n]*”|‘[^’\r\n]*’)|(?P<arrow>=>|-->|--(?=\s)|>>)'
    r"|(?P<wide>[（）｜：，“”＝＆［］【】｛｝＄＃＂－＞、；‘’])"
    r"|(?P<bad>[^\s\w\"'#()\[\]{}|&:,=$.+→>\u00a0-])|(?P<gt>(?<!-)>)|(?P<minus>-(?![>\w.]))"
)


class Reporter:
    """Collects diagnostics about one text."""

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self.lines = re.split(r"\r\n|\n|\r", text)
        self.diagnostics: list[Diagnostic] = []

    def error(self, code: str, message: str, span: Span, help: str | None = None) -> None:
        """Add an error."""
        self._add(code, Severity.ERROR, message, span, help)

    def warning(self, code: str, message: str, span: Span, help: str | None = None) -> None:
        """Add a warning."""
        self._add(code, Severity.WARNING, message, span, help)

    def place(self, text: str, start: int, end: int) -> Span:
        """Return the span of text[start:end], within one line."""
        before = re.split(r"\r\n|\n|\r", text[:start])
        column = len(before[-1]) + 1
        width = len(re.split(r"\r\n|\n|\r", text[start:end])[0])
        return Span(self.file, len(before), column, len(before), column + width)

    def _add(self, code: str, severity: Severity, message: str, span: Span, help: str | None) -> None:
        line = self.lines[span.line - 1] if span.line <= len(self.lines) else ""
        found = Diagnostic(code, severity, message, span, line, help)
        if found not in self.diagnostics:
            self.diagnostics.append(found)


def sanitize(text: str, report: Reporter) -> str:
    """Report characters that the language does not know and return a text of the same length without them."""
    pieces: list[str] = []
    at = 0
    for match in _PIECE.finditer(text):
        kind, found = str(match.lastgroup), match[0]
        pieces += [text[at : match.start()], _mend(kind, found)]
        at = match.end()
        if kind in ("comment", "long", "text"):
            continue
        start = match.start()
        _report_character(kind, found, report, text, start)
    mended = "".join([*pieces, text[at:]])
    return mended


def lex(lexer: Lark, text: str, report: Reporter) -> list[Token]:
    """Cut a text into tokens, comments and blanks among them; what fits nowhere is reported and passed over."""
    mended = sanitize(text, report)
    while True:
        try:
            return list(lexer.lex(mended, dont_ignore=True))
        except UnexpectedCharacters as error:
            at = error.pos_in_stream or 0
            span = report.place(mended, at, at + 1)
            report.error("E0001", f"unexpected character '{mended[at]}'", span, "remove it, or quote the name it is in")
            mended = mended[:at] + " " + mended[at + 1 :]


def _mend(kind: str, found: str) -> str:
    match kind:
        case "comment" | "long" | "text":
            return found
        case "open":
            return (
                '"' + re.sub(r'[\\"]', "x", found[1:-1]) + '"'
                if len(found) > 1 and "\n" not in found
                else _blank(found)
            )
        case "wide_text":
            return '"' + found[1:-1].replace('"', "'") + '"'
        case "arrow":
            return "->".ljust(len(found))
        case "minus":
            return "→"  # as long as the slip
        case "wide":
            return FULL_WIDTH[found]
    return " "


def _blank(found: str) -> str:
    """Put a name in a long text's place and keep its line breaks."""
    return "x" + re.sub(r"[^\r\n]", " ", found[1:])


def _report_character(kind: str, found: str, report: Reporter, text: str, start: int) -> None:
    span = report.place(text, start, start + len(found))
    match kind:
        case "open":
            quote = '"""' if found.startswith('"""') else found[0]
            report.error("E0003", f"text is not closed: no {quote} follows", span, f"end it with {quote}")
        case "wide_text" | "wide":
            for offset, character in enumerate(found):
                if character in FULL_WIDTH and (kind == "wide" or offset in (0, len(found) - 1)):
                    place = report.place(text, start + offset, start + offset + 1)
                    meant = FULL_WIDTH[character].strip() or "a new line"
                    report.error("E0002", f"full-width '{character}'", place, f"write '{meant}'; `fmt` does it")
        case "arrow" | "gt":
            report.error("E0008", f"'{found}' is not an operator", span, "stages are joined by '->'")
        case "minus":
            report.error("E0001", "a lone '-'", span, "stages are joined by '->'; names may hold '-' inside")
        case _:
            report.error("E0001", f"unexpected character '{found}'", span, "remove it, or quote the name it is in")


def find_mistakes(tokens: Sequence[Token], report: Reporter) -> bool:
    """Report the slips in one statement and return whether there are any."""
    before = len(report.diagnostics)
    _check_brackets(tokens, report)
    if len(report.diagnostics) == before and not _check_keyword(tokens, report):
        region = _flow_region(tokens)
        if region:
            _FlowWalk(region, report).walk()
    return len(report.diagnostics) > before


_CLOSING = {closing: opening for opening, closing in OPENING.items()}


def _check_brackets(tokens: Sequence[Token], report: Reporter) -> None:
    stack: list[Token] = []
    for token in tokens:
        if token.type in OPENING:
            stack.append(token)
        elif token.type in _CLOSING:
            if stack and stack[-1].type == _CLOSING[token.type]:
                stack.pop()
                continue
            span = token_span(token, report.file)
            if not stack:
                report.error("E0005", f"'{token}' closes nothing", span, "remove it, or open its bracket before")
                return
            report.error(
                "E0005",
                f"'{token}' cannot close the '{stack[-1]}' of line {stack[-1].line}, column {stack[-1].column}",
                span,
                f"close it with '{_pair(stack[-1])}'",
            )
            return
    for token in stack:
        span = token_span(token, report.file)
        if any(d.code == "E0003" and d.span.line >= span.line for d in report.diagnostics):
            return  # the text that is not closed has swallowed the bracket
        report.error("E0004", f"'{token}' is never closed", span, f"add '{_pair(token)}'")


def _pair(token: Token) -> str:
    return {"(": ")", "[": "]", "{": "}"}[str(token)]


_DECLARATIONS = ("model", "prompt", "param", "defaults", "let", "import")


def _check_keyword(tokens: Sequence[Token], report: Reporter) -> bool:
    """Report a misspelt keyword at the start of what has a declaration's shape."""
    shapes = [token.type for token in tokens[:3]]
    is_declaration = shapes in (
        ["NAME", "NAME", "EQUAL"],
        ["NAME", "STRING", "EQUAL"],
        ["NAME", "NAME", "COLON"],
    )
    is_short = shapes[:2] in (["NAME", "LBRACE"], ["NAME", "STRING"]) and len(tokens) <= 2 + 40 * (
        shapes[1:2] == ["LBRACE"]
    )
    if not (is_declaration or is_short):
        return False
    near = process.extractOne(str(tokens[0]), _DECLARATIONS, score_cutoff=60)
    if not near and not is_declaration:
        return False
    hint = f"did you mean '{near[0]}'?" if near else f"declarations begin with {', '.join(_DECLARATIONS)}"
    report.error("E0015", f"unknown keyword '{tokens[0]}'", token_span(tokens[0], report.file), hint)
    return True


def _flow_region(tokens: Sequence[Token]) -> Sequence[Token]:
    """Return the tokens of a statement that state a flow, none for other declarations."""
    first = tokens[0].type
    if first == "LET":
        return tokens[3:] if len(tokens) > 3 and tokens[2].type == "EQUAL" else ()
    if first in KEYWORDS and len(tokens) > 1 and tokens[1].type not in OPERATORS:
        return ()
    return tokens


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
            if token.type == "LPAR" or token.type in ("NAME", "STRING") or token.type in KEYWORDS - {"AS"}:
                if has_operand:
                    self._error("E0006", f"missing operator before '{token}'", token, "join stages with '->'")
                if token.type in KEYWORDS:
                    hint = f'quote it: "{token}"'
                    self._error("E0016", f"'{token}' is a reserved word", token, hint)
                if token.type == "LPAR":
                    self._level(token)
                has_operand, last = True, token
                self._suffixes()
            elif token.type in OPERATORS or token.type == "COMMA":
                if not has_operand:
                    self._nothing(last, token)
                kind = self._operator(token, opening, kind)
                has_operand, last = False, token
            elif token.type == "COLON":
                self._weight(token, opening)
            else:
                hint = "a stage is a model's name or a group in parentheses"
                self._error("E0014", f"unexpected '{token}' in a flow", token, hint)
                has_operand = True
        if not has_operand:
            self._nothing(last, None)

    def _operator(self, token: Token, opening: Token | None, kind: Token | None) -> Token | None:
        if token.type == "COMMA":
            self._error("E0009", "',' in a flow", token, "separate the branches of a group with '|' or '&'")
        elif token.type != "_ARROW":
            if opening is None:
                hint = "put the group in parentheses: (A | B)"
                self._error("E0011", f"'{token}' outside parentheses", token, hint)
            elif kind is not None and kind.type != token.type:
                hint = "nest one kind in the other: ((A | B) & C)"
                self._error("E0010", "'|' and '&' mixed in one group", token, hint)
            return kind or token
        return kind

    def _suffixes(self) -> None:
        """Skip options and label of an operand."""
        if self._peek("LSQB"):
            depth = 0
            while self._at < len(self._tokens):
                token = self._tokens[self._at]
                self._at += 1
                depth += (token.type == "LSQB") - (token.type == "RSQB")
                if not depth:
                    break
        if self._peek("AS"):
            self._at += 1
            if self._at < len(self._tokens) and self._tokens[self._at].type in ("NAME", "STRING"):
                self._at += 1
            else:
                word = self._tokens[self._at - 1]
                self._error("E0017", "a label must follow 'as'", word, "for example: Qwen as draft")

    def _weight(self, colon: Token, opening: Token | None) -> None:
        if not self._peek("NUMBER"):
            hint = "write it as a number: (A:0.7 | B:0.3)"
            self._error("E0013", "a weight must be a number", colon, hint)
            if self._at < len(self._tokens) and self._tokens[self._at].type in (
                "NAME",
                "PARAMETER",
                "STRING",
            ):
                self._at += 1
            return
        self._at += 1
        if opening is None:
            self._error("E0013", "a weight outside a group", colon, "weights belong to branches: (A:0.7 | B:0.3)")
        elif self._peek("_ARROW"):
            hint = "write the weight after the whole branch: (A -> B:0.7 | C:0.3)"
            self._error("E0013", "a weight inside a branch", colon, hint)

    def _nothing(self, last: Token | None, found: Token | None) -> None:
        """Report that an operand is missing between two tokens."""
        place = found or last
        if place is None:
            return
        if last is not None and last.type in OPERATORS and found is not None and found.type in OPERATORS:
            if last.type == found.type == "_ARROW":
                self._error("E0007", f"doubled operator '{last} {found}'", found, "remove one of them")
            else:
                self._error("E0012", f"nothing between '{last}' and '{found}'", found, "name a model, or remove one")
        elif last is not None and last.type == "LPAR" and found is not None and found.type == "RPAR":
            self._error("E0012", "empty group", last, "name at least one model in it")
        elif last is None or last.type == "LPAR":
            self._error("E0012", f"nothing before '{place}'", place, "name a model before it, or remove it")
        else:
            self._error("E0012", f"nothing after '{last}'", last, "name a model after it, or remove it")

    def _peek(self, kind: str) -> bool:
        return self._at < len(self._tokens) and self._tokens[self._at].type == kind

    def _error(self, code: str, message: str, token: Token, help: str) -> None:
        self._report.error(code, message, token_span(token, self._report.file), help)


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
    listed = ", ".join(wanted[:-1]) + (" or " if len(wanted) > 1 else "") + wanted[-1] if wanted else "something else"
    if found.type == "$END":
        last = token_span(tokens[-1], report.file)
        report.error("E0017", f"the statement ends too early: expected {listed}", last)
        return
    span = token_span(found, report.file)
    if found.type in KEYWORDS:
        report.error("E0016", f"'{found}' is a reserved word", span, f'quote it: "{found}"')
    else:
        report.error("E0014", f"expected {listed}, found '{found}'", span)
