"""What reaches a terminal, and command lines that are proposed for one."""

from __future__ import annotations

import io
import os
import shlex
import subprocess

import pytest
from rich.panel import Panel
from rich.table import Table

from flowinfer.errors import DataError, RunError
from flowinfer.output import shell
from flowinfer.output.console import PlainConsole, plain
from flowinfer.output.terminal import GuardedStream, visible, visible_line

HOSTILE = "\x1b[31m\x07\x08\x7f\x9b2J\u202e\u2066\u2069\u200b\ud800"


class Terminal(io.BytesIO):
    def isatty(self) -> bool:
        return True


def test_what_steers_is_made_visible_character_by_character() -> None:
    assert visible(HOSTILE) == "␛[31m␇␈␡\ufffd2J" + "\ufffd" * 5
    assert len(visible_line(HOSTILE + "\r\n")) == len(HOSTILE) + 2


@pytest.mark.parametrize("text", ["a\tb\nc", "👩‍👩‍👧", "می‌خواهم", "答案：\\boxed{1}", "🏴󠁧󠁢󠁥󠁮󠁧󠁿"])
def test_what_does_not_steer_stays(text: str) -> None:
    assert visible(text) == text


@pytest.mark.parametrize(
    ("is_terminal", "is_error", "seen"),
    [(True, False, "␛[2J"), (False, False, "\x1b[2J"), (True, True, "␛[2J"), (False, True, "␛[2J")],
)
def test_output_is_raw_for_files_and_visible_for_terminals(is_terminal: bool, is_error: bool, seen: str) -> None:
    raw = Terminal() if is_terminal else io.BytesIO()
    stream = GuardedStream(raw, "utf-8")
    stream.is_error = is_error
    stream.write("\x1b[2J")
    stream.flush()
    assert raw.getvalue().decode() == seen


@pytest.mark.parametrize("text", ["[/INST]", "\\boxed{[a, b]}", "[red]x[/red]", ":smile:", "[link=x]y[/link]", "[[x]]"])
def test_tables_and_panels_show_texts_as_they_are(text: str) -> None:
    out = io.StringIO()
    console = PlainConsole(file=out)
    table = Table()
    table.add_column(text)
    table.add_row(text)
    for thing in (text, table, Panel(text, title=plain(text)), plain(text, "bold") + plain(text)):
        console.print(thing)
    assert out.getvalue().count(text) == 7


def test_tables_and_panels_show_no_escapes() -> None:
    out = io.StringIO()
    PlainConsole(file=out).print(Panel(HOSTILE, title=plain(HOSTILE)))
    assert out.getvalue().isprintable() or not set(out.getvalue()) & set(HOSTILE) - set("[31m2J")


def test_errors_steer_nothing_in_python_either() -> None:
    assert str(RunError("cannot read '\x1b[31mx'")) == "cannot read '␛[31mx'"


@pytest.mark.parametrize(
    "text", ["a b", "it's", '"', "$HOME", "`id`", "-x", "--", "", "两", "a\nb", "\x1b[31m'\\", "*", "no\udcff'utf"]
)
def test_proposed_commands_mean_what_they_say(text: str) -> None:
    line = shell.command("show", "run", text, options=shell.option("--id", text))
    asked = subprocess.run(
        ["bash", "-c", f"flowinfer() {{ printf '%s\\0' \"$@\"; }}; {line}"], capture_output=True, check=True
    )
    words = os.fsdecode(asked.stdout).split("\0")[:-1]
    is_dash = text.startswith("-")
    assert words == [
        "show",
        *([f"--id={text}"] if is_dash else ["--id", text]),
        *(["--"] if is_dash else []),
        "run",
        text,
    ]
    assert not text.isprintable() or shlex.split(line)[1:] == words


def test_an_endless_value_does_not_make_an_endless_message() -> None:
    message = DataError(f"data.csv:2: the answer is '{'9' * 5000}', not one of A, B, C, D").message
    assert message.startswith("data.csv:2: the answer is '999") and message.endswith("not one of A, B, C, D")
    assert len(message) < 1000
