"""Lines of a file in, lines out: order, resuming, messages, failures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.command import flowinfer

LINES = [
    "3 + 4 = ?",
    '{"id": "b", "prompt": "5 + 6 = ?"}',
    "",
    '{"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "7 + 8 = ?"}]}',
    json.dumps({"id": "long", "prompt": "seven " * 3000}),
    '{"id": 9, "prompt": "3 + 4 = ?"}',
]
COMMAND = ("exec", "-e", "(Qwen | Ds)", "--zoo", "lab", "--set", "max_tokens=6", "--prompts", "plain", "-q")


def answers(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.split("\n")[:-1]]


def test_lines_are_answered_in_their_order_and_not_twice(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("\n".join(LINES), "utf-8")
    done = flowinfer(*COMMAND, "--input", "in.jsonl", "-o", "out.jsonl", cwd=tmp_path)
    assert done.returncode == 4
    assert "1 questions failed; their lines say why" in done.stderr
    whole = (tmp_path / "out.jsonl").read_text("utf-8")
    found = answers(whole)
    assert [one["id"] for one in found] == ["1", "b", "4", "long", "9"]
    assert found[0]["text"] == found[4]["text"] != found[1]["text"]
    assert "which reads at most" in str(found[3]["error"])
    one = flowinfer(*COMMAND, "--prompt", "3 + 4 = ?", "--json", cwd=tmp_path)
    assert json.loads(one.stdout)["text"] == found[0]["text"]
    (tmp_path / "out.jsonl").write_text(whole[: whole.index("\n") + 9], "utf-8")  # killed while it wrote
    flowinfer(*COMMAND, "--input", "in.jsonl", "-o", "out.jsonl", cwd=tmp_path)
    assert (tmp_path / "out.jsonl").read_text("utf-8") == whole


def test_lines_come_from_standard_input_and_go_to_standard_output(tmp_path: Path) -> None:
    done = flowinfer(*COMMAND, "--input", "-", cwd=tmp_path, stdin="3 + 4 = ?\n5 + 6 = ?\n")
    assert done.returncode == 0
    assert [one["id"] for one in answers(done.stdout)] == ["1", "2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": ', "in.jsonl:1: not JSON"),
        ('x\n{"question": "y"}', "in.jsonl:2: expected id (or none), and either prompt or messages"),
        ('{"prompt": "x", "messages": []}', "in.jsonl:1: expected id (or none), and either prompt or messages"),
        ('{"messages": "x"}', "in.jsonl:1: messages must be a list"),
        ('{"messages": []}', "in.jsonl:1: the last message must be the user's"),
        ('{"prompt": 5}', "in.jsonl:1: messages[0].content must be a text or a list of text parts"),
        ('{"id": [1], "prompt": "x"}', "in.jsonl:1: id must be a text or a whole number"),
        ('{"id": "\\ud800", "prompt": "x"}', "in.jsonl:1: id must be a text or a whole number"),
        ('{"id": 1, "prompt": "x"}\n{"id": "1", "prompt": "y"}', "in.jsonl: two lines have the id '1'"),
    ],
)
def test_a_line_that_is_no_question_is_told_by_its_number(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(text, "utf-8")
    done = flowinfer(*COMMAND, "--input", "in.jsonl", cwd=tmp_path)
    assert (done.returncode, done.stderr.splitlines()[0][: len(message) + 7]) == (1, f"error: {message}")


@pytest.mark.parametrize(
    "held", ['{"id": "other", "text": ""}\n', "a text\n", "a text", "a text\nmore", '{"id": "1", "prompt": "x"}\n']
)
def test_a_file_that_holds_something_else_is_left_alone(held: str, tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text(held, "utf-8")
    done = flowinfer(*COMMAND, "--input", "-", "-o", "out.jsonl", cwd=tmp_path, stdin="3 + 4 = ?\n")
    assert done.returncode == 2
    assert "another file with -o" in done.stderr
    assert (tmp_path / "out.jsonl").read_text("utf-8") == held


def test_a_file_that_is_not_there_and_options_that_exclude_each_other_are_told(tmp_path: Path) -> None:
    assert "none.txt: cannot be read: no such file" in flowinfer(*COMMAND, "--input", "none.txt", cwd=tmp_path).stderr
    both = flowinfer(*COMMAND, "--input", "-", "--prompt", "x", cwd=tmp_path)
    assert (both.returncode, both.stderr.splitlines()[0]) == (2, "error: --input asks the lines of a file")
    unused = flowinfer(*COMMAND, "--prompt", "x", "-o", "out.jsonl", cwd=tmp_path)
    assert (unused.returncode, unused.stderr.splitlines()[0]) == (2, "error: -o is the file of answers of --input")
    for option in (("--dry-run",), ("--engine", "packed")):
        refused = flowinfer(*COMMAND, "--input", "-", *option, cwd=tmp_path)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert refused.stderr.startswith("error: --dry-run and --engine are not for --input")
    limited = flowinfer(*COMMAND, "--input", "-", "--limit", "1", cwd=tmp_path)
    assert (limited.returncode, limited.stderr.splitlines()[0]) == (2, "error: --limit without --dataset")


def test_answers_that_cannot_be_written_are_told_before_models_are_loaded(tmp_path: Path) -> None:
    for output, why in (("none/out.jsonl", "no such file or directory"), (".", "is a directory")):
        done = flowinfer(*COMMAND, "--input", "-", "-o", output, cwd=tmp_path, stdin="3 + 4 = ?\n")
        assert (done.returncode, done.stderr) == (2, f"error: {output}: cannot be written: {why}\n")


def test_models_are_not_loaded_where_no_line_is_left(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text('{"id": "1", "text": "7"}\n', "utf-8")
    for stdin, told in (("3 + 4 = ?\n", "1 of 1"), ("", "0 of 0")):
        output = ("-o", "out.jsonl") if stdin else ()
        done = flowinfer(*COMMAND[:-1], "--input", "-", *output, cwd=tmp_path, stdin=stdin)
        assert (done.returncode, done.stdout) == (0, "")
        assert done.stderr == f"{told} lines are answered" + (" in out.jsonl\n" if stdin else "\n")


@pytest.mark.parametrize("url", ["http://", "http://[half", "http://host:port", "http://host:99999", "host:8000"])
def test_what_is_no_address_of_a_server_is_refused(url: str, tmp_path: Path) -> None:
    done = flowinfer(*COMMAND, "--dataset", "ceval", "--url", url, cwd=tmp_path)
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, f"error: --url '{url}': no address of a server")
