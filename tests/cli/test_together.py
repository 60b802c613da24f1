"""`flowinfer run`, and models in the place of a flow's file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import flowinfer

FEW = ("--set", "max_tokens=4")


@pytest.fixture
def toys(toy_zoo: Path) -> Path:
    """Return the folder of the toy zoo's models."""
    return toy_zoo.parent


def test_models_answer_a_question_together_as_the_same_flow_does(toys: Path) -> None:
    flow = f'model a = "{toys / "qwen"}"\nmodel b = "{toys / "ds"}"\n(a | b)'
    whole = flowinfer("exec", "-e", flow, "--prompts", "none", "--prompt", "1 + 1?", *FEW, "--json", cwd=toys)
    piped = flowinfer("run", "qwen", "ds", *FEW, "--json", cwd=toys, stdin="1 + 1?\n")
    assert piped.returncode == 0, piped.stderr
    first, second = (json.loads(done.stdout) for done in (whole, piped))
    assert first["text"] == second["text"] != ""
    assert ["1 + 1?" in prompt for prompt in second["steps"][0]["prompt"]] == [True, True]
    assert first["steps"][0]["prompt"] == second["steps"][0]["prompt"]


def test_it_is_told_where_a_text_was_cut_off(toys: Path) -> None:
    flow = f'model a = "{toys / "qwen"}"\nmodel b = "{toys / "ds"}"\na[max_tokens=3] -> b'
    done = flowinfer("exec", "-e", flow, "--prompts", "plain", "--prompt", "1 + 1?", *FEW, cwd=toys)
    told = "note: what a wrote is cut off at max_tokens=3\nnote: the answer is cut off at max_tokens=4\n"
    assert done.stderr.endswith(told), done.stderr
    quiet = flowinfer("run", "qwen", "1 + 1?", "--quiet", *FEW, cwd=toys)
    assert quiet.stdout.strip() and not quiet.stderr


def test_models_in_the_place_of_a_file_are_planned_and_served(toys: Path) -> None:
    from flowinfer.cli.serve import checked_flows

    done = flowinfer("plan", "qwen+ds", cwd=toys)
    assert done.stdout.startswith("flow qwen+ds: 1 step, prompts 'none'\n"), done.stderr
    flows = checked_flows([f"{toys / 'qwen'}+{toys / 'ds'}", f"alone={toys / 'qwen'}"], None, None)
    assert list(flows) == ["qwen+ds", "alone"]


@pytest.mark.parametrize("question", ["-3 + 5 = ?", "-x squared, quickly?"])
def test_a_question_may_begin_with_a_minus(question: str, toys: Path) -> None:
    done = flowinfer("run", "qwen", question, *FEW, "--json", cwd=toys)
    assert question in json.loads(done.stdout)["steps"][0]["prompt"], done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("Dss", "q?"), "error: 'Dss' is no model\n  = help: did you mean 'Ds'?"),
        (("Qwen", "What", "is", "it?"), "a question of several words stands in quotes"),
        (("s2p.flow", "q?"), "  = help: it is a flow: flowinfer exec --prompt TEXT s2p.flow"),
        (("Qwen+Ds", ""), "error: no question\n  = help: say it last, in quotes"),
        (("Qwen+2", "q?"), "'2' in 'Qwen+2' is no model"),
        (("ollama:nothing", "q?"), "error: model 'nothing': 'ollama:nothing': no store of Ollama's at "),
        (("hf:", "q?"), "error: 'hf:' names no model of the hub"),
        (("a\x1bb.gguf", "q?"), "holds characters that nobody can see\n  = help: give it another name"),
        (("gone.gguf", "q?"), "error: no file or folder 'gone.gguf'\n  = help: `flowinfer models` lists what is"),
        (("some/repo/m.gguf", "q?"), "  = help: hf:some/repo/m.gguf names a file of the hub"),
    ],
)
def test_what_cannot_be_run_is_told(
    words: tuple[str, ...], told: str, toys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(toys / "no-store"))
    done = flowinfer("run", *words, "--zoo", "toy", cwd=toys)
    assert done.returncode in (2, 3) and told in done.stderr and "Traceback" not in done.stderr


def test_threads_that_there_are_not_are_refused(toys: Path) -> None:
    done = flowinfer("run", "qwen", "q?", "--threads", "9999", cwd=toys)
    assert done.returncode == 2 and "error: --threads 9999: this machine has" in done.stderr


def test_a_nice_process_goes_behind_others_and_uses_half_of_the_processors() -> None:
    """In a process of its own: niceness can be added, and never taken away."""
    code = (
        "import os, sys; before = os.nice(0); from flowinfer.cli.inputs import _be_nice; _be_nice(True);"
        "print(os.nice(0) - before, os.environ['OMP_NUM_THREADS'], 'torch' in sys.modules)"
    )
    environment = {key: one for key, one in os.environ.items() if key != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split()[1:] == [str(max(1, (os.cpu_count() or 1) // 2)), "False"]
    assert 0 < int(done.stdout.split()[0]) <= 10  # a process that is nice already ends at 19


def test_a_device_that_was_never_tried_is_refused_with_what_to_do_instead(toys: Path) -> None:
    done = flowinfer("check", "-e", 'model M = "org/m" { device="mps" }\nM', cwd=toys)
    assert done.returncode == 1 and "GGUF file computes there: backend=gguf" in done.stdout + done.stderr
