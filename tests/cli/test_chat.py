"""Conversations: typed at a real terminal, piped, with an engine here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.terminal import Echo, Terminal
from tests.command import flowinfer, running

LOCAL = ("chat", "-e", "(Qwen | Ds)", "--zoo", "lab", "--prompts", "plain", "--set", "max_tokens=6", "-q")


@pytest.fixture(scope="module")
def echo() -> Iterator[Echo]:
    with running(Echo()) as server:
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chat")


@pytest.fixture(scope="module")
def terminal(echo: Echo, folder: Path) -> Iterator[Terminal]:
    """One conversation for all who leave it where it asks for the next entry."""
    terminal = Terminal("chat", "--url", echo.address, cwd=folder)
    terminal.until("echo> ")
    yield terminal
    terminal.type("/quit\n")
    assert terminal.ended() == 0


def say(terminal: Terminal, text: str) -> str:
    """Say something; return what is then shown, without what steers the terminal."""
    terminal.type(text + "\n")
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", terminal.until("echo> ")).removesuffix("echo> ")


def question(body: Any) -> str:
    """Return what a request asks."""
    text: str = body["messages"][-1]["content"]
    return text


def test_an_answer_is_shown_behind_what_was_thought(terminal: Terminal) -> None:
    assert say(terminal, "3 + 4 = ?") == "3 + 4 = ?\n[first]\nhm\n\n[echo]\n3 + 4 = ?\n"


def test_what_was_said_goes_with_the_next_question_until_a_new_conversation(terminal: Terminal, echo: Echo) -> None:
    say(terminal, "/new")
    say(terminal, "one")
    say(terminal, "two")
    said = [(turn["role"], turn["content"]) for turn in echo.bodies[-1]["messages"]]
    assert said == [("user", "one"), ("assistant", "one"), ("user", "two")]
    say(terminal, "/new")
    say(terminal, "three")
    assert len(echo.bodies[-1]["messages"]) == 1


def test_an_interrupt_ends_the_answer_and_keeps_what_it_has_said(terminal: Terminal, echo: Echo) -> None:
    terminal.type("endless\n")
    terminal.until("on and on and")
    terminal.type("\x03")
    assert "(ended)" in terminal.until("echo> ")
    assert "next\n" in say(terminal, "next")
    assert echo.bodies[-1]["messages"][-2]["content"].startswith("on and on and")


def test_an_interrupt_while_nothing_is_answered_takes_the_line_back(terminal: Terminal, echo: Echo) -> None:
    terminal.type("not this")
    terminal.until("not this")
    terminal.interrupt()
    terminal.until("echo> ")
    say(terminal, "but this")
    assert question(echo.bodies[-1]) == "but this"


@pytest.mark.parametrize(
    ("typed", "asked"),
    [
        ("\x1b[200~first\nsecond " + "long " * 2000 + "\x1b[201~", "first\nsecond " + "long " * 2000),
        ('"""first\nsecond\n"""', "first\nsecond"),
        ('"""one line"""', "one line"),
        ("first\\\nsecond\\\nthird", "first\nsecond\nthird"),
        ("小明有3个苹果 👩‍👩‍👧 é", "小明有3个苹果 👩‍👩‍👧 é"),
        (" /quit is no command here", " /quit is no command here"),
    ],
    ids=["pasted", "quotes", "quotes-in-one-line", "backslash", "wide", "space"],
)
def test_entries_of_several_lines_and_any_characters_are_one_question(
    typed: str, asked: str, terminal: Terminal, echo: Echo
) -> None:
    say(terminal, typed)
    assert question(echo.bodies[-1]) == asked


def test_earlier_lines_come_back(terminal: Terminal, echo: Echo) -> None:
    say(terminal, "once more")
    say(terminal, "\x1b[A")
    assert [question(body) for body in echo.bodies[-2:]] == ["once more"] * 2


def test_options_go_with_questions_until_they_are_taken_back(terminal: Terminal, echo: Echo) -> None:
    for line in ("temperature=0.5", "stop=END", "system=Be brief.", "max_tokens=7"):
        say(terminal, f"/set {line}")
    assert "stop = END\n" in say(terminal, "/set")
    say(terminal, "asked")
    body = echo.bodies[-1]
    assert (body["temperature"], body["stop"], body["max_tokens"]) == (0.5, "END", 7)
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    for name in ("temperature", "stop", "system", "max_tokens"):
        say(terminal, f"/set {name}=")
    say(terminal, "asked")
    assert set(echo.bodies[-1]) == {"messages", "model", "stream"}


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("/sett", "error: no command '/sett'\n  = help: did you mean '/set'?; a question may begin with a space"),
        ("/set temp=1", "error: no setting 'temp'\n  = help: did you mean 'temperature'?"),
        ("/set temperature=hot", "error: 'temperature': input should be a valid number"),
        ("/set temperature=3", "error: 'temperature': input should be less than or equal to 2"),
        ("/set seed", "error: /set seed: expected NAME=VALUE"),
        ("/flow ech", "error: the server has no flow 'ech'\n  = help: did you mean 'echo'?"),
        ("/save", "error: expected the name of a file to write\n  = help: /save FILE.md or /save FILE.jsonl"),
        ("/save none/a.md", "error: none/a.md: cannot be written: no such file or directory"),
        ("/save there.md", "error: 'there.md' is there already\n  = help: another name"),
        ("/trace", "error: there is no answer to trace"),
    ],
)
def test_a_slip_is_told_and_the_conversation_goes_on(typed: str, told: str, terminal: Terminal, folder: Path) -> None:
    (folder / "there.md").write_text("somebody's")
    assert told in say(terminal, typed)
    assert (folder / "there.md").read_text() == "somebody's"


def test_another_flow_answers_from_now_on(terminal: Terminal, echo: Echo) -> None:
    assert say(terminal, "/flow") == "/flow\n* echo\n  other\n"
    terminal.type("/flow other\n")
    terminal.until("other> ")
    terminal.type("asked\n")
    terminal.until("other> ")
    assert echo.bodies[-1]["model"] == "other"
    say(terminal, "/flow echo")


def test_a_conversation_is_saved_to_read_and_to_use(terminal: Terminal, folder: Path) -> None:
    say(terminal, "/new")
    say(terminal, "/set system=Be brief.")
    say(terminal, "问")
    for _ in range(2):  # what it has written itself it may write again
        assert "error" not in say(terminal, "/save said.md") + say(terminal, "/save said.jsonl")
    say(terminal, "/set system=")
    assert (folder / "said.md").read_text("utf-8") == "## system\n\nBe brief.\n\n## you\n\n问\n\n## echo\n\n问\n"
    lines = [json.loads(line) for line in (folder / "said.jsonl").read_text("utf-8").splitlines()]
    assert [line["role"] for line in lines] == ["system", "user", "assistant"]
    assert lines[2] == {"role": "assistant", "content": "问", "flow": "echo"}


def test_the_end_of_input_leaves_and_nothing_is_coloured_where_that_is_not_wanted(echo: Echo, tmp_path: Path) -> None:
    terminal = Terminal("chat", "other", "--url", echo.address, cwd=tmp_path, NO_COLOR="1")
    terminal.until("other> ")
    terminal.type("asked\n")
    shown = terminal.until("other> ")
    assert "[other]\nasked\n" in shown
    assert not re.search(r"\x1b\[[0-9;]*m", shown)
    terminal.type("\x04")
    assert terminal.ended() == 0


def test_piped_lines_are_questions_and_answers_all_that_is_printed(echo: Echo, tmp_path: Path) -> None:
    done = flowinfer("chat", "--url", echo.address, cwd=tmp_path, stdin="one\\\n\n/nothing\n/set seed=1\ntwo\n")
    assert (done.returncode, done.stdout) == (4, "one\\\ntwo\n")
    assert done.stderr.startswith("error: no command '/nothing'")
    assert echo.bodies[-1]["seed"] == 1


def test_a_server_that_goes_is_told_and_one_that_is_not_there(tmp_path: Path) -> None:
    done = flowinfer("chat", "--url", "http://127.0.0.1:9", cwd=tmp_path, stdin="one\n")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("error: the server at http://127.0.0.1:9 cannot be reached")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["-e", "Qwen", "--url", "http://x"], "-e, --zoo, --set and --prompts are the server's own with --url"),
        (["-e", "Qwen", "--api-key-env", "K"], "--api-key-env says how to reach a server"),
        (["-"], "standard input cannot be both the flow and the questions"),
        ([], "give a .flow file, or the flow itself with -e"),
    ],
)
def test_options_that_do_not_go_together_are_told(arguments: list[str], told: str, tmp_path: Path) -> None:
    done = flowinfer("chat", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, f"error: {told}")


def test_an_engine_here_answers_what_exec_answers_and_keeps_its_models_for_another_flow(tmp_path: Path) -> None:
    (tmp_path / "one.flow").write_text("Qwen", "utf-8")
    (tmp_path / "broken.flow").write_text("Qwen ->", "utf-8")
    lines = ("3 + 4 = ?", "/new", "/flow broken.flow", "/flow one.flow", "3 + 4 = ?", "/flow")
    done = flowinfer(*[one for one in LOCAL if one != "-q"], cwd=tmp_path, stdin="\n".join(lines))
    told = [
        flowinfer("exec", *flow, *LOCAL[3:], "--prompt", "3 + 4 = ?", cwd=tmp_path).stdout
        for flow in (("-e", "(Qwen | Ds)"), ("one.flow",))
    ]
    assert done.stdout == "".join([*told, "  flow\n* one\n"])
    assert done.stderr.count("loading") == 2
    assert "broken.flow:1:" in done.stderr


def test_a_trace_shows_every_stage_and_what_heads_disagreed_about(tmp_path: Path) -> None:
    done = flowinfer(*LOCAL, cwd=tmp_path, stdin="3 + 4 = ?\n/trace\n")
    answer, first, *rest = done.stdout.split("\n")
    assert re.fullmatch(r"== s1  Qwen \| Ds: 6 tokens, \d+\.\d\d s, length", first)
    assert [line for line in rest if line.startswith("--")][:3] == ["-- prompt of Qwen", "-- prompt of Ds", "-- text"]
    assert rest[rest.index("-- text") + 1] == answer
    votes = next(line for line in rest if "every head's favourite" in line)
    number = int(votes.split()[1])
    assert len(rest) - rest.index(votes) - 2 == 6 - number


def test_a_conversation_that_is_too_long_is_told_with_its_cure(tmp_path: Path) -> None:
    done = flowinfer(*LOCAL, cwd=tmp_path, stdin="seven " * 3000 + "\n3 + 4 = ?\n")
    assert done.returncode == 4
    assert "which reads at most" in done.stderr
    assert "/new" in done.stderr
    assert len(done.stdout.splitlines()) == 1
