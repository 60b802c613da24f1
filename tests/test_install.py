"""What an installed flowinfer does, whatever its torch and transformers: `make test-versions` runs this with two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from flowinfer.backends import hf, versions
from flowinfer.backends.gguf.library import library
from flowinfer.cli import doctor
from flowinfer.errors import LoadError
from flowinfer.language.examples import known
from flowinfer.runs.store import read_records
from flowinfer.spec import ModelSpec
from tests.cli.test_cli import flowinfer
from tests.conftest import ROOT

ASKED = ("exec", "--zoo", "lab", "--quiet", "--prompt", "What is 12 * 12?", "-e")


@pytest.mark.parametrize("flow", ["(Qwen | Ds)", "Qwen -> (Ds | Yi)", "(Qwen & Ds & Yi)", "Qwen -> Ds[speculate=auto]"])
def test_the_shipped_models_answer_a_question(flow: str, tmp_path: Path) -> None:
    done = flowinfer(*ASKED, flow, cwd=tmp_path)
    assert (done.returncode, "144" in done.stdout, done.stderr) == (0, True, "")


def test_both_engines_write_the_same(tmp_path: Path) -> None:
    run = ("exec", "s2p", "--zoo", "lab", "--dataset", "gsm8k", "--limit", "6", "--quiet", "--json", "--no-cache")
    found = []
    for engine in ("packed", "reference"):
        done = flowinfer(*run, "--engine", engine, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        folder = tmp_path / json.loads(done.stdout)["run"]
        found.append({one.question.id: [step.text for step in one.trace.steps] for one in read_records(folder)})
    assert len(found[0]) == 6 and found[0] == found[1]


@pytest.mark.parametrize("command", ["check", "graph", "plan"])
@pytest.mark.parametrize("name", ["s2p", "s2p.flow"])
def test_a_packaged_pipeline_is_found_by_name(command: str, name: str, tmp_path: Path) -> None:
    done = flowinfer(command, name, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"note: no file '{name}' here: the packaged pipeline 's2p'" in done.stderr


def test_an_own_file_comes_before_a_packaged_one(tmp_path: Path) -> None:
    (tmp_path / "s2p.flow").write_text("Qwen -> Nobody", encoding="utf-8")
    done = flowinfer("check", "s2p.flow", cwd=tmp_path)
    assert done.returncode == 1 and "s2p.flow:1:9" in done.stdout


@pytest.mark.parametrize(
    ("given", "meant"), [("s2q", "s2p"), ("votes.flow", "vote"), ("min.flow", "mine.flow"), ("weihgted", "weighted")]
)
def test_a_flow_that_is_nowhere_gets_the_name_that_is_near(given: str, meant: str, tmp_path: Path) -> None:
    (tmp_path / "mine.flow").write_text("Qwen", encoding="utf-8")
    for command in ("check", "graph", "exec"):
        done = flowinfer(command, given, cwd=tmp_path)
        assert done.returncode == 2 and f"cannot read '{given}'" in done.stderr and f"'{meant}'?" in done.stderr


@pytest.mark.parametrize("command", [("check",), ("sweep", "--datasets", "gsm8k", "--flows")])
def test_a_name_that_no_file_can_have_is_refused(command: tuple[str, ...], tmp_path: Path) -> None:
    done = flowinfer(*command, "n" * 300, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: ")


def test_init_writes_flows_that_can_be_used_and_leaves_what_is_there(tmp_path: Path) -> None:
    done = flowinfer("init", cwd=tmp_path)
    assert done.returncode == 0 and "flowinfer exec pipelines/s2p.flow" in done.stdout
    files = sorted((tmp_path / "pipelines").glob("*.flow"))
    assert [file.stem for file in files] == list(known()) and (tmp_path / "pipelines" / "routes.json").is_file()
    assert flowinfer("check", *map(str, files), cwd=tmp_path).returncode == 0
    files[0].write_text("Qwen", encoding="utf-8")
    assert f"kept {Path('pipelines', files[0].name)}" in flowinfer("init", cwd=tmp_path).stdout
    assert files[0].read_text("utf-8") == "Qwen"
    assert flowinfer("init", "--force", cwd=tmp_path).returncode == 0
    assert files[0].read_text("utf-8") != "Qwen"


def test_init_where_nothing_can_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("", encoding="utf-8")
    done = flowinfer("init", "taken", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "error: cannot write into 'taken': file exists\n")


def test_the_version_names_what_it_runs_on_without_loading_it(tmp_path: Path) -> None:
    lines = flowinfer("--version", cwd=tmp_path).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["flowinfer", "torch", "transformers", "python"]
    program = "import sys; from flowinfer.backends.versions import banner; banner('0'); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize(
    ("words", "completed"),
    [("flowinfer ex", "exec"), ("flowinfer exec s2", "s2p"), ("flowinfer check mi", "mine.flow")],
)
def test_the_shell_completes_commands_and_flows(words: str, completed: str, tmp_path: Path) -> None:
    (tmp_path / "mine.flow").write_text("Qwen", encoding="utf-8")
    asked = {"_FLOWINFER_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    command = [sys.executable, "-m", "flowinfer"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | asked)
    assert completed in done.stdout.split()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_for_a_shell_can_be_shown(shell: str, tmp_path: Path) -> None:
    """Named, as the shell above this process may be none of them, or none at all."""
    named = os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    command = [sys.executable, "-m", "flowinfer", "--show-completion", shell]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=named)
    assert "_FLOWINFER_COMPLETE" in done.stdout, done.stderr


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / f"constraints-{name}.txt").read_text("utf-8").splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


def test_the_ranges_of_torch_and_transformers_end_where_the_tests_do() -> None:
    """A range that reaches beyond what was run promises what nobody knows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    asked = {one.name: one.specifier for one in map(Requirement, project["dependencies"])}
    oldest, newest = pins("oldest"), pins("newest")
    for name in versions.TRIED:
        major, minor = map(int, newest[name].split(".")[:2])
        first = ".".join(oldest[name].split(".")[:2])
        assert set(map(str, asked[name])) == {f">={first}", f"<{major}.{minor + 1}"}
        assert oldest[name] in asked[name] and newest[name] in asked[name]
    lowest = {name: next(iter(asked[name])).version for name in asked if name not in versions.TRIED}
    assert all(Version(oldest[name]) == Version(low) for name, low in lowest.items())


