"""Algebraic expressions: a small reader, so that no text of a model is ever evaluated, and exact equality."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from flowinfer.tasks.answers.numbers import near

_TOKEN = re.compile(
    r"\s*(?:(\d+(?:\.\d+)?|\.\d+)|(sqrt|pi|log|ln|exp|sin|cos|tan|cot|sec|csc|oo)(?![a-z])|([a-zA-Z])(?:_\w+)?"
    r"|(\*\*|[-+*/^()!±]))"
)
_FUNCTIONS = ("sqrt", "log", "exp", "sin", "cos", "tan", "cot", "sec", "csc")
_WORD = re.compile(r"[A-Za-z]{3,}")
_SCIENTIFIC = re.compile(r"(?<=\d)[eE]([+-]?\d{1,2})(?![\w.])")
_POINTS = (Fraction(1009, 613), Fraction(2029, 1031), Fraction(-739, 421))
"""Where two rational functions are compared: they agree at all of them by chance as good as never."""
_MAX_LENGTH = 300
_MAX_POWER = 5_000
"""Largest exponent, and most bits of a number's power."""
_MAX_DIGITS = 60
_MAX_FACTORIAL = 30


@dataclass(frozen=True)
class Expression:
    """A parsed expression."""

    text: str
    tree: Any
    """A sympy expression; sympy is untyped."""
    symbols: frozenset[str]
    value: Fraction | None
    """Its value, where it is a plain rational number."""


class _Refused(Exception):
    """The text is no expression that this reader accepts."""


@lru_cache(maxsize=4096)
def parse_expression(text: str) -> Expression | None:
    """Read an expression, or return None where the text is none.

    Accepts numbers, single letters, + - * / ^ **, parentheses, implicit products, sqrt, pi, log, ln, exp,
    sin, cos, tan, cot, sec, csc, factorials.
    Powers and lengths are bounded, so that no text takes long.
    """
    text = _SCIENTIFIC.sub(r"*10^(\1)", text.strip())
    if not text or len(text) > _MAX_LENGTH:
        return None
    try:
        tokens = _tokens(text)
        reader = _Reader(tokens)
        tree = reader.sum()
        if reader.at < len(tokens):
            return None
    except (_Refused, RecursionError, ZeroDivisionError, OverflowError):
        return None
    value = Fraction(int(tree.p), int(tree.q)) if tree.is_Rational else None
    return Expression(text, tree, frozenset(str(symbol) for symbol in tree.free_symbols), value)


def equal(left: Expression, right: Expression) -> bool:
    """Return whether two expressions are the same function or number."""
    if left.value is not None and right.value is not None:
        return near(left.value, right.value)
    if left.symbols != right.symbols:
        return False
    if left.tree == right.tree:
        return True
    import sympy

    try:
        difference = left.tree - right.tree
        is_exact = bool(left.symbols) and not difference.atoms(sympy.Function, sympy.NumberSymbol)
        values = [_at(difference, sorted(left.symbols), point) for point in _POINTS]
        if is_exact and all(value.is_Rational for value in values):
            return all(value == 0 for value in values)
        return all(abs(complex(value.evalf(30))) <= 1e-12 for value in values)
    except (TypeError, ValueError, ArithmeticError, RecursionError, AttributeError):
        return False


def proportional(left: Expression, right: Expression) -> bool:
    """Return whether one expression is the other times a number: whether they are zero at the same places."""
    if left.symbols != right.symbols or not left.symbols:
        return False
    try:
        pairs = [(_at(left.tree, sorted(left.symbols), p), _at(right.tree, sorted(left.symbols), p)) for p in _POINTS]
        (one, other), *rest = [(complex(a.evalf(30)), complex(b.evalf(30))) for a, b in pairs]
        return bool(one and other) and all(abs(a * other - b * one) <= 1e-12 * abs(a * other) for a, b in rest)
    except (TypeError, ValueError, ArithmeticError, RecursionError, AttributeError):
        return False


