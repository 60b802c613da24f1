"""The command line, as a user meets it: real commands on the toy zoo, and wrong input of each kind."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from flowinfer.cli import run
from flowinfer.runs.store import read_records
from tests.command import flowinfer

ITEMS = [{"id": f"q{i}", "question": f"What is {i} + {i}?", "answer": str(2 * i), "kind": "gsm8k"} for i in range(12)]


@pytest.fixture
def work(tmp_path: Path, toy_zoo: Path) -> Path:
    """Return a folder with a flow, a data set and a zoo."""
    (tmp_path / "s2p.flow").write_text("defaults { max_tokens=6 }\nYi -> (Qwen | Ds)\n", encoding="utf-8")
    lines = [json.dumps(item) for item in ITEMS]
    (tmp_path / "items.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


RUN = ("exec", "s2p.flow", "--dataset", "items.jsonl", "--zoo", "toy", "--quiet")


def test_exec_over_a_data_set_prints_one_json_object(work: Path) -> None:
    done = flowinfer(*RUN, "--json", "--limit", "3", cwd=work)
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    keys = {"accuracy", "interval", "n", "no_answer", "truncated", "seconds_per_question", "tokens_per_second", "run"}
    assert keys <= set(data) and data["n"] == 3 and 0 <= data["accuracy"] <= 1
    assert len(list(read_records(work / data["run"]))) == 3


def test_exec_by_likelihood_keeps_what_each_letter_got_and_goes_on(work: Path) -> None:
    choices = {"A": "four", "B": "five", "C": "six"}
    items = [{"id": f"c{i}", "question": f"{i} + {i}?", "choices": choices, "answer": "A"} for i in range(4)]
    (work / "choices.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    asked = ("exec", "s2p.flow", "--dataset", "choices.jsonl", "--zoo", "toy", "--quiet", "--by", "likelihood")
    done = flowinfer(*asked, "--json", cwd=work)
    assert done.returncode == 0, done.stderr
    run = work / json.loads(done.stdout)["run"]
    for record in read_records(run):
        wrote, chose = record.trace.steps
        assert wrote.likelihoods is None and wrote.finish_reason != "likelihood"
        assert set(chose.likelihoods or {}) == set(choices)
        assert record.score and record.score.extracted == record.trace.answer in choices
    shown = flowinfer("show", run.name, "c0", cwd=work).stdout
    assert shown.count("log-likelihood: '") == 1 and all(f"'{letter}' -" in shown for letter in choices)
    listed = flowinfer("runs", cwd=work).stdout
    assert "\n  Yi -> (Qwen | Ds)  with max_tokens=6, by=likelihood  on choices, zoo toy\n" in listed
    (row,) = json.loads(flowinfer("runs", "--json", cwd=work).stdout)
    assert row["flow"].endswith("(Qwen | Ds)") and "by=likelihood" in row["with"]
    log = run / "samples.jsonl"
    log.write_text("".join(log.read_text("utf-8").splitlines(keepends=True)[:2]), encoding="utf-8")
    again = flowinfer("exec", "--resume", run.name, "--json", "--quiet", cwd=work)
    assert json.loads(again.stdout)["n"] == 4
    refused = flowinfer(*RUN, "--by", "likelihood", "--url", "http://127.0.0.1:1", cwd=work)
    assert refused.returncode == 2 and "--by is not for --url" in refused.stderr


def test_a_run_can_be_listed_shown_and_scored_again(work: Path) -> None:
    assert flowinfer(*RUN, "--limit", "2", cwd=work).returncode == 0
    (row,) = json.loads(flowinfer("runs", "--json", cwd=work).stdout)
    assert (row["answered"], row["n"], row["state"]) == (2, 2, "complete")
    assert "95 % interval" in flowinfer("show", "latest", cwd=work).stdout
    assert "question q1" in flowinfer("show", "latest", "q1", "--prompts", cwd=work).stdout
    assert json.loads(flowinfer("show", "latest", "q1", "--json", cwd=work).stdout)["question"]["id"] == "q1"
    assert "2 answers scored, 0 verdicts changed" in flowinfer("score", "latest", cwd=work).stdout


def test_scoring_again_mends_verdicts_that_the_rules_no_longer_give(work: Path) -> None:
    flowinfer(*RUN, "--limit", "2", cwd=work)
    (run,) = (work / "runs").iterdir()
    log = run / "samples.jsonl"
    log.write_text(log.read_text("utf-8").replace('"correct":false', '"correct":true'), encoding="utf-8")
    done = flowinfer("score", "latest", "--json", cwd=work)
    assert json.loads(done.stdout)["changed"] == ["q0", "q1"]
    assert not any(record.score and record.score.correct for record in read_records(run))


def test_a_prompt_is_streamed_and_json_holds_every_step(work: Path) -> None:
    arguments = ("exec", "s2p.flow", "--zoo", "toy", "--prompt", "What is 1 + 1?")
    streamed = flowinfer(*arguments, "-q", cwd=work)
    data = json.loads(flowinfer(*arguments, "--json", cwd=work).stdout)
    assert streamed.returncode == 0 and streamed.stdout == data["text"] + "\n"
    assert {"text", "finish_reason", "seconds", "steps", "start"} == set(data)
    assert [step["step"] for step in data["steps"]] == ["s1", "s2"]


def test_a_question_may_come_from_standard_input(work: Path) -> None:
    done = flowinfer("exec", "-e", "Qwen", "--set", "max_tokens=3", "--zoo", "toy", "-q", cwd=work, stdin="Hello?\n")
    assert done.returncode == 0, done.stderr


def test_the_trace_shows_what_each_head_wanted(work: Path) -> None:
    done = flowinfer("exec", "s2p.flow", "--zoo", "toy", "--prompt", "Hi", "--trace", cwd=work)
    assert "Qwen" in done.stderr and "Ds" in done.stderr and "s2    0" in done.stderr


def test_a_dry_run_prints_the_plan_and_runs_nothing(work: Path) -> None:
    done = flowinfer(*RUN, "--dry-run", cwd=work)
    assert "s2  (Qwen | Ds)  reads s1" in done.stdout and not (work / "runs").exists()


@pytest.mark.parametrize(
    ("lines", "message"),
    [(None, "own.jsonl: no such file"), ('{"question": "Q", "choices": ["x", "y"], "answer": "z"}', "names no option")],
)
def test_a_dry_run_refuses_the_data_that_the_run_would(work: Path, lines: str | None, message: str) -> None:
    if lines is not None:
        (work / "own.jsonl").write_text(lines)
    done = flowinfer("exec", "s2p.flow", "--zoo", "toy", "--dataset", "own.jsonl", "--dry-run", cwd=work)
    assert done.returncode == 1 and message in done.stderr and not done.stdout


def test_a_check_that_could_read_nothing_does_not_call_it_good(work: Path) -> None:
    done = flowinfer("check", "nowhere.flow", cwd=work)
    assert "0 flows checked, 1 not read" in done.stderr and "all good" not in done.stderr


def test_lab_items_serve_the_toy_zoo_and_say_so(work: Path) -> None:
    done = flowinfer("exec", "s2p.flow", "--dataset", "ceval", "--zoo", "toy", "--limit", "1", cwd=work)
    assert "ceval (lab)" in done.stdout and "answers are noise" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("check", "-e", "Qwen -> Dss"), 1, "did you mean 'Ds'?"),
        (("check", "nowhere.flow"), 2, "cannot read 'nowhere.flow'"),
        (("check", "nowhere.flow"), 2, "0 flows checked, 1 not read"),
        (("check",), 2, "give .flow files"),
        (("check", "s2p.flow", "--output-format", "xml"), 2, "full, concise, github"),
        (("chat", "nowhere"), 2, "cannot read 'nowhere': no such file or directory\n  = help: packaged pipelines: "),
        (("runs", "--out", "nowhere"), 2, "no folder 'nowhere'\n  = help: --out FOLDER names the one"),
        (("explain", "E9999"), 2, "unknown code"),
        (("fmt", "nowhere.flow"), 2, "cannot read"),
        (("graph", "-e", "Qwen", "--format", "gif"), 2, "text, mermaid"),
        (("graph", "s2p.flow", "-o", "a.pdf"), 2, "no form goes with that ending"),
        (("graph", "s2p.flow", "-e", "Qwen"), 2, "give a .flow file, or"),
        (("plan", "-e", "Qwen", "--devices", "tpu"), 2, "cuda:0=24GB"),
        (("exec", "s2p.flow", "--zoo", "nope"), 2, "unknown zoo"),
        (("exec", "s2p.flow", "--zoo", "toy"), 2, "the question is empty"),
        (("exec", "s2p.flow", "--zoo", "toy", "--limit", "3"), 2, "--limit without --dataset"),
        ((*RUN, "--batch", "0"), 2, "--batch '0'"),
        ((*RUN, "--replicas", "some"), 2, "--replicas 'some': expected 'auto' or a whole number"),
        ((*RUN, "--replicas", "4096"), 2, "--replicas 4096: this machine has"),
        (
            (*RUN, "--replicas", "2", "--url", "http://localhost:1"),
            2,
            "--replicas and --cluster answer a data set's questions",
        ),
        ((*RUN, "--limit", "0"), 2, "at least 1"),
        ((*RUN, "--limit", "2", "--sample", "2"), 2, "exclude each other"),
        ((*RUN, "--ids", "q99"), 1, "no question has the id 'q99'"),
        ((*RUN, "--data", "gsm8k"), 2, "NAME=VALUE"),
        ((*RUN, "--data", "gsmm=x"), 2, "no data set of that name"),
        ((*RUN, "--set", "cap=3"), 2, "no param or default option"),
        ((*RUN, "--prompts", "papper"), 2, "--prompts 'papper': unknown prompt set\n  = help: did you mean 'paper'?"),
        ((*RUN, "--set", "prompts=nope"), 2, "--set prompts=nope: unknown prompt set"),
        ((*RUN, "--prompts", "en", "--set", "prompts=en"), 2, "leave one of them out"),
        (("plan", "s2p.flow", "--prompts", "nope"), 2, "--prompts 'nope': unknown prompt set"),
        (("profile", "s2p.flow", "--prompts", "nope"), 2, "--prompts 'nope': unknown prompt set"),
        (("sweep", "--models", "Qwen", "--prompts", "nope"), 2, "--prompts 'nope': unknown prompt set"),
        (("lab", "make"), 2, "python -m lab make"),
        ((*RUN, "--fail-under", "7"), 2, "between 0 and 1"),
        ((*RUN, "--resume"), 2, "no runs in"),
        ((*RUN, "--prompt", "x"), 2, "--dataset asks many"),
        (("exec", "s2p.flow", "--zoo", "toy", "--dataset", "nope"), 2, "unknown data set"),
        (("exec", "-e", 'model M = "org/m"\nM', "--prompt", "x"), 3, "'M' is not on this machine"),
        (("exec", "-e", "Qwen", "--zoo", "paper", "--dataset", "gsm8k"), 1, "--data gsm8k"),
        (("score", "nope"), 2, "no run 'nope'"),
        (("show", "nope"), 2, "no run 'nope'"),
    ],
)
def test_wrong_input_gets_a_message_a_cure_and_no_traceback(
    work: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    done = flowinfer(*arguments, cwd=work)
    assert done.returncode == code, done.stderr
    assert message in done.stderr + done.stdout and "Traceback" not in done.stderr


def test_an_accuracy_below_the_floor_is_exit_5(work: Path) -> None:
    assert flowinfer(*RUN, "--limit", "2", "--fail-under", "1", cwd=work).returncode == 5


def test_a_failed_question_is_exit_4_and_the_others_are_answered(work: Path) -> None:
    items = [*ITEMS[:2], {"id": "long", "question": "x " * 9000, "answer": "1"}]
    (work / "items.jsonl").write_text("\n".join(map(json.dumps, items)), encoding="utf-8")
    done = flowinfer(*RUN, "--json", cwd=work)
    assert done.returncode == 4
    data = json.loads(done.stdout)
    assert (data["n"], data["failed"]) == (2, 1)
    assert "1 question failed, 'long' because: the prompt has" in done.stderr


def test_resuming_asks_failed_questions_again_and_no_others(work: Path) -> None:
    done = flowinfer("exec", "s2p.flow", *RUN[2:], "--limit", "2", cwd=work)
    assert done.returncode == 0, done.stderr
    (run,) = (work / "runs").iterdir()
    log = run / "samples.jsonl"
    first, second, _ = log.read_text("utf-8").split("\n")
    row = json.loads(second)
    row["trace"] |= {"error": "the endpoint was down", "answer": "", "finish_reason": "error"}
    log.write_text(f"{first}\n{json.dumps(row | {'score': None})}\n", encoding="utf-8")
    again = json.loads(flowinfer(*RUN, "--limit", "2", "--resume", "--json", cwd=work).stdout)
    assert (again["n"], again["failed"]) == (2, 0)
    assert log.read_text("utf-8").startswith(first) and log.read_text("utf-8").count("\n") == 3


def called(*arguments: str) -> int:
    """Run a command in this process."""
    with pytest.raises(SystemExit) as ended:
        run(arguments)
    return int(ended.value.code or 0)


def test_a_run_goes_on_from_its_name_alone_wherever_one_stands(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Flow, params, zoo, data and choice of questions come from its folder; what contradicts them is refused."""
    monkeypatch.chdir(work)
    first = (*RUN, "--sample", "3", "--seed", "7", "--set", "max_tokens=4")
    assert called(*first) == 0
    (folder,) = (work / "runs").iterdir()
    log, elsewhere = folder / "samples.jsonl", work / "elsewhere"
    whole = {record.question.id: record.trace.answer for record in read_records(folder)}
    log.write_bytes(log.read_bytes().split(b"\n")[0] + b"\n")
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    capsys.readouterr()
    assert called("exec", "--resume", str(folder), "--quiet", "--json") == 0
    assert json.loads(capsys.readouterr().out)["n"] == 3
    assert {record.question.id: record.trace.answer for record in read_records(folder)} == whole
    for other in (("--seed", "8"), ("--limit", "3"), ("--set", "max_tokens=5"), ("-e", "Qwen")):
        assert called("exec", "--resume", str(folder), "-q", *other) == 2
        assert "differ from the run's" in capsys.readouterr().err
    monkeypatch.chdir(work)
    settings = json.loads((folder / "run.json").read_bytes())
    settings["asked"]["sets"]["draft"] = "off"  # as runs wrote it whose option had its former word
    (folder / "run.json").write_text(json.dumps(settings), encoding="utf-8")
    plan = (folder / "plan.json").read_text(encoding="utf-8")
    (folder / "plan.json").write_text(plan.replace('"speculate"', '"draft"'), encoding="utf-8")
    assert called("exec", "--resume", "-q") == 0
    del settings["asked"]
    (folder / "run.json").write_text(json.dumps(settings), encoding="utf-8")
    assert called("exec", "--resume") == 2
    assert "does not say what it was asked for: base, batch, data, dataset" in capsys.readouterr().err
    assert called(*first, "--resume") == 0


