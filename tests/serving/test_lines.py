"""Lines of a file in, lines out: order, resuming, messages, failures."""

from __future__ import annotations

import fcntl
import io
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from flowinfer.backends.base import Turn
from flowinfer.language.check import check
from flowinfer.serving.lines import Line, answer_lines
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
    assert "1 question failed: the output's lines say why" in done.stderr
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


def test_lines_that_failed_are_asked_again_and_what_came_before_its_turn_is_not(tmp_path: Path) -> None:
    asked = (*COMMAND, "--input", "in.jsonl", "-o", "out.jsonl")
    (tmp_path / "in.jsonl").write_text("3 + 4 = ?\n5 + 6 = ?\n7 + 8 = ?\n", "utf-8")
    flowinfer(*asked, cwd=tmp_path)
    whole = answers((tmp_path / "out.jsonl").read_text("utf-8"))
    held = [whole[0] | {"text": "", "error": "the endpoint was down"}, whole[1] | {"text": "from before"}]
    early = [whole[2] | {"text": "early"}, whole[0] | {"asked": "something else"}]
    for name, lines, torn in (("out.jsonl", held, ""), ("out.jsonl.ahead", early, '{"id')):
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines) + torn, "utf-8")
    assert flowinfer(*asked, cwd=tmp_path).returncode == 0
    found = answers((tmp_path / "out.jsonl").read_text("utf-8"))
    assert [one["text"] for one in found] == [whole[0]["text"], "from before", "early"]
    assert not (tmp_path / "out.jsonl.ahead").exists()


def test_answers_of_another_flow_other_settings_or_other_questions_are_not_gone_on_with(tmp_path: Path) -> None:
    asked = (*COMMAND, "--input", "-", "-o", "out.jsonl")
    flowinfer(*asked, cwd=tmp_path, stdin="3 + 4 = ?\n")
    held = (tmp_path / "out.jsonl").read_bytes()
    made = "another flow, or other settings, have made its answers"
    for options, stdin, why in (
        (("--set", "temperature=1"), "3 + 4 = ?\n", made),
        (("--set", "max_tokens=7"), "3 + 4 = ?\n", made),
        (("--json",), "3 + 4 = ?\n", "its answers tell of every step (--json), or these would"),
        ((), "3 + 5 = ?\n5 + 6 = ?\n", "line 1 answers another question than '1' here"),
        ((), '{"id": "1", "messages": [{"role": "user", "content": "3 + 4 = ?"}]}\n', ""),
        ((), "", "it has 1 answers, and there are 0 questions"),
    ):
        done = flowinfer(*asked, *options, cwd=tmp_path, stdin=stdin)
        cure = "another file with -o, or remove this one"
        told = f"error: cannot go on with 'out.jsonl': {why}\n  = help: {cure}\n" if why else ""
        assert (done.returncode, done.stderr) == (2 if why else 0, told)
        assert (tmp_path / "out.jsonl").read_bytes() == held


def test_with_json_each_line_tells_of_every_step(tmp_path: Path) -> None:
    done = flowinfer(*COMMAND, "--input", "-", "--json", cwd=tmp_path, stdin="3 + 4 = ?\n")
    one = flowinfer(*COMMAND, "--prompt", "3 + 4 = ?", "--json", cwd=tmp_path)
    (line,), told = answers(done.stdout), json.loads(one.stdout)
    assert set(line) == {*told, "id", "tokens", "asked", "system_fingerprint"} - {"start"}
    assert [step["text"] for step in line["steps"]] == [step["text"] for step in told["steps"]]  # type: ignore[attr-defined]


def test_answers_come_out_while_lines_still_come_in() -> None:
    first_is_out = threading.Event()

    class Out(io.StringIO):
        def write(self, text: str) -> int:
            first_is_out.set()
            return super().write(text)

    def lines() -> Iterator[Line]:
        yield Line("1", (Turn("user", "3 + 4 = ?"),))
        assert first_is_out.wait(60)
        yield Line("2", (Turn("user", "5 + 6 = ?"),))

    flow = check("Qwen", zoo="lab", overrides={"max_tokens": "4", "prompts": "plain"})
    with redirect_stdout(Out()) as out:
        num_failed = answer_lines(flow, lines(), None, batch="auto", says_steps=False, say=lambda message: None)
    assert (num_failed, [one["id"] for one in answers(out.getvalue())]) == (0, ["1", "2"])


def test_lines_before_one_that_is_no_question_are_answered(tmp_path: Path) -> None:
    done = flowinfer(*COMMAND, "--input", "-", cwd=tmp_path, stdin='3 + 4 = ?\n{"question": 1}\n5 + 6 = ?\n')
    assert (done.returncode, len(answers(done.stdout))) == (1, 1)
    assert done.stderr.startswith("error: <stdin>:2: expected id")


