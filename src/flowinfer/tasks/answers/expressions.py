"""Mathematics as people and models write it: LaTeX -> plain text, plain text -> expressions, and exact equality.

Expressions have a small reader of their own, so that no text of a model is ever evaluated.
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any

from lark import Lark, Token, Transformer, v_args
from lark.exceptions import LarkError

from flowinfer.tasks.answers.numbers import near

FUNCTIONS = r"(?:sqrt|binom|pi|log|ln|exp|(?:arc)?(?:sin|cos|tan)|cot|sec|csc|oo)(?![a-zA-Z])"
"""Names that are mathematics and no product of letters."""
_NAMES = {
    **dict.fromkeys(("dfrac", "tfrac", "cfrac"), "\\frac"),
    **dict.fromkeys(("dbinom", "tbinom"), "\\binom"),
    **dict.fromkeys(("cdot", "times"), "*"),
    **{"div": "/", "pi": "pi", "infty": "oo", "pm": "±", "approx": "≈", "lt": "<", "gt": ">"},
    **{"neq": "!=", "ne": "!=", "cup": "∪", "in": "∈", "lbrace": "{", "rbrace": "}", "langle": "(", "rangle": ")"},
    **dict.fromkeys(("rightarrow", "Rightarrow", "implies", "to"), "→"),
    **dict.fromkeys(("leq", "le", "leqslant"), "<="),
    **dict.fromkeys(("geq", "ge", "geqslant"), ">="),
    **dict.fromkeys(("left", "right", "big", "Big", "bigl", "bigr", "displaystyle", *"!,()[]"), ""),
    **dict.fromkeys(("quad", "qquad", *"; :"), " "),
    **{sign: sign for sign in "%${}"},
}
"""Commands, and what plain text has for them; others stay."""
_NAME = re.compile(r"\\([a-zA-Z]+|[^\w\s]|[ ])")
_SIGNS = (("≤", "<="), ("≥", ">="), ("{,}", ","), ("{:}", ":"), ("π", "pi"), ("∞", "oo"), ("**", "^"), ("~", " "))
_GROUP = r"\{((?:[^{}]|\{[^{}]*\})*)\}"
_ARGUMENT = rf"\s*(?:{_GROUP}|([^\s{{}}]))"
_LOG = rf"\\?(?<![a-z])log\s*_{_ARGUMENT}"
_MATRIX = re.compile(
    r"(?:[(\[|]\s*(?=\\begin\{(?:array|matrix)))?\\begin\{(?:[a-zA-Z]*matrix|array)\}(?:\{[clr|]*\})?(.*?)"
    r"\\end\{(?:(?:array|matrix)\}(?:\s*[)\]|])?|[a-zA-Z]+matrix\})",
    re.S,
)
_REWRITTEN = [
    (re.compile(pattern), instead)
    for pattern, instead in (
        (r"\^\s*\{?\s*(?:\\circ|°)\s*\}?|\\circ|°", ""),
        (r"\\(?:pmod|bmod|mod)\b\s*\{?", " mod "),
        (rf"\\(?:text|textbf|textit|mathrm|mathbf|mathit|mbox|boxed|operatorname)\s*{_GROUP}", r"\1"),
        (r"\{\s*(\w+)\s*\\choose\s*(\w+)\s*\}|(?<![A-Za-z])C\s?\((\d+),\s*(\d+)\)", r" binom(\1\3,\2\4)"),
        (r"(?<![A-Za-z])C_\{?(\d+)\}?\^\{?(\d+)\}?", r" binom(\1,\2)"),
        (rf"\\binom{_ARGUMENT}{_ARGUMENT}", r" binom(\1\2,\3\4)"),
        (r"(?<=\d)\s*(?=\\frac)", "+"),
        (rf"\\frac{_ARGUMENT}{_ARGUMENT}", r"((\1\2)/(\3\4))"),
        (rf"\\sqrt\s*\[(\w+)\]{_ARGUMENT}", r"((\2\3)^(1/\1))"),
        (rf"\\sqrt(?!\s*\[){_ARGUMENT}", r" sqrt(\1\2)"),
        (rf"{_LOG}{_GROUP}", r"(1/ log(\1\2))* log (\3)"),
        (_LOG, r"(1/ log(\1\2))* log "),
        (r"(?<=[\w)}\]])\s?[·⋅∙]\s?(?=[\w(\\])", "*"),
        (r"√\s*(\d+|[a-z]|\([^()]*\))", r"sqrt(\1)"),
        (rf"\\((?:arc)?(?:sin|cos|tan)|cot|sec|csc|log|ln|exp)\s*{_GROUP}", r" \1 (\2)"),
        (r"\\((?:arc)?(?:sin|cos|tan)|cot|sec|csc|log|ln|exp)(?![a-z])", r" \1 "),
        (r"\^\s*\{([^{}]*)\}", r"^(\1)"),
        (r"(sin|cos|tan|cot|sec|csc) \^\(?(\d)\)?\s*(\([^()]*\)|[a-z]\b)", r" \1(\3)^\2"),
        (r"_\s*\{([^{}]*)\}", r"_\1"),
        (r"^\s*\(?[a-zA-Z](?:,\s*[a-zA-Z])*\)?(?:\s*∈|\s+in\s)\s*|^\s*\$(?=[\d.])", ""),
        (r"(?<=\d)\s*:\s*(?=\d)", ":"),
        (r"\s+", " "),
    )
]
"""What is written anew, again until nothing changes."""
_MAX_DEPTH = 40


def plain(text: str) -> str:
    """Return LaTeX without its layout: fractions as (a)/(b), roots as sqrt(a), powers with ^, matrices as lists."""
    text = text.strip().strip("`").strip().rstrip(".。").rstrip()
    text = re.sub(r"^\*+(?=\S)|(?<=\S)\*+$", "", text).strip().strip("$").strip()
    text = re.sub(r",\s*\\[!,;:]\s*(?=\d{3})", ",", text)
    text = _NAME.sub(lambda match: _NAMES.get(match[1], match[0]), text)
    for old, new in _SIGNS:
        text = text.replace(old, new)
    text = _MATRIX.sub(_listed, text)
    for _ in range(_MAX_DEPTH):
        before = text
        for pattern, instead in _REWRITTEN:
            text = pattern.sub(instead, text)
        if text == before:
            break
    if not re.search(r",\s|\d,\d{1,2}(?!\d)", text):
        text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    return text.strip().rstrip(".。").strip()


def _listed(matrix: re.Match[str]) -> str:
    rows = [row for row in re.split(r"\\\\(?:\[\d+\w*\])?", matrix[1]) if row.strip()]
    return f"[{', '.join('[' + row.replace('&', ', ') + ']' for row in rows)}]"


def split_top(text: str) -> list[str]:
    """Split at commas that stand outside brackets."""
    items, depth, last = [], 0, 0
    for index, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character in ",;" and depth <= 0:
            items.append(text[last:index].strip())
            last = index + 1
    return [*items, text[last:].strip()]


def vector(matrix: str) -> str | None:
    """Return the tuple that a matrix of one row or one column is, None of others."""
    cells = [split_top(row.strip()[1:-1]) for row in split_top(matrix.strip()[1:-1])]
    is_vector = min(len(cells), max(map(len, cells), default=0)) == 1
    return f"({', '.join(cell for row in cells for cell in row)})" if is_vector else None


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
