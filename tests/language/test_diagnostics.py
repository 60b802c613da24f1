"""How diagnostics are shown."""

from __future__ import annotations

import io
import json
import re

import pytest

from flowinfer.errors import Diagnostic, FlowError
from flowinfer.language.check import check
from flowinfer.language.diagnostics import _safe, concise, display_width, full, github, print_diagnostics, to_json
from flowinfer.output import secrets
from tests.zoos import PAPER_NAMES


def first(text: str) -> Diagnostic:
    with pytest.raises(FlowError) as caught:
        check(text, file="s2p.flow", zoo=PAPER_NAMES)
    return caught.value.diagnostics[0]


def test_the_full_form_shows_place_line_caret_and_help() -> None:
    assert full(first("Qwen -> Dss -> (Yi | Qwen)")) == (
        "error[E0100]: unknown model 'Dss'\n"
        " --> s2p.flow:1:9\n"
        "  |\n"
        "1 | Qwen -> Dss -> (Yi | Qwen)\n"
        "  |         ^^^\n"
        "  = help: did you mean 'Ds'?"
    )


def test_carets_are_as_wide_as_chinese_characters() -> None:
    lines = full(first("Qwen -> 通义千问 -> Yi")).split("\n")
    assert lines[4] == "  |         " + "^" * 8


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("no_color", "term", "is_coloured"), [("", "xterm", True), ("1", "xterm", False), ("", "dumb", False)]
)
def test_a_terminal_gets_colours_unless_its_user_wants_none(
    no_color: str, term: str, is_coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", term)
    with pytest.raises(FlowError) as caught:
        check("Qwen -> Dss", zoo=PAPER_NAMES)
    terminal, pipe = _Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        print_diagnostics(caught.value.diagnostics, file=stream)
    assert ("\x1b[" in terminal.getvalue()) == is_coloured and "\x1b" not in pipe.getvalue()
    assert re.sub(r"\x1b\[[\d;]*m", "", terminal.getvalue()) == pipe.getvalue()


def test_columns_are_code_points() -> None:
    assert to_json(first("千问 -> Qwen"))["end_column"] == 3


def test_json_has_exactly_these_keys() -> None:
    keys = ["code", "severity", "message", "file", "line", "column", "end_line", "end_column", "help"]
    assert list(json.loads(json.dumps(to_json(first("X"))))) == keys


def test_concise_is_one_line() -> None:
    text = concise(first("Qwen -> Dss"))
    assert text == "s2p.flow:1:9: error[E0100]: unknown model 'Dss' (did you mean 'Ds'?)"


def test_github_escapes_what_would_end_the_command() -> None:
    text = github(first("Qwen -> Dss"))
    assert text.startswith("::error file=s2p.flow,line=1,col=9,endColumn=12,title=E0100::") and "\n" not in text


@pytest.mark.parametrize(("text", "width"), [("abc", 3), ("千问", 4), ("\tA", 5), ("e\u0301", 1), ("", 0)])
def test_display_width_counts_terminal_columns(text: str, width: int) -> None:
    assert display_width(text) == width


def test_a_long_line_is_shown_around_its_mistake() -> None:
    shown = full(first("Qwen -> " * 100 + "Dss" + " -> Qwen" * 100)).split("\n")
    assert shown[1].endswith(":1:801") and max(map(display_width, shown)) < 140
    line, caret = shown[3], shown[4]
    assert line[caret.index("^") : caret.rindex("^") + 1] == "Dss" and line.endswith(" ...")


def test_a_long_line_is_cut_by_the_columns_that_it_takes() -> None:
    shown = full(first(f'Qwen[prompt="{"千问" * 40}"] -> Dss -> Yi[prompt="{"千问" * 40}"]')).split("\n")
    assert max(map(display_width, shown)) < 140 and shown[3].count("千问") > 10
    before = display_width(shown[4].split("^")[0])
    assert shown[3].startswith("1 | ... ") and display_width(shown[3].partition("Dss")[0]) == before


def test_a_line_is_made_safe_once_for_all_that_is_wrong_in_it() -> None:
    """A hundred mistakes in one line of 160,000 characters took ten seconds to show."""
    _safe.cache_clear()
    with pytest.raises(FlowError) as caught:
        check("A " * 1_000, zoo=PAPER_NAMES)
    assert len([full(diagnostic) for diagnostic in caught.value.diagnostics]) == 100
    assert _safe.cache_info().misses == 1


def test_a_line_that_was_shown_is_shown_without_a_secret_learnt_since(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_known", set())
    monkeypatch.setattr(secrets, "_pattern", [])
    found = first("Qwen -> hunter2-of-a-test")
    assert "hunter2" in full(found)
    secrets.learn("hunter2-of-a-test")
    assert "hunter2" not in full(found)


def test_control_characters_do_not_reach_the_terminal() -> None:
    shown = full(first('"a\x1b[31m" -> Ds'))
    assert "\x1b" not in shown and "a␛[31m" in shown
    assert "\n" not in concise(first('"a\\nb" -> Ds'))