def test_runs_and_answers_are_listed_with_what_they_say(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At 80 columns; answers in the order of the data, with the beginnings of their texts."""
    monkeypatch.chdir(work)
    monkeypatch.setenv("COLUMNS", "80")

    def said(*arguments: str) -> str:
        assert called(*arguments) == 0
        return capsys.readouterr().out

    said(*RUN, "--limit", "3")
    listed = said("runs")
    assert (
        "  Yi -> (Qwen | Ds)  with max_tokens=6  on items, zoo toy\n" in listed
        and max(map(len, listed.split("\n"))) <= 80
    )
    shown = said("show", "latest")
    places = [shown.index(f"What is {k} + {k}?") for k in range(3)]
    assert places == sorted(places)
    assert [record["question"]["id"] for record in json.loads(said("show", "latest", "--json"))] == ["q0", "q1", "q2"]
    assert json.loads(said("show", "--failed", "--json")) == []
    assert said("show", "--failed").endswith("it has no such question\n")
    assert "verdicts changed (not written)" in said("score", "--dry-run")
    assert len(json.loads(said("show", "latest", "--wrong", "--limit", "2", "--json"))) <= 2
    (run,) = Path("runs").iterdir()
    (run / "results.json").unlink()
    run.rename("runs/my run")
    assert "`flowinfer exec --resume 'my run'` goes on with it" in said("show")


def test_a_column_that_the_data_has_is_no_matter_of_a_run(work: Path) -> None:
    (work / "with.jsonl").write_text('{"question": "Which?", "answer": "2", "context": "two"}\n', encoding="utf-8")
    (work / "without.jsonl").write_text('{"question": "Which?", "answer": "2"}\n', encoding="utf-8")
    flow = ("-e", 'Qwen[prompt="{context} {question}", max_tokens=2]', "--zoo", "toy")
    assert "must be a column of the data set" in flowinfer("check", *flow[:2], cwd=work).stdout
    done = flowinfer("exec", *flow, "--dataset", "with.jsonl", "-q", cwd=work)
    assert done.returncode == 0 and "column" not in done.stderr
    done = flowinfer("exec", *flow, "--dataset", "without.jsonl", "-q", cwd=work)
    assert done.returncode == 1 and "have no column 'context'" in done.stderr and "W0302" not in done.stderr


@pytest.mark.slow
def test_every_command_that_asks_says_when_it_asks_in_another_language(work: Path) -> None:
    note = "asks in Chinese, {} not; --prompts plain or en asks otherwise"
    short, profile = ("--set", "max_tokens=2", "--zoo", "toy"), ("profile", "s2p.flow", "--steps", "1")
    done = flowinfer("sweep", "--flows", "s2p.flow", "--datasets", "items.jsonl", "--limit", "1", *short, cwd=work)
    assert note.format("the question is") in done.stderr
    done = flowinfer(*profile, "--dataset", "items.jsonl", "--batch", "2", *short, cwd=work)
    assert note.format("2 of 2 questions are") in done.stderr
    done = flowinfer(*profile, *short, "--prompts", "en", cwd=work)
    assert done.returncode == 0 and "asks in Chinese" not in done.stderr


def test_fmt_check_and_diff_change_nothing(work: Path) -> None:
    path = work / "x.flow"
    path.write_text("Qwen→(Yi|Ds)\n", encoding="utf-8")
    assert flowinfer("fmt", "--check", "x.flow", cwd=work).returncode == 1
    assert "+Qwen -> (Yi | Ds)" in flowinfer("fmt", "--diff", "x.flow", cwd=work).stdout
    assert path.read_text("utf-8") == "Qwen→(Yi|Ds)\n"
    assert flowinfer("fmt", "x.flow", cwd=work).returncode == 0
    assert path.read_text("utf-8") == "Qwen -> (Yi | Ds)\n"
    assert flowinfer("fmt", "--check", "x.flow", cwd=work).returncode == 0


def test_a_file_that_cannot_be_read_hides_no_other(work: Path) -> None:
    (work / "bad.flow").write_bytes(b"\xff\xfe")
    (work / "wrong.flow").write_text("Qwen -> Dss\n", encoding="utf-8")
    done = flowinfer("check", "bad.flow", "nowhere.flow", ".", "wrong.flow", "--json", cwd=work)
    assert done.returncode == 2 and [d["code"] for d in json.loads(done.stdout)] == ["E0100"]
    assert done.stderr.count("error: ") == 2
    (work / "loose.flow").write_text("Qwen->Ds\n", encoding="utf-8")
    assert flowinfer("fmt", "bad.flow", "loose.flow", cwd=work).returncode == 2
    assert (work / "loose.flow").read_text("utf-8") == "Qwen -> Ds\n"


def test_standard_input_is_utf_8_and_output_never_fails_for_want_of_a_character(work: Path) -> None:
    command = [sys.executable, "-m", "flowinfer", "check", "-"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    for text, code, message in ((b"\xff", 2, b"not UTF-8 at byte 0"), ("千 -> Qwen".encode(), 1, b"E0100")):
        done = subprocess.run(command, input=text, capture_output=True, env=environment, check=False)
        assert done.returncode == code and message in done.stdout + done.stderr and b"Traceback" not in done.stderr


@pytest.mark.slow
def test_check_and_plan_build_no_toy_models(work: Path) -> None:
    environment = os.environ | {"FLOWINFER_CACHE": str(work / "fresh")}
    for command in ("check", "plan", "graph"):
        arguments = [sys.executable, "-m", "flowinfer", command, "s2p.flow", "--zoo", "toy"]
        assert subprocess.run(arguments, cwd=work, env=environment, capture_output=True, check=False).returncode == 0
    assert not (work / "fresh").exists()


def test_graphs_of_every_form_are_written(work: Path) -> None:
    for name in ("a.svg", "a.png", "a.mmd", "a.dot", "a.txt"):
        assert flowinfer("graph", "s2p.flow", "--zoo", "paper", "-o", name, cwd=work).returncode == 0
        assert (work / name).stat().st_size > 50


def test_every_pipeline_of_the_package_is_valid_and_canonical() -> None:
    root = Path(__file__).resolve().parents[2]
    flows = sorted(str(path) for path in (root / "pipelines").glob("*.flow"))
    assert len(flows) >= 8
    assert flowinfer("check", *flows, "--zoo", "paper", cwd=root).returncode == 0
    assert flowinfer("fmt", "--check", *flows, cwd=root).returncode == 0


@pytest.mark.parametrize("command", ["doctor", "models", "datasets"])
def test_the_commands_that_look_around_answer_in_json(work: Path, command: str) -> None:
    done = flowinfer(command, "--json", cwd=work)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)


def test_plan_tells_the_seconds_of_the_flows_newest_run_and_none_before_there_is_one(work: Path) -> None:
    asked = ("plan", "s2p.flow", "--zoo", "toy", "--json")
    before = json.loads(flowinfer(*asked, cwd=work).stdout)["question"]
    assert before["measured"] is None and before["most"]["seconds"] is None
    flowinfer(*RUN, "--limit", "2", "--no-cache", cwd=work)
    (run,) = (work / "runs").iterdir()
    seconds = json.loads((run / "results.json").read_text("utf-8"))["seconds_per_question"]
    question = json.loads(flowinfer(*asked, cwd=work).stdout)["question"]
    assert question["measured"]["run"] == run.name
    assert question["least"]["seconds"] == question["most"]["seconds"] == pytest.approx(seconds)
    said = flowinfer(*asked[:-1], cwd=work).stdout
    assert f"a question takes about {seconds:.3g} s: means of 2\nquestions in run {run.name} (batch auto)" in said


def outcome(run: Path) -> dict[str, object]:
    """Return all of a run's records that does not depend on the clock."""
    found = {}
    for record in read_records(run):
        steps = [(step.step, step.text, step.tokens, step.finish_reason) for step in record.trace.steps]
        taken = [(one.selection, one.taken, one.lost) for one in record.trace.selections]
        found[record.question.id] = (steps, taken, record.trace.answer, record.score)
    return found


def kill_and_resume(work: Path, whole: dict[str, object], seed: int, run: Sequence[str] = RUN) -> int:
    """Kill a run at random points until it is through; return how often it died."""
    randomness = random.Random(seed)
    out = f"killed-{seed}"
    arguments = [sys.executable, "-m", "flowinfer", *run, "--batch", "2", "--out", out]
    environment = os.environ | {"FLOWINFER_CACHE": str(work / out / "cache")}
    deaths = 0
    delay = randomness.uniform(0.2, 0.8)
    while True:
        resume = ["--resume"] if (work / out).is_dir() and any((work / out).glob("*/run.json")) else []
        process = subprocess.Popen(
            [part for part in [*arguments, *resume, *(["latest"] if resume else [])]],
            cwd=work,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        _wait_for_first_answers(process, work / out, randomness)
        time.sleep(delay if deaths == 0 else 0)
        if process.poll() is None and deaths < 3:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            deaths += 1
            continue
        _, problem = process.communicate()
        assert process.returncode == 0, problem.decode()
        (through,) = [path.parent for path in (work / out).glob("*/results.json")]
        assert outcome(through) == whole
        return deaths


def _wait_for_first_answers(process: subprocess.Popen[bytes], out: Path, randomness: random.Random) -> None:
    """Wait until a run has written something, so that a kill falls into its work, not into imports."""
    wanted = randomness.randint(0, 3)
    before = sum(path.read_bytes().count(b"\n") for path in out.glob("*/samples.jsonl"))
    while process.poll() is None:
        now = sum(path.read_bytes().count(b"\n") for path in out.glob("*/samples.jsonl"))
        if now - before >= wanted and any(out.glob("*/run.json")):
            return
        time.sleep(0.01)


@pytest.mark.slow
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(work: Path) -> None:
    assert flowinfer(*RUN, "--no-cache", "--out", "whole", cwd=work).returncode == 0
    (run,) = (work / "whole").iterdir()
    assert kill_and_resume(work, outcome(run), seed=1) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 14))
