"""`flowinfer sweep` as a user meets it: tables, kills and wrong input of every option."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flowinfer import cli
from flowinfer.runs.store import read_json, read_records
from flowinfer.sweeps.folder import read_index, read_latency
from tests.command import flowinfer, hear_signals
from tests.sweeps.test_sweep import ITEMS, texts, write_items

SWEEP = ("sweep", "--models", "Qwen,Yi,Ds", "--datasets", "items.jsonl", "--zoo", "toy", "--set", "max_tokens=6")
FEW = (*SWEEP, "--strategies", "single")


@pytest.fixture
def work(tmp_path: Path, toy_zoo: Path) -> Path:
    """Return a folder with a data set and two flows."""
    write_items(tmp_path / "items.jsonl", ITEMS[:3])
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows" / "capped.flow").write_text("param cap: int = 4\nQwen[max_tokens=$cap] -> Yi\n", "utf-8")
    (tmp_path / "flows" / "vote.flow").write_text("(Qwen & Yi)\n", "utf-8")
    (tmp_path / "bad.flow").write_text("Qwen -> Yii\n", "utf-8")
    return tmp_path


def test_a_sweep_prints_a_table_and_says_what_sharing_saved(work: Path) -> None:
    done = flowinfer(*SWEEP, "--latency", "1", "--no-cache", cwd=work)
    assert done.returncode == 0, done.stderr
    assert "Qwen -> (Yi | Ds)" in done.stdout and "s/question" in done.stdout
    assert "99 model calls made; path by path they would be 225 (56 % saved)" in done.stdout
    assert "27 paths x 1 data sets, zoo toy (--zoo)" in done.stderr and "noise" in done.stderr


def test_json_holds_every_cell_and_the_folder(work: Path) -> None:
    done = flowinfer(*SWEEP, "--strategies", "single,pi", "--json", cwd=work)
    data = json.loads(done.stdout)
    assert len(data["paths"]) == 9 and (work / data["folder"] / "results.json").is_file()
    cell = data["paths"]["p04"]["datasets"]["items.jsonl"]
    assert cell["status"] == "done" and cell["n"] == 3 and len(cell["interval"]) == 2


def test_a_grid_and_files_make_paths(work: Path) -> None:
    done = flowinfer(
        *("sweep", "--flows", "flows", "--models", "Qwen,Yi", "--strategies", "pi", "--datasets", "items.jsonl"),
        *("--zoo", "toy", "--set", "max_tokens=3", "--grid", "cap=2,5", "--json"),
        cwd=work,
    )
    assert done.returncode == 0, done.stderr
    names = [path["name"] for path in json.loads(done.stdout)["paths"].values()]
    assert names == ["(Qwen | Yi)", "(Yi | Qwen)", "capped [cap=2]", "capped [cap=5]", "vote"]


def test_flows_that_may_skip_steps_show_their_calls_and_who_was_taken(work: Path) -> None:
    (work / "sure.flow").write_text("(Qwen / Yi)[accept=confidence, at=0]\n", "utf-8")
    asked = ("sweep", "--flows", "flows/vote.flow,sure.flow", "--datasets", "items.jsonl", "--zoo", "toy")
    done = flowinfer(*asked, "--set", "max_tokens=2", cwd=work)
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.split("\n") if "│" in line]
    assert [row[-3:-1] for row in rows] == [["2.00", "-"], ["1.00", "1: 100 %"]]
    assert "path by path they would be 9 " in done.stdout


def test_a_dry_run_counts_and_runs_nothing(work: Path) -> None:
    done = flowinfer(*SWEEP, "--dry-run", cwd=work)
    assert "steps     51 per question path by path, 25 run, 26 shared" in done.stdout
    assert "calls     99 of models at most; path by path 225" in done.stdout
    assert "all models fit at once" in done.stdout and "time " in done.stdout and not (work / "sweeps").exists()
    data = json.loads(flowinfer(*SWEEP, "--dry-run", "--json", cwd=work).stdout)
    assert (data["calls"], data["calls_alone"], len(data["paths"])) == (99, 225, 27)


def test_failed_paths_and_questions_are_exit_4(work: Path) -> None:
    write_items(work / "items.jsonl", [*ITEMS[:1], {"id": "long", "question": "x " * 9000, "answer": "1"}])
    done = flowinfer(*FEW, cwd=work)
    assert done.returncode == 4
    assert "failed: p01 Qwen on items: 1 question failed" in done.stderr and "--resume" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("sweep",), 2, "--models Qwen,Yi,Ds wires models"),
        (("sweep", "--models", "Qwen"), 2, "no data sets"),
        ((*SWEEP[:2], "Qwen,Yii", *SWEEP[3:]), 2, "did you mean 'Yi'?"),
        ((*SWEEP[:2], "Qwen,Qwen", *SWEEP[3:]), 2, "'Qwen' is named twice"),
        ((*SWEEP, "--strategies", "s2q"), 2, "did you mean"),
        ((*SWEEP, "--strategies", ","), 2, "--strategies is empty"),
        ((*SWEEP[:2], "Qwen,Yi", *SWEEP[3:], "--strategies", "s2p"), 2, "S2P and P2S at least 3"),
        ((*FEW, "--datasets", "gsm9k"), 2, "did you mean 'gsm8k'?"),
        ((*FEW, "--datasets", "items.jsonl,items.jsonl"), 2, "named twice"),
        ((*SWEEP, "--depth", "x"), 2, "expected a whole number"),
        ((*SWEEP, "--depth", "4"), 2, "expected 1 to 3"),
        ((*SWEEP, "--grid", "max_token=1,2"), 2, "did you mean 'max_tokens'?"),
        ((*SWEEP, "--grid", "max_tokens"), 2, "expected NAME=VALUE"),
        ((*SWEEP, "--grid", "max_tokens=1,"), 2, "an empty value"),
        ((*SWEEP, "--grid", "seed=1,1"), 2, "a value stands twice"),
        ((*SWEEP, "--grid", "seed=1", "--grid", "seed=2"), 2, "is given twice"),
        ((*SWEEP, "--grid", "max_tokens=1,2"), 2, "both in --set and in --grid"),
        ((*SWEEP, "--grid", "seed=1,x"), 2, "--grid seed=x: not a value of that option"),
        ((*SWEEP, "--grid", "temperature=-1"), 2, "help: expected greater than or equal to 0"),
        ((*SWEEP, "--grid", "context=both"), 2, "help: expected 'native' or 'canonical'"),
        ((*FEW, "--datasets", "nope.jsonl"), 1, "nope.jsonl: no such file or directory"),
        ((*SWEEP, "--grid", "fuser=meen"), 2, "did you mean 'mean'?"),
        ((*SWEEP, "--grid", "fuser=meen"), 2, "--grid fuser=meen: unknown fuser"),
        ((*SWEEP, "--grid", "context=naitve"), 2, "context=naitve"),
        ((*SWEEP, "--grid", "prompts=papr"), 2, "--grid prompts=papr: unknown prompt set"),
        ((*SWEEP, "--grid", "weights=1:0"), 2, "expected positive numbers"),
        ((*FEW, "--grid", "weights=1:2", "--flows", "flows"), 2, "a flow file has its own weights"),
        ((*SWEEP, "--max-paths", "5"), 2, "27 paths are more than --max-paths 5"),
        ((*SWEEP, "--max-paths", "0"), 2, "expected at least 1"),
        ((*SWEEP, "--latency", "-1"), 2, "expected 0 or more"),
        ((*SWEEP, "--latency", "1", "--independent"), 2, "leave out --latency"),
        ((*SWEEP, "--batch", "4", "--independent"), 2, "leave out --batch"),
        ((*SWEEP, "--batch", "x"), 2, "expected 'auto'"),
        ((*SWEEP, "--replicas", "2", "--independent"), 2, "leave out --replicas"),
        ((*SWEEP, "--replicas", "4096"), 2, "--replicas 4096: this machine has"),
        ((*FEW, "--sample", "0"), 2, "at least 1"),
        ((*FEW, "--sample", "2", "--limit", "2"), 2, "exclude each other"),
        ((*SWEEP, "--data", "gsm9k=x"), 2, "no data set of that name"),
        ((*SWEEP, "--zoo", "labb"), 2, "unknown zoo"),
        ((*SWEEP, "--flows", "nowhere"), 2, "cannot read 'nowhere': no such file or directory"),
        ((*FEW, "--flows", "bad.flow"), 1, "did you mean 'Yi'?"),
        ((*FEW, "--flows", "bad.flow", "--grid", "cap=1"), 1, "did you mean 'Yi'?"),
        ((*FEW, "--flows", "."), 1, "unknown model 'Yii'"),
        (("sweep", "--resume"), 2, "no sweeps in 'sweeps'"),
        (("sweep", "--resume", "nope"), 2, "no sweep 'nope'"),
        ((*FEW, "--out", "items.jsonl"), 2, "cannot make a sweep folder"),
    ],
)
def test_wrong_input_gets_a_message_and_a_cure(
    work: Path,
    arguments: tuple[str, ...],
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(work)
    with pytest.raises(SystemExit) as ended:
        cli.run(arguments)
    assert ended.value.code == code and message in capsys.readouterr().err


def test_progress_ends_with_all_calls_and_runs(work: Path) -> None:
    assert "100 %  3/3 runs" in flowinfer(*FEW, "--no-cache", cwd=work).stderr.split("\n")[-2]


def test_resuming_keeps_what_a_sweep_was_started_with(work: Path) -> None:
    assert flowinfer(*FEW, "--no-cache", cwd=work).returncode == 0
    done = flowinfer("sweep", "--resume", "--limit", "2", cwd=work)
    assert done.returncode == 2 and "--limit differs from what sweep" in done.stderr
    done = flowinfer("sweep", "--resume", "--latency", "1", "--json", cwd=work)
    assert done.returncode == 0, done.stderr
    assert all(path["seconds_per_question"] > 0 for path in json.loads(done.stdout)["paths"].values())


def answers(folder: Path) -> dict[tuple[str, str], object]:
    return {key: texts(folder / entry.run) for key, entry in read_index(folder).items()}


def kill_and_resume(
    work: Path, arguments: tuple[str, ...], seed: int, *, how: signal.Signals, most: int = 2, lines: int = 20
) -> Path:
    """Kill a sweep at random points until it is through; return its folder.

    Args:
        most: kills.
        lines: each comes after it has written so many lines and run folders at most, of which it must write more.
    """
    randomness = random.Random(seed)
    out = work / f"killed-{seed}"
    environment = os.environ | {"FLOWINFER_CACHE": str(work / f"cache-{seed}")}
    deaths = 0
    while True:
        is_there = any(out.glob("*/sweep.json"))
        options = ("sweep", "--resume") if is_there else arguments
        process = subprocess.Popen(
            [sys.executable, "-m", "flowinfer", *options, *(["latest"] if is_there else []), "--out", str(out)],
            cwd=work,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            preexec_fn=hear_signals,
        )
        _wait_for_work(process, out, randomness.randint(1, lines))
        if deaths < most and process.poll() is None:
            process.send_signal(how)
            _, problem = process.communicate()
            if process.returncode == 0 and deaths:  # through before the signal was heard
                continue
            assert process.returncode == (130 if how is signal.SIGINT else -how), problem.decode()
            deaths += 1
            continue
        _, problem = process.communicate()
        assert process.returncode == 0, problem.decode()
        (folder,) = [path.parent for path in out.glob("*/results.json")]
        assert deaths >= 1
        return folder


def _written(out: Path) -> int:
    files = [*out.glob("*/runs/*/run.json"), *out.glob("*/runs/*/samples.jsonl"), *out.glob("*/*.jsonl")]
    return len(files) + sum(path.read_bytes().count(b"\n") for path in files if path.suffix == ".jsonl")


def _wait_for_work(process: subprocess.Popen[bytes], out: Path, wanted: int) -> None:
    """Wait until a sweep has written something, so that a kill falls into its work, not into imports."""
    before = _written(out)
    while process.poll() is None and _written(out) - before < wanted:
        time.sleep(0.005)


@pytest.mark.slow
def test_a_sweep_killed_again_and_again_equals_a_whole_one(work: Path) -> None:
    arguments = (*SWEEP, "--strategies", "single,si", "--latency", "1", "--batch", "2")
    whole = json.loads(flowinfer(*arguments, "--json", "--no-cache", cwd=work).stdout)
    folder = kill_and_resume(work, arguments, 1, how=signal.SIGKILL)
    assert answers(folder) == answers(work / whole["folder"])
    assert len(list((folder / "runs").iterdir())) == 9
    assert {len(rows) for rows in read_latency(folder).values()} == {1} and len(read_latency(folder)) == 9
    data = read_json(folder / "results.json")
    assert (data["calls_needed"], data["calls_made"]) == (whole["calls_needed"], whole["calls_made"])


@pytest.mark.slow
def test_an_interrupted_sweep_is_exit_130_and_says_how_to_go_on(work: Path) -> None:
    """The signal comes after the first lines: one that comes at the very end interrupts nothing."""
    arguments = (*SWEEP, "--strategies", "single,si,s2p", "--batch", "1")
    folder = kill_and_resume(work, arguments, 2, how=signal.SIGINT, most=1, lines=2)
    assert all(entry.status == "done" for entry in read_index(folder).values())


@pytest.mark.slow
def test_an_independent_sweep_can_be_killed_too(work: Path) -> None:
    folder = kill_and_resume(work, (*SWEEP, "--strategies", "single,p2s", "--independent"), 3, how=signal.SIGKILL)
    records = [record for run in (folder / "runs").iterdir() for record in read_records(run)]
    assert len(records) == 9 * 3 and all(s.cached_from is None for r in records for s in r.trace.steps)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 16))
def test_kills_at_many_random_points_lose_nothing(work: Path, seed: int) -> None:
    arguments = (*SWEEP, "--latency", "1", "--batch", "2")
    whole = json.loads(flowinfer(*arguments, "--json", "--no-cache", cwd=work).stdout)
    folder = kill_and_resume(work, arguments, seed, how=signal.SIGKILL, most=6, lines=60)
    assert answers(folder) == answers(work / whole["folder"])
