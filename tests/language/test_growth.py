"""Time is linear in the input: what is four times as long takes about four times as long, whatever it holds."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from flowinfer.errors import FlowError
from flowinfer.language.check import check
from flowinfer.language.diagnostics import full
from flowinfer.language.formatting import format_text
from flowinfer.planning.plan import compile
from tests.zoos import NAMES

_SMALL, _LARGE = 200, 2_500
_MOST = 10
"""Most times that four times the input may take; a quadratic reader takes sixteen."""
_LEAST_SECONDS = 0.05
"""Shorter times are noise and count as this."""

Grow = Callable[[int], str]

_RUNS = [
    *("-", "=", "=-", "=-=~", "- ", "> ", "<", "<-", "--", "—", "->", "→", "＞", "－", "⇒"),
    *("(", ")", "[", "]", "{", "}", "([{", "（", "）", "|", "&", "||", ":", ",", "、", "｜"),
    *("1", "1.", "1e", "1e1", "-1", "-1a", "+", ".", ".1", "１", "１．", "１a", "9_", "1-a"),
    *("$", "$a", "$a.b ", "$a ", "a.", "a-", "a ", "a.b ", "千", "_", "²"),
    *('"', "'", '""', '"""', '"a" ', '"a\\"', "\\", '"\\', "“", "”", "‘", "’", "＂", "“a", "“\\", "“a”", "“\n", '“"'),
    *("#", "#\n", "# a\n", " ", "\t", "\n", "\r\n", "\r", "\u3000", "\v", " \n", "\0", "\ufeff", "\U0001f600", "\x1b"),
    *("@", "@ ", "@\n", ";", "%", "as ", "let ", "model ", "a as b ", "a=", "a:", "a[", "a\n", "$a.b\n"),
]
_SHAPES: dict[str, Grow] = {
    "digits before a letter": lambda n: "Qwen[seed=" + "1" * 8 * n + "a]",
    "digits with a point": lambda n: "(A:" + "1" * 4 * n + "." + "1" * 4 * n + "x | B:1)",
    "a huge number": lambda n: "A[seed=" + "9" * 8 * n + "]",
    "a huge weight": lambda n: "(A:0." + "9" * 8 * n + " | B:1)",
    "a huge name": lambda n: "A" * 8 * n,
    "two huge names": lambda n: f'model {"ab" * 4 * n} = "x"\n{"ba" * 4 * n}',
    "a long chain": lambda n: " -> ".join(["A"] * n),
    "a wide group": lambda n: "(" + " | ".join(["A"] * n) + ")",
    "groups side by side": lambda n: " -> ".join(["(A & B)"] * n),
    "unknown models": lambda n: " -> ".join(f"x{i}" for i in range(n)),
    "unused models": lambda n: "\n".join(f'model m{i} = "o/m"' for i in range(n)) + "\nA",
    "unknown among many": lambda n: (
        "\n".join(f'model m{i} = "o/m"' for i in range(n)) + "\n" + "->".join(f"n{i}" for i in range(n))
    ),
    "one model many times": lambda n: 'model m = "o/m"\n' * n + "A",
    "invisible names": lambda n: 'model "" = "o/m"\n' * n + "A",
    "lets in a row": lambda n: "let a0 = A\n" + "\n".join(f"let a{i} = a{i - 1}" for i in range(1, n)) + f"\na{n - 1}",
    "lets backwards": lambda n: "\n".join(f"let a{i} = a{i + 1}" for i in range(n)) + f"\nlet a{n} = A\na0",
    "doubling lets": lambda n: (
        "let a0 = A\n" + "\n".join(f"let a{i} = a{i - 1} -> a{i - 1}" for i in range(1, n)) + f"\na{n - 1}"
    ),
    "doubling groups": lambda n: (
        "let a0 = A\n" + "\n".join(f"let a{i} = (a{i - 1} | a{i - 1})" for i in range(1, n)) + f"\na{n - 1}"
    ),
    "lets of themselves": lambda n: "\n".join(f"let a{i} = (a{i} | a{i})" for i in range(n)) + "\na0",
    "a ring of lets": lambda n: "\n".join(f"let a{i} = (a{(i + 1) % n} & A)" for i in range(n)) + "\na0",
    "params": lambda n: "\n".join(f"param p{i}: int = {i}" for i in range(n)) + "\nA[seed=$q]",
    "params without value": lambda n: "\n".join(f"param p{i}: int" for i in range(n)) + "\nA",
    "unknown params": lambda n: (
        "\n".join(f"param p{i}: int = 1" for i in range(n)) + "\nA[" + ", ".join(f"seed=$q{i}" for i in range(n)) + "]"
    ),
    "unknown options": lambda n: "A[" + ", ".join(f"o{i}=1" for i in range(n)) + "]",
    "an option many times": lambda n: "A[" + ", ".join(["seed=1"] * n) + "]",
    "defaults": lambda n: "defaults { seed=1 }\n" * n + "A",
    "a long list": lambda n: "A[stop=[" + ", ".join(['"a"'] * n) + "]]",
    "a long prompt": lambda n: 'A[prompt="' + "{question} a " * n + '"]',
    "unknown fields": lambda n: 'A[prompt="' + "".join(f"{{f{i}}} " for i in range(n)) + '"]',
    "early results": lambda n: 'A -> B[prompt="' + "".join(f"{{result_{i}}} " for i in range(n)) + '"]',
    "a huge result": lambda n: 'A -> B[prompt="{result_' + "9" * 8 * n + '}"]',
    "open fields": lambda n: 'A[prompt="' + "{a" * n + '"]',
    "braces": lambda n: 'A[prompt="' + "{{" * n + "}}" * n + '"]',
    "one prompt of many stages": lambda n: (
        'prompt p = "' + "{question} {prev} " * n + '"\nA -> ' + " -> ".join(["A[prompt=p]"] * 500)
    ),
    "one wrong prompt of many stages": lambda n: (
        'prompt p = "' + "{question} {foo} " * n + '"\nA -> ' + " -> ".join(["A[prompt=p]"] * 500)
    ),
    "one broken prompt of many stages": lambda n: (
        'prompt p = "' + "{question} " * n + '{"\nA -> ' + " -> ".join(["A[prompt=p]"] * 500)
    ),
    "many prompts": lambda n: "\n".join(f'prompt p{i} = "{{question}}"' for i in range(n)) + "\nA[prompt=q]",
    "labels": lambda n: " -> ".join(f"A as l{i}" for i in range(n)),
    "one label": lambda n: " -> ".join(["A as l"] * n),
    "comments among statements": lambda n: 'model m = "o/m"  # why\n# and\n' * n + "A",
    "comments in a statement": lambda n: "A -> # why\n" * n + "A",
    "weights": lambda n: "(" + " | ".join(["A:1"] * n) + ")",
    "statements that end early": lambda n: "let a\n" * n,
    "missing operators": lambda n: "A " * n,
    "imports of nothing": lambda n: 'import "nowhere.flow"\n' * n + "A",
    "flows": lambda n: "A\n" * n,
    "stray characters in lines": lambda n: "A @ B\n" * n,
    "escapes": lambda n: 'A[prompt="' + "\\q" * n + '"]',
    "a long text over lines": lambda n: 'A[prompt="""' + "a {question}\n  " * n + '"""]',
}
_QUICK = ("digits before a letter", "a huge name", "lets in a row", "a wide group", "unknown options", "a long prompt")
_CASES = [
    *(pytest.param(_SHAPES[name], _SMALL, id=f"{name}-small") for name in _QUICK),
    *(pytest.param(grow, _LARGE, id=f"{name}-large", marks=pytest.mark.slow) for name, grow in _SHAPES.items()),
]


def _seconds(text: str) -> float:
    """Return what checking, laying out and planning a text takes of the processor, and showing what is wrong."""
    start = time.process_time()
    for work in (lambda: compile(check(text, zoo=NAMES)), lambda: format_text(text)):
        try:
            work()
        except FlowError as error:
            list(map(full, error.diagnostics))
    return time.process_time() - start


@pytest.mark.parametrize(("grow", "size"), _CASES)
def test_four_times_the_text_takes_about_four_times_as_long(grow: Grow, size: int) -> None:
    _compare(grow, size)


@pytest.mark.slow
@pytest.mark.parametrize("frame", ["{}", "A -> {}", 'A[prompt="{}"]', "{}1a\n{}", "let a = {}\nA"])
def test_four_times_as_many_characters_take_about_four_times_as_long(frame: str) -> None:
    for run in _RUNS:
        _compare(lambda n, run=run: frame.replace("{}", run * n), 1_000, run)  # type: ignore[misc]


def _compare(grow: Grow, size: int, what: str = "") -> None:
    seconds = max(_seconds(grow(size)), _LEAST_SECONDS)
    assert _seconds(grow(4 * size)) <= _MOST * seconds, what