def _at(tree: Any, symbols: list[str], point: Fraction) -> Any:  # sympy expressions
    import sympy

    places = (point + index for index in range(len(symbols)))
    values = (sympy.Rational(one.numerator, one.denominator) for one in places)
    found = {sympy.Symbol(name): value for name, value in zip(symbols, values, strict=True)}
    return tree.subs(found)


def _tokens(text: str) -> list[str]:
    if any(run not in _FUNCTIONS and run not in ("xyz", "abc") for run in _WORD.findall(text)):
        raise _Refused  # prose, not a product of single letters
    tokens: list[str] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if not match:
            if not text[at:].strip():
                break
            raise _Refused
        token = match[match.lastindex or 0]
        if len(token) > _MAX_DIGITS or token == "±":
            raise _Refused
        tokens.append("^" if token == "**" else token)
        at = match.end()
    return tokens


class _Reader:
    """Recursive descent over tokens; builds sympy objects without its parser."""

    def __init__(self, tokens: list[str]) -> None:
        import sympy

        self._sympy = sympy
        self._tokens = tokens
        self.at = 0

    def sum(self) -> Any:  # sympy objects
        total = self._product()
        while self._peek() in ("+", "-"):
            total = total + self._product() if self._next() == "+" else total - self._product()
        return total

    def _product(self) -> Any:  # sympy objects
        sign = 1
        while self._peek() in ("+", "-"):
            sign = -sign if self._next() == "-" else sign
        value = self._power()
        while (token := self._peek()) is not None and token not in ("+", "-", ")"):
            if token == "*":
                self._next()
                value = value * self._signed_power()
            elif token == "/":
                self._next()
                divisor = self._signed_power()
                if divisor == 0:
                    raise _Refused
                value = value / divisor
            elif token == "^":
                raise _Refused
            else:
                value = value * self._power()  # implicit product
        return sign * value

    def _signed_power(self) -> Any:  # sympy objects
        if self._peek() in ("+", "-"):
            return -self._signed_power() if self._next() == "-" else self._signed_power()
        return self._power()

    def _power(self) -> Any:  # sympy objects
        base = self._atom()
        while self._peek() == "!":
            self._next()
            if not (base.is_Integer and 0 <= base <= _MAX_FACTORIAL):
                raise _Refused
            base = self._sympy.factorial(base)
        if self._peek() == "^":
            self._next()
            exponent = self._signed_power()
            if exponent.is_number and abs(exponent) > _MAX_POWER:
                raise _Refused
            if base.is_Rational and exponent.is_number:
                bits = max(abs(int(base.p)), int(base.q)).bit_length()
                if bits * abs(exponent) > _MAX_POWER:
                    raise _Refused
            if not exponent.is_number and base.is_number and abs(base) > 1000:
                raise _Refused
            return base**exponent
        return base

    def _atom(self) -> Any:  # sympy objects
        token = self._next()
        if token is None:
            raise _Refused
        if token == "(":
            inner = self.sum()
            if self._next() != ")":
                raise _Refused
            return inner
        if token[0].isdigit() or token[0] == ".":
            value = Fraction(token)
            return self._sympy.Rational(value.numerator, value.denominator)
        if token == "pi":
            return self._sympy.pi
        if token == "oo":
            return self._sympy.oo
        if token in (*_FUNCTIONS, "ln"):
            return self._function(token)
        if len(token) == 1 and token.isalpha():
            return self._sympy.Symbol(token)
        raise _Refused

    def _function(self, name: str) -> Any:  # sympy objects
        argument = self._atom()
        if name in ("exp", "log", "ln") and argument.is_number and abs(argument.evalf(5)) > 1e6:
            raise _Refused
        return getattr(self._sympy, "log" if name == "ln" else name)(argument)

    def _peek(self) -> str | None:
        return self._tokens[self.at] if self.at < len(self._tokens) else None

    def _next(self) -> str | None:
        token = self._peek()
        self.at += 1
        return token
