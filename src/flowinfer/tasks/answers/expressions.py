"""Algebraic expressions: a small reader, so that no text of a model is ever evaluated, and exact equality."""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any

from lark import Lark, Token, Transformer, v_args
from lark.exceptions import LarkError

from flowinfer.tasks.answers.latex import FUNCTIONS
from flowinfer.tasks.answers.numbers import near

_PROSE = re.compile(rf"(?<![A-Za-z])(?!(?:xyz|abc)(?![A-Za-z])|{FUNCTIONS})[A-Za-z]{{3,}}")
"""Long words, which are no product of single letters."""
_SCIENTIFIC = re.compile(r"(?<=\d)[eE]([+-]?\d{1,2})(?![\w.])")
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
        tree: Any = _parser().parse(text)  # what the transformer made of it
    except (_Refused, LarkError, RecursionError, ZeroDivisionError, OverflowError):
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


def _at_points(left: Expression, right: Expression, sign: str) -> list[complex]:
    """Return two expressions' difference or ratio at all points; nan where there is none."""
    found = []
    try:
        tree = left.tree - right.tree if sign == "-" else left.tree / right.tree
        for point in _POINTS:
            places = (_sympy().Rational(point.numerator, point.denominator) + at for at in range(len(left.symbols)))
            value = tree.subs(dict(zip(map(_sympy().Symbol, sorted(left.symbols)), places, strict=True)))
            found.append(complex(value.evalf(30)))
    except (TypeError, ValueError, ArithmeticError, RecursionError, AttributeError):
        return [complex("nan")]
    return found


_GRAMMAR = r"""
?sum: product | sum "+" product -> add | sum "-" product -> subtract
?product: signed | product "*" signed -> multiply | product "/" signed -> divide | product power -> multiply
?signed: power | "-" signed -> negate | "+" signed
?power: postfix | postfix ("^" | "**") signed -> raised
?postfix: atom | postfix "!" -> factorial
?atom: leaf | call | "(" sum ")"
?call: _BINOMIAL "(" sum "," sum ")" -> binomial | FUNCTION ("(" sum ")" | bare | call) -> applied
?bare: leaf | bare leaf -> multiply
?leaf: NUMBER -> number | CONSTANT -> constant | LETTER -> letter
NUMBER: /\d+(?:\.\d+)?|\.\d+/
_BINOMIAL.2: "binom"
CONSTANT.2: /(?:pi|oo)(?![a-zA-Z])/
FUNCTION.2: /(?:sqrt|log|ln|exp|(?:arc)?(?:sin|cos|tan)|cot|sec|csc)(?![a-zA-Z])/
LETTER: /[a-zA-Z](?:_(?:\d+|[a-zA-Z]+))?/
%ignore /\s+/
"""
"""Products need no sign; "sin 2x" is sin(2x), and -x^2 is -(x^2)."""


@v_args(inline=True)
class _Builder(Transformer[Token, Any]):  # of sympy's objects, which are untyped
    """Builds an expression without sympy's parser; refuses what would grow without end."""

    add = staticmethod(operator.add)
    subtract = staticmethod(operator.sub)
    multiply = staticmethod(operator.mul)
    negate = staticmethod(operator.neg)

    def divide(self, left: Any, right: Any) -> Any:
        return left / _bounded(right, right != 0)

    def raised(self, base: Any, exponent: Any) -> Any:
        bits = max(abs(int(base.p)), int(base.q)).bit_length() if base.is_Rational else 1
        if exponent.is_number:
            return base ** _bounded(exponent, max(bits, 1) * abs(exponent) <= _MAX_POWER)
        return _bounded(base, not base.is_number or abs(base) <= 1000) ** exponent

    def factorial(self, value: Any) -> Any:
        return _sympy().factorial(_bounded(value, value.is_Integer and 0 <= value <= _MAX_FACTORIAL))

    def binomial(self, *both: Any) -> Any:
        return _sympy().binomial(*(_bounded(one, not one.is_number or 0 <= one <= _MAX_CHOICES) for one in both))

    def applied(self, name: str, argument: Any) -> Any:
        grows = name in ("exp", "log", "ln") and argument.is_number
        return getattr(_sympy(), name.replace("arc", "a"))(
            _bounded(argument, not grows or abs(argument.evalf(5)) <= 1e6)
        )

    def number(self, digits: str) -> Any:
        number = Fraction(_bounded(digits, len(digits) <= _MAX_DIGITS))
        return _sympy().Rational(number.numerator, number.denominator)

    def constant(self, name: str) -> Any:
        return getattr(_sympy(), name)

    def letter(self, name: str) -> Any:
        return _sympy().Symbol(name)


def _bounded(value: Any, is_bounded: Any) -> Any:
    if not is_bounded:
        raise _Refused
    return value


def _sympy() -> Any:
    import sympy  # takes long

    return sympy


@cache
def _parser() -> Lark:
    return Lark(_GRAMMAR, start="sum", parser="lalr", transformer=_Builder())