def test_versions_that_nobody_tried_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert versions.untried() == ()
    monkeypatch.setattr(versions, "installed", lambda name: {"torch": "2.11.0+cpu", "transformers": "99.1"}[name])
    (named,) = versions.untried()
    assert named.startswith("transformers 99.1 (tried: 5.17 to before 5.")
    with pytest.raises(LoadError, match="no folder") as caught:
        hf.load(ModelSpec(name="M", ref=str(tmp_path / "nowhere")), "cpu")
    assert caught.value.help and f"; flowinfer was not tried with {named}" in caught.value.help


def test_doctor_says_what_was_tried(tmp_path: Path) -> None:
    done = flowinfer("doctor", cwd=tmp_path)
    told = {line.split(":")[0].split()[-1]: line for line in done.stdout.splitlines()}
    for name in versions.TRIED:
        assert told[name].startswith("ok") and f"tried: {versions.in_words(versions.required(name))}" in told[name]


def test_doctor_says_what_gguf_files_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed", lambda name: None)
    told = doctor._gguf()
    assert told["state"] == "note" and told["cure"].startswith(
        "pip install 'flowinfer[gguf]' builds llama.cpp from source"
    )
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "; missing for that: a C++ compiler (" in doctor._gguf()["cure"]
    (tmp_path / "clang++").touch(mode=0o755)
    assert "missing" not in doctor._gguf()["cure"]


def test_doctor_says_where_llama_cpp_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed", lambda name: "0.3.36")
    found = {}
    for built, cards in ((True, 1), (False, 1), (False, 0)):
        lib = SimpleNamespace(llama_supports_gpu_offload=lambda built=built: built)
        monkeypatch.setattr("flowinfer.backends.gguf.library.library", lambda lib=lib: lib)
        monkeypatch.setattr("flowinfer.machine.cuda_device_count", lambda cards=cards: cards)
        found[built, cards] = doctor._gguf()
    assert found[True, 1]["found"].endswith(", computes on GPUs too") and found[True, 1]["state"] == "ok"
    assert found[False, 0]["found"].endswith(", computes on the CPU") and found[False, 0]["state"] == "ok"
    assert found[False, 1]["state"] == "note" and "CMAKE_ARGS=-DGGML_CUDA=on" in found[False, 1]["cure"]


def test_doctor_says_why_an_installed_llama_cpp_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed", lambda name: "0.3.36")
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    monkeypatch.delitem(sys.modules, "llama_cpp.llama_cpp", raising=False)
    library.cache_clear()
    told = doctor._gguf()
    library.cache_clear()
    assert told["state"] == "note" and told["found"].startswith("backend 'gguf' needs") and told["cure"]
