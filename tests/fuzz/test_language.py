"""Flows of every kind at random, through everything that reads them: nothing comes of it but diagnostics."""

from __future__ import annotations

import random
import re
import time
from importlib import import_module
from pathlib import Path

import pytest

from flowinfer.drawing import text as drawing
from flowinfer.errors import FlowError
from flowinfer.language.check import check
from flowinfer.language.diagnostics import full
from flowinfer.language.formatting import format_text
from flowinfer.planning.plain import describe, fingerprint, to_json
from flowinfer.planning.plan import compile
from flowinfer.spec import Flow
from tests.fuzz.rounds import rounds
from tests.zoos import NAMES

_FLOWS = Path(__file__).parent.parent / "flows"
_SOURCES = [path.read_bytes().decode() for path in sorted(_FLOWS.glob("*/*.flow"))]
_PIECES = re.compile(r'\w+|->|"""|\s+|.', re.DOTALL)
_MOST_SECONDS = 5
"""Of the processor, for one input of at most some ten thousand characters: far more than any takes."""
_MENDED = {"E0002", "E0008"}
_SOUP = [
    *("Qwen", "Ds", "Yi", "千问", '"my model"', "a", "b", "c", "let", "model", "prompt", "param", "defaults", "import"),
    *(
        "as",
        "->",
        "→",
        "|",
        "&",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        ":",
        ",",
        "=",
        "$",
        "$a",
        "$a.b",
        "#",
        "\n",
        "\r\n",
        "\r",
    ),
    *(
        "0",
        "1",
        "0.5",
        "1e999",
        "-1",
        "007",
        "9" * 5000,
        "1.2.3",
        "7B",
        ".",
        "-",
        "--",
        "=>",
        "<-",
        "—",
        "＞",
        "（",
        "）",
    ),
    *(
        "｜",
        "：",
        "，",
        "“",
        "”",
        "‘",
        "’",
        "＂",
        "＝",
        "９",
        '"',
        "'",
        '"""',
        "\\",
        '"x"',
        "'x'",
        '"\\q"',
        "\0",
        "\ufeff",
    ),
    *("\u202e", "\u2003", "e\u0301", "\ud800", "\U0001f600", "\x1b", "\x85", "\u2028", "%", "@", ";", "²"),
    *("max_tokens", "temperature", "fuse", "tau", "stop", "draft", "seed", "topk", "true", "none", "int", "str"),
    *("{question}", "{prev}", "{result_1}", "{result_" + "9" * 5000 + "}", "{{", "}}", "{", '"{question} {prev}"'),
    *(
        "let a = ",
        "let b = (a | a)\n",
        "let a = (b & b)\n",
        'prompt b = "{prev}"\n',
        "param a: int = 3\n",
        "[prompt=b]",
    ),
]


def _soup(rng: random.Random) -> str:
    return rng.choice(["", " "]).join(rng.choices(_SOUP, k=rng.randrange(1, 60)))


def _mutant(rng: random.Random) -> str:
    pieces = _PIECES.findall(rng.choice(_SOURCES))
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(pieces))
        match rng.randrange(4):
            case 0 if len(pieces) > 1:
                del pieces[at]
            case 1:
                pieces.insert(at, rng.choice(_SOUP))
            case 2:
                pieces[at] = rng.choice(_PIECES.findall(rng.choice(_SOURCES)))
            case _:
                pieces.insert(at, pieces[at] * rng.randrange(1, 100))
    return "".join(pieces)


def _long(rng: random.Random) -> str:
    """Return a few pieces many times over, nested and not."""
    number = rng.randrange(10, 2_000)
    inside = "".join(rng.choices(_SOUP, k=rng.randrange(1, 4)))[:20]
    before, after = rng.choice([("", ""), ("(", ")"), ("[", "]"), ("(A | ", ")"), ("A[prompt=", "]"), ('"', '"')])
    return rng.choice(["", "A -> ", "let a = "]) + before * number + inside * rng.choice([1, number]) + after * number


def _lets(rng: random.Random) -> str:
    """Return lets that call one another at random, in series and in groups."""
    names = [f"l{index}" for index in range(rng.randrange(1, 80))]
    lines = []
    for index, name in enumerate(names):
        others = names[:index] if rng.random() < 0.9 and index else [*names, "Qwen"]
        called = rng.choices([*others, "Qwen", "Ds"], k=rng.randrange(1, 4))
        joint = rng.choice([" -> ", " | ", " & "])
        lines.append(f"let {name} = " + (joint.join(called) if joint == " -> " else f"({joint.join(called)})"))
    return "\n".join([*lines, names[-1]])


_KINDS = [_soup, _mutant, _long, _lets]


def _flow(text: str) -> Flow | None:
    try:
        flow = check(text, zoo=NAMES)
    except FlowError as error:
        assert 1 <= len(error.diagnostics) <= 200
        assert all(full(diagnostic) for diagnostic in error.diagnostics)
        return None
    assert all(full(diagnostic) for diagnostic in flow.warnings)
    return flow


def _draw_and_plan(flow: Flow) -> str:
    for form in ("mermaid", "dot", "svg"):
        assert import_module(f"flowinfer.drawing.{form}").render(flow)
    assert drawing.render(flow, width=100) and drawing.render(flow, width=20, ascii=True)
    plan = compile(flow)
    assert describe(plan) and to_json(plan)
    return fingerprint(plan)


def _formatted(text: str) -> str | None:
    try:
        once = format_text(text)
    except FlowError:
        return None
    assert format_text(once) == once, "formatting twice changes something"
    return once


@pytest.mark.slow
def test_nothing_comes_of_any_text_but_diagnostics() -> None:
    for seed, rng in rounds():
        text = rng.choice(_KINDS)(rng)
        start = time.process_time()
        try:
            flow, after = _flow(text), _formatted(text)
            if flow:
                meaning = _draw_and_plan(flow)
                assert after is not None, "a flow without errors is not formatted"
                changed = _flow(after)
                assert changed and fingerprint(compile(changed)) == meaning, "formatting changed the meaning"
        except Exception as error:
            raise AssertionError(f"seed {seed}: {text[:500]!r}") from error
        assert time.process_time() - start < _MOST_SECONDS, f"seed {seed}: {text[:500]!r}"
