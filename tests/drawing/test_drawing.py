"""Drawings of flows."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowinfer.drawing import dot, mermaid, png, svg, text
from flowinfer.language.check import check
from flowinfer.language.diagnostics import display_width
from flowinfer.planning.graph import build
from flowinfer.spec import Flow, nodes
from tests.zoos import NAMES


def flow(source: str) -> Flow:
    return check(source, zoo=NAMES)


S2P = """
                             ┌────────┐
                           ┌▶│   Yi   │──┐
┌──────────┐   ┌───────┐   │ │ verify │  │  ┌────────┐   ┌────────┐
│ question │──▶│ Qwen  │───┤ └────────┘  ├─▶│ ⊕ mean │──▶│ answer │
└──────────┘   │ draft │   │ ┌────────┐  │  └────────┘   └────────┘
               └───────┘   └▶│   Ds   │──┘
                             │ verify │
                             └────────┘"""


def test_s2p_is_drawn_left_to_right() -> None:
    assert "\n" + text.render(flow("Qwen -> (Yi | Ds)")) == S2P


def test_weights_stand_on_the_edges() -> None:
    drawing = text.render(flow("(Qwen:3 | Ds:1)"))
    assert "─0.75─┐" in drawing and "─0.25─┘" in drawing


def test_a_narrow_terminal_gets_a_top_down_drawing() -> None:
    drawing = text.render(flow("Qwen -> (Yi | Ds) -> Qwen"), width=40)
    assert "▼" in drawing and max(map(display_width, drawing.split("\n"))) <= 40


def test_ascii_drawings_hold_ascii_only() -> None:
    drawing = text.render(flow("(Qwen:2 | (Ds & Yi) -> Qwen:1)"), ascii=True, width=200)
    assert drawing.isascii()
    assert text.render(flow("Qwen -> (Yi | Ds)"), ascii=True, width=20).isascii()


def test_answers_are_gathered_and_voted() -> None:
    drawing = text.render(flow("(Qwen & Ds) -> Yi -> (Qwen & Ds)"), width=200)
    assert "│ answers │" in drawing and "│ vote │" in drawing


_flows = st.recursive(
    st.sampled_from(["Qwen", "Ds", "千问", "Yi[prompt=draft] "]),
    lambda inner: st.lists(st.lists(inner, min_size=1, max_size=3).map(" -> ".join), min_size=1, max_size=4).map(
        lambda parts: f"({' | '.join(parts)})"
    ),
    max_leaves=10,
)
_JOINS = {  # which of left, right, up, down a character joins to
    "─": "lr",
    "│": "ud",
    "┌": "rd",
    "┐": "ld",
    "└": "ru",
    "┘": "lu",
    "├": "rud",
    "┤": "lud",
    "┬": "lrd",
    "┴": "lru",
    "┼": "lrud",
}


@given(_flows, st.sampled_from([400, 30]))
def test_every_line_of_a_drawing_meets_its_neighbour(source: str, width: int) -> None:
    cells = [_cells(line) for line in text.render(flow(source), width=width).split("\n")]

    def at(row: int, column: int) -> str:
        return cells[row][column] if 0 <= row < len(cells) and 0 <= column < len(cells[row]) else " "

    for row, line in enumerate(cells):
        for column, mark in enumerate(line):
            if "r" in _JOINS.get(mark, "") and at(row, column + 1) != "▶":
                assert "l" in _JOINS.get(at(row, column + 1), "lr" if at(row, column + 1) not in " " else "")
            if "d" in _JOINS.get(mark, "") and at(row + 1, column) != "▼":
                assert "u" in _JOINS.get(at(row + 1, column), "ud" if at(row + 1, column) not in " " else "")


def _cells(line: str) -> list[str]:
    """Return one entry per terminal column."""
    return [part for character in line for part in ([character] + ["·"] * (display_width(character) - 1))]


def test_no_arrow_points_at_a_fork_or_at_another_arrow() -> None:
    source = "((Qwen | Ds) | ((Yi))) -> (Qwen)"
    for width in (400, 20):
        drawing = text.render(flow(source), width=width)
        assert not any(pair in drawing for pair in ("▶┤", "▶┼", "▶▶", "▶─▶", "▶├"))


def test_the_narrower_drawing_is_taken_where_neither_fits() -> None:
    drawing = text.render(flow("(" + " | ".join(["Qwen"] * 12) + ")"), width=40)
    assert max(map(display_width, drawing.split("\n"))) < 70


@pytest.mark.parametrize(
    "name", ["WWWWWWMMMMMM", "illiilliil", "通义千问大模型", "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B"]
)
def test_boxes_are_wide_enough_for_the_widest_letters(name: str) -> None:
    """Widths of DejaVu Sans, the widest of the usual fonts."""
    document = svg.render(flow(f'model "{name}" = "x"\n"{name}"'))
    width = float(re.findall(r'<rect class="box" width="([\d.]+)"', document)[0])
    needed = 15 * sum(
        {"W": 0.989, "M": 0.863}.get(c, 1.0 if ord(c) > 0x2E80 else 0.28 if c in "il" else 0.6) for c in name
    )
    assert width >= needed + 12


@pytest.mark.parametrize(
    ("source", "condition"),
    [
        ("(Qwen / Ds)[accept=confidence, at=0.9]", "first: confidence ≥ 0.9"),
        ("(Qwen / Ds)[accept=judge(Ds)]", "first: judge(Ds)"),
        ("(Qwen -> Ds)*3[until=unchanged]", "×3 until unchanged"),
        ("(Qwen & Ds)*2 -> Qwen", "×2"),
    ],
)
def test_choices_and_repeats_are_drawn_once_with_their_condition(source: str, condition: str) -> None:
    found = flow(source)
    for drawing in (
        text.render(found),
        svg.render(found).split("</desc>")[1],
        mermaid.render(found),
        dot.render(found),
    ):
        assert condition in drawing
        assert len(re.findall(r"\bDs\b", drawing.replace(condition, ""))) == 1


def test_control_characters_of_a_flow_do_not_break_the_svg() -> None:
    ET.fromstring(svg.render(flow("# \x1b and \x00\nQwen")))


@given(_flows)
def test_every_model_call_is_drawn_once(source: str) -> None:
    found = flow(source)
    drawing = text.render(found, width=4000)
    for name in ("Qwen", "Ds", "千问"):
        assert drawing.count(f" {name} ") == sum(node.model.name == name for node in nodes(found.root))


def test_svg_is_well_formed_selectable_and_follows_the_readers_theme() -> None:
    document = svg.render(flow('model "<A&B>" = "x"\n"<A&B>" -> (千问:1 | Ds:2)'))
    root = ET.fromstring(document)
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "<A&B>" in texts and "千问" in texts and "⊕ mean" in texts and "0.333" in texts
    assert "prefers-color-scheme: dark" in document


def test_a_tall_svg_has_the_parts_of_a_wide_one_from_top_to_bottom() -> None:
    wide, tall = (
        ET.fromstring(svg.render(flow("Qwen -> (Ds:2 | Yi:1)"), is_tall=is_tall)) for is_tall in (False, True)
    )
    for of in (wide, tall):
        assert [part.get("data-part") for part in of.iter() if part.get("data-part")] == [
            *("question", "n1", "n2", "n3", "g1", "answer")
        ]
    assert float(wide.get("width", 0)) > float(wide.get("height", 0))
    assert float(tall.get("width", 0)) < float(tall.get("height", 0))


def test_svg_with_a_theme_has_fixed_colours() -> None:
    assert "prefers-color-scheme" not in svg.render(flow("Qwen"), theme="dark")


def test_png_is_a_png() -> None:
    assert png.render(flow("Qwen -> (Yi | Ds)")).startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.parametrize("name", ['a"b', "end", "x[y]", "a\\b", "千问", "#1;"])
def test_mermaid_and_dot_escape_names(name: str) -> None:
    quoted = name.replace("\\", "\\\\").replace('"', '\\"')
    found = flow(f'model "{quoted}" = "x"\n"{quoted}" -> Ds')
    chart, digraph = mermaid.render(found), dot.render(found)
    assert chart.startswith("flowchart LR\n") and all(line.count('"') % 2 == 0 for line in chart.split("\n"))
    assert digraph.startswith("digraph ") and digraph.endswith("}")
    assert all(line.replace("\\\\", "").replace('\\"', "").count('"') % 2 == 0 for line in digraph.split("\n"))


def test_mermaid_and_dot_hold_every_edge() -> None:
    found = flow("(Qwen | (Ds | Yi)) -> Qwen")
    edges = build(found).number_of_edges()
    chart, digraph = mermaid.render(found), dot.render(found)
    assert sum("-->" in line or ".->" in line for line in chart.split("\n")) == edges
    assert sum(" -> " in line for line in digraph.split("\n")) == edges
