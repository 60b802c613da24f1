"""Algebraic expressions: a small reader, so that no text of a model is ever evaluated, and exact equality."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from flowinfer.tasks.answers.latex import FUNCTIONS
from flowinfer.tasks.answers.numbers import near

_TOKEN = re.compile(
    rf"\s*(?:(\d+(?:\.\d+)?|\.\d+)|({FUNCTIONS})|([a-zA-Z])(?:_\w+)?"
    r"|(\*\*|[-+*/^()!,]))\s*"
)
_PROSE = re.compile(rf"(?<![A-Za-z])(?!(?:xyz|abc)(?![A-Za-z])|{FUNCTIONS})[A-Za-z]{{3,}}")
"""Long words, which are no product of single letters."""
_SCIENTIFIC = re.compile(r"(?<=\d)[eE]([+-]?\d{1,2})(?![\w.])")
_BINDING = {"+": 1, "-": 1, "*": 2, "/": 2, "": 2, "^": 4}
"""How tightly operators bind; the empty one is a product without a sign."""
_POINTS = (Fraction(1009, 613), Fraction(2029, 1031), Fraction(-739, 421))
"""Where two functions are compared: they agree at all of them by chance as good as never."""
_MAX_LENGTH = 300
_MAX_POWER = 5_000
"""Largest exponent, and most bits of a number's power."""
_MAX_DIGITS = 60
_MAX_FACTORIAL = 30
_MAX_CHOICES = 1_000


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

    Accepts numbers, single letters, + - * / ^ **, parentheses, products without a sign, roots, logarithms,
    trigonometric functions, factorials, binom(n, k). Powers and lengths are bounded, so that no text takes long.
    """
    text = _SCIENTIFIC.sub(r"*10^(\1)", text.strip())
    if not text or len(text) > _MAX_LENGTH or _PROSE.search(text):
        return None
    try:
        tree = _Reader(text).whole()
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
    return left.tree == right.tree or all(abs(value) <= 1e-12 for value in _at_points(left, right, "-"))


def proportional(left: Expression, right: Expression) -> bool:
    """Return whether one expression is the other times a number: whether they are zero at the same places."""
    if left.symbols != right.symbols or not left.symbols:
        return False
    first, *others = _at_points(left, right, "/")
    return first != 0 and all(abs(other - first) <= 1e-12 * abs(first) for other in others)


def _at_points(left: Expression, right: Expression, operator: str) -> list[complex]:
    """Return two expressions' difference or ratio at all points; nan where there is none."""
    import sympy

    found = []
    try:
        tree = left.tree - right.tree if operator == "-" else left.tree / right.tree
        for point in _POINTS:
            places = (sympy.Rational(point.numerator, point.denominator) + at for at in range(len(left.symbols)))
            value = tree.subs(dict(zip(map(sympy.Symbol, sorted(left.symbols)), places, strict=True)))
            found.append(complex(value.evalf(30)))
    except (TypeError, ValueError, ArithmeticError, RecursionError, AttributeError):
        return [complex("nan")]
    return found


class _Reader:
    """Reads a text by how tightly operators bind; builds sympy objects without sympy's parser."""

    def __init__(self, text: str) -> None:
        import sympy

        self._sympy = sympy
        self._at = 0
        self._tokens: list[str] = []
        at = 0
        while at < len(text):
            match = _TOKEN.match(text, at)
            token = match[match.lastindex or 0] if match else ""
            if match is None or len(token) > _MAX_DIGITS:
                raise _Refused
            self._tokens.append("^" if token == "**" else token)
            at = match.end()

    def whole(self) -> Any:  # sympy objects, here and below
        """Read everything."""
        tree = self._expression(0)
        if self._peek():
            raise _Refused
        return tree

    def _expression(self, binding: int) -> Any:
        """Read an atom and all operators behind it that bind more tightly."""
        if self._peek() in ("+", "-"):
            is_negative = self._next() == "-"
            inner = self._expression(max(binding, 1))
            left = -inner if is_negative else inner
        else:
            left = self._atom()
        while (token := self._peek()) not in ("", ")", ","):
            operator = token if token in _BINDING else ""
            if _BINDING[operator] <= binding:
                break
            if operator:
                self._next()
            left = self._applied(operator, left, self._expression(_BINDING[operator] - (operator == "^")))
        return left

    def _applied(self, operator: str, left: Any, right: Any) -> Any:
        match operator:
            case "+":
                return left + right
            case "-":
                return left - right
            case "/" if right == 0:
                raise _Refused
            case "/":
                return left / right
            case "^":
                return self._power(left, right)
        return left * right

    def _power(self, base: Any, exponent: Any) -> Any:
        if exponent.is_number:
            bits = max(abs(int(base.p)), int(base.q)).bit_length() if base.is_Rational else 1
            if max(bits, 1) * abs(exponent) > _MAX_POWER:
                raise _Refused
        elif base.is_number and abs(base) > 1000:
            raise _Refused
        return base**exponent

    def _atom(self) -> Any:
        token = self._next()
        if token == "(":
            value = self._expression(0)
            self._expect(")")
        elif token[:1].isdigit() or token[:1] == ".":
            number = Fraction(token)
            value = self._sympy.Rational(number.numerator, number.denominator)
        elif token in ("pi", "oo"):
            value = getattr(self._sympy, token)
        elif len(token) == 1 and token.isalpha():
            value = self._sympy.Symbol(token)
        elif token.isalpha():
            return self._function(token)
        else:
            raise _Refused
        while self._peek() == "!":
            self._next()
            if not (value.is_Integer and 0 <= value <= _MAX_FACTORIAL):
                raise _Refused
            value = self._sympy.factorial(value)
        return value

    def _function(self, name: str) -> Any:
        if name == "binom":
            self._expect("(")
            total = self._expression(0)
            self._expect(",")
            chosen = self._expression(0)
            self._expect(")")
            if any(one.is_number and not 0 <= one <= _MAX_CHOICES for one in (total, chosen)):
                raise _Refused
            return self._sympy.binomial(total, chosen)
        is_bare = self._peek() != "("
        argument = self._atom()
        while is_bare and name != "sqrt" and re.match(r"\d|pi$|.$", self._peek()) and self._peek()[0].isalnum():
            argument *= self._atom()  # sin 2x
        if name in ("exp", "log", "ln") and argument.is_number and abs(argument.evalf(5)) > 1e6:
            raise _Refused
        return getattr(self._sympy, "log" if name == "ln" else name)(argument)

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _next(self) -> str:
        token = self._peek()
        self._at += 1
        return token

    def _expect(self, token: str) -> None:
        if self._next() != token:
            raise _Refused