@pytest.mark.slow
def test_kills_at_any_moment_lose_nothing(tmp_path: Path) -> None:
    lines = [json.dumps({"id": str(n), "prompt": f"{n} + {n % 7} = ?" * (1 + n % 5)}) for n in range(300)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines), "utf-8")
    whole = flowinfer(*COMMAND, "--input", "in.jsonl", cwd=tmp_path).stdout
    command = [sys.executable, "-m", "flowinfer", *COMMAND, "--input", "in.jsonl", "-o", "out.jsonl"]
    out, sizes = tmp_path / "out.jsonl", [0]
    for delay in (0.0, 0.05, 0.2, 0.4):
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
        while process.poll() is None and (not out.exists() or out.stat().st_size <= sizes[-1]):
            time.sleep(0.01)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        sizes.append(out.stat().st_size)
    assert sizes == sorted(sizes)
    assert sizes[1] < len(whole.encode())
    assert subprocess.run(command, cwd=tmp_path, stderr=subprocess.DEVNULL, check=False).returncode == 0
    assert out.read_text("utf-8") == whole


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
        ('{"id": 1, "prompt": "x"}\n{"id": "1", "prompt": "y"}', "in.jsonl:2: the id '1' is that of line 1"),
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
    assert "another file with -o, or remove this one" in done.stderr
    assert (tmp_path / "out.jsonl").read_text("utf-8") == held


def test_a_file_that_is_not_there_and_options_that_exclude_each_other_are_told(tmp_path: Path) -> None:
    assert "none.txt: cannot be read: no such file" in flowinfer(*COMMAND, "--input", "none.txt", cwd=tmp_path).stderr
    both = flowinfer(*COMMAND, "--input", "-", "--prompt", "x", cwd=tmp_path)
    assert (both.returncode, both.stderr.splitlines()[0]) == (2, "error: --input asks the lines of a file")
    unused = flowinfer(*COMMAND, "--prompt", "x", "-o", "out.jsonl", cwd=tmp_path)
    assert (unused.returncode, unused.stderr.splitlines()[0]) == (2, "error: -o is the file of answers of --input")
    for option in (("--dry-run",), ("--engine", "packed"), ("--replicas", "2")):
        refused = flowinfer(*COMMAND, "--input", "-", *option, cwd=tmp_path)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert refused.stderr.startswith("error: --dry-run, --engine, --replicas and --cluster are not for --input")
    limited = flowinfer(*COMMAND, "--input", "-", "--limit", "1", cwd=tmp_path)
    assert (limited.returncode, limited.stderr.splitlines()[0]) == (2, "error: --limit without --dataset")


def test_answers_that_cannot_be_written_are_told_before_models_are_loaded(tmp_path: Path) -> None:
    for output, why in (("none/out.jsonl", "no such file or directory"), (".", "is a directory")):
        done = flowinfer(*COMMAND, "--input", "-", "-o", output, cwd=tmp_path, stdin="3 + 4 = ?\n")
        assert (done.returncode, done.stderr) == (2, f"error: {output}: cannot be written: {why}\n")


def test_a_file_that_another_process_writes_is_left_to_it(tmp_path: Path) -> None:
    with (tmp_path / "out.jsonl").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = flowinfer(*COMMAND, "--input", "-", "-o", "out.jsonl", cwd=tmp_path, stdin="3 + 4 = ?\n")
    told = "error: another process writes 'out.jsonl' now\n  = help: another file with -o\n"
    assert (done.returncode, done.stderr) == (2, told)


def test_models_are_not_loaded_where_no_line_is_left(tmp_path: Path) -> None:
    asked = (*COMMAND[:-1], "--input", "-")
    flowinfer(*asked, "-o", "out.jsonl", cwd=tmp_path, stdin="3 + 4 = ?\n")
    done = flowinfer(*asked, "-o", "out.jsonl", cwd=tmp_path, stdin="3 + 4 = ?\n")
    told = "1 line answered already\nno line is left to answer\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, "", told)
    empty = flowinfer(*asked, cwd=tmp_path)
    assert (empty.returncode, empty.stdout, empty.stderr) == (0, "", "no line is left to answer\n")


@pytest.mark.parametrize("url", ["http://", "http://[half", "http://host:port", "http://host:99999", "host:8000"])
def test_what_is_no_address_of_a_server_is_refused(url: str, tmp_path: Path) -> None:
    done = flowinfer(*COMMAND, "--dataset", "ceval", "--url", url, cwd=tmp_path)
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, f"error: --url '{url}': no address of a server")
