"""Streams that are closed, full or left by their reader, a folder that is gone, and signals that end a session."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flowinfer.cli.exec import batch_size
from flowinfer.errors import UsageError
from tests.command import hear_signals

QUICK = (("--version",), ("fmt", "-"), ("graph", "b.flow"))
OTHERS = (
    ("--help",),
    ("explain", "E0100"),
    ("check", "a.flow", "--output-format", "concise"),
    ("plan", "b.flow", "--zoo", "toy"),
    ("runs",),
    ("datasets",),
    ("models", "--zoo", "toy"),
    ("doctor",),
    ("exec", "-e", "Qwen[max_tokens=2]", "--zoo", "toy", "--prompt", "hi", "-q"),
)
COMMANDS = (*QUICK, *(pytest.param(one, marks=pytest.mark.slow) for one in OTHERS))
SHELL = 'exec "$0" -m flowinfer "$@" '


def in_shell(redirection: str, *arguments: str, cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command with streams redirected as a shell does it."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    command = ["bash", "-o", "pipefail", "-c", SHELL + redirection, sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment, check=False, **options)


@pytest.fixture
def work(tmp_path: Path, toy_zoo: Path) -> Path:
    (tmp_path / "a.flow").write_text("Qwen -> Nobody\n", encoding="utf-8")
    (tmp_path / "b.flow").write_text("Qwen -> Yi\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: arguments[0])
@pytest.mark.parametrize(
    ("redirection", "reason"), [(">/dev/full", "no space left on device"), (">&-", "bad file descriptor")]
)
def test_output_that_cannot_be_written_is_told_in_one_line(
    work: Path, arguments: tuple[str, ...], redirection: str, reason: str
) -> None:
    done = in_shell(redirection, *arguments, cwd=work, input="Qwen->Yi")
    said = done.stderr.removeprefix("1 flow checked, 1 refused\n")
    assert (done.returncode, said) == (3, f"error: cannot write to standard output: {reason}\n")


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: arguments[0])
def test_a_reader_that_goes_fails_no_pipeline(work: Path, arguments: tuple[str, ...]) -> None:
    done = in_shell("| true", *arguments, cwd=work, input="Qwen->Yi")
    assert done.returncode == (1 if arguments[0] == "check" else 0) and "rror" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_messages_that_nobody_can_read_do_not_go_elsewhere_and_end_nothing(work: Path, redirection: str) -> None:
    done = in_shell(redirection, "exec", "-e", "Qwen[max_tokens=2]", "--zoo", "toy", "--prompt", "hi", cwd=work)
    assert done.returncode == 0 and "loading" not in done.stdout and done.stdout
    assert in_shell(redirection, "check", "nowhere.flow", cwd=work).returncode == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("check", "-", "--output-format", "concise"), "the file states no flow"),
        (("exec", "-e", "Qwen", "--zoo", "toy"), "error: the question is empty"),
    ],
)
def test_a_closed_standard_input_is_an_empty_one(work: Path, arguments: tuple[str, ...], message: str) -> None:
    done = in_shell("<&-", *arguments, cwd=work)
    assert done.returncode in (1, 2) and message in done.stdout + done.stderr and "Traceback" not in done.stderr


def test_a_question_on_standard_input_that_is_not_utf_8_is_told(work: Path) -> None:
    done = in_shell(
        "< bytes", "exec", "-e", "Qwen", "--zoo", "toy", cwd=(work / "bytes").write_bytes(b"a\xff") and work
    )
    assert (done.returncode, done.stderr.split("\n")[0]) == (2, "error: <stdin>: not UTF-8 at byte 1")


@pytest.mark.parametrize("arguments", [("--version",), ("check", "a.flow"), ("exec", "-e", "Qwen", "--prompt", "x")])
def test_a_working_folder_that_is_gone_is_told(work: Path, arguments: tuple[str, ...]) -> None:
    gone = work / "gone"
    gone.mkdir()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    script = 'rmdir "$PWD"; exec "$0" -m flowinfer "$@"'
    done = subprocess.run(
        ["bash", "-c", script, sys.executable, *arguments],
        cwd=gone,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert (done.returncode, done.stderr) == (2, "error: the working folder is gone: change to one that is there\n")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_that_end_a_session_leave_a_run_to_go_on_with(work: Path, number: signal.Signals) -> None:
    flow = "Qwen[max_tokens=200] -> Yi[max_tokens=200]"
    command = [
        sys.executable,
        "-m",
        "flowinfer",
        "exec",
        "-e",
        flow,
        "--dataset",
        "gsm8k",
        "--zoo",
        "toy",
        "--no-cache",
    ]
    with subprocess.Popen(command, cwd=work, stderr=subprocess.PIPE, text=True, preexec_fn=hear_signals) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("loading"):
                process.send_signal(number)
                break
        said = process.stderr.read()
    (run,) = (work / "runs").iterdir()
    assert process.returncode == 128 + number
    assert f"interrupted; go on with: flowinfer exec --resume {run.name}" in said


@pytest.mark.parametrize("given", ["²", "1e3", "1_000", "-3", "0", "٣", "9" * 30, "", " 3"])
def test_a_batch_is_a_number_in_plain_digits(given: str) -> None:
    with pytest.raises(UsageError) as caught:
        batch_size(given)
    assert caught.value.message == f"--batch '{given}': expected 'auto' or a whole number from 1 to 999999"
