"""Slips between the operators and operands of one flow: what is missing, doubled, mixed or out of place."""

from __future__ import annotations

from collections.abc import Sequence

from lark import Token

from flowinfer.language.reporter import Reporter
from flowinfer.language.tokens import CLOSING, KEYWORDS, OPENING, OPERATORS, token_span

STAGES = frozenset({"NAME", "STRING", "LPAR"}) | (KEYWORDS - {"AS"})
OWN_LINE = "write it in a line of its own: a statement ends with its line"


class OperandWalk:
    """Walk the operators and operands of one flow, level by level of its parentheses."""

    def __init__(self, tokens: Sequence[Token], report: Reporter) -> None:
        self._tokens = tokens
        self._report = report
        self._at = 0

    def walk(self) -> None:
        """Report what is wrong."""
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
            if token.type in STAGES:
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
            self._error("E0014", f"'{token}' stands behind a whole statement", token, OWN_LINE)
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
            first, second = (mark for mark in "|&/" if mark in (str(kind), str(token)))
            hint = f"nest one kind in the other: ((A {first} B) {second} C)"
            self._error("E0010", f"'{first}' and '{second}' mixed in one group", token, hint)
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
            depth += (token.type in OPENING) - (token.type in CLOSING)
            if not depth:
                return

    def _suffixes(self) -> None:
        """Skip how often an operand runs, its options and its label."""
        if self._peek("_STAR"):
            self._times(self._tokens[self._at], self._tokens[self._at - 1])
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

    def _times(self, star: Token, before: Token) -> None:
        self._at += 1
        if before.type != "RPAR":
            self._error(
                "E0024", f"'*' behind '{before}'", star, f"put what is to run again in parentheses: ({before})*3"
            )
        elif not self._peek("NUMBER"):
            self._error("E0024", "'*' without a number", star, "write how often the part runs: (A -> B)*3")
        self._at += self._peek("NUMBER") or self._peek("NAME") or self._peek("PARAMETER")

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