def test_kills_at_many_random_points_lose_nothing(work: Path, seed: int) -> None:
    assert flowinfer(*RUN, "--no-cache", "--out", "whole", cwd=work).returncode == 0
    (run,) = (work / "whole").iterdir()
    kill_and_resume(work, outcome(run), seed)


CONTROL = """defaults { max_tokens=6 }
((Qwen / Yi -> Ds)[accept=confidence, at=0.22] & (Ds)*3[until=confidence, at=0.22] & Yi)[min=2] -> (Qwen | Ds)
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(14, 18))
def test_a_killed_flow_whose_steps_may_not_run_takes_what_a_whole_run_took(work: Path, seed: int) -> None:
    (work / "control.flow").write_text(CONTROL, encoding="utf-8")
    asked = ("exec", "control.flow", *RUN[2:])
    assert flowinfer(*asked, "--no-cache", "--out", "whole", cwd=work).returncode == 0
    (run,) = (work / "whole").iterdir()
    taken = {(one.selection, one.taken) for record in read_records(run) for one in record.trace.selections}
    assert {("d2", 0), ("d2", 1), ("d3", 0), ("d3", 2)} <= taken  # or nothing would be decided anew
    assert kill_and_resume(work, outcome(run), seed, asked) >= 1


def test_a_cached_run_gives_the_same_answers_and_hides_foreign_seconds(work: Path) -> None:
    first = json.loads(flowinfer(*RUN, "--json", cwd=work).stdout)
    second = json.loads(flowinfer(*RUN, "--json", cwd=work).stdout)
    assert outcome(work / first["run"]) == outcome(work / second["run"])
    assert second["cached"] == len(ITEMS) and second["seconds_per_question"] is None
