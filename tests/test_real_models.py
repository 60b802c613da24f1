"""Real language by two roads: `make test-real` says where the models of tests/real_models.py are."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

import flowinfer
from flowinfer.results import StepResult
from tests.real_models import FLOWS, NAMES, QUESTIONS, SHOWN, declared

pytestmark = pytest.mark.slow
FOLDER = Path(os.environ.get("FLOWINFER_TEST_REAL", ""))
if not os.environ.get("FLOWINFER_TEST_REAL"):
    pytest.skip("no real models (set FLOWINFER_TEST_REAL)", allow_module_level=True)
pytest.importorskip("llama_cpp", reason="needs flowinfer[gguf]")

MARGIN = "[near_tie_eps=0.001, max_tokens=24]"
DOCUMENT = Path(__file__).parents[1] / "docs" / "two_models.md"


@cache
def steps(ending: str, flow: str, number: int = 20) -> Mapping[str, StepResult]:
    """Return the last step of each question."""
    found = {}
    with flowinfer.parse(declared(FOLDER, ending) + flow, zoo="lab") as parsed:
        for question in QUESTIONS[:number]:
            run = parsed.run(question)
            assert run.trace.error is None
            found[question] = run.trace.steps[-1]
    return found


@pytest.mark.parametrize(
    "flow",
    [
        f"{FLOWS['Smol'][:-1]}, {MARGIN[1:]}",
        f"{FLOWS['Gemma'][:-1]}, {MARGIN[1:]}",
        FLOWS["fused"] + MARGIN,
        f"Gemma[max_tokens=8] -> {FLOWS['fused']}{MARGIN}",
        f"{FLOWS['fused']}{MARGIN[:-1]}, context=canonical]",
    ],
    ids=["Smol", "Gemma", "fused", "S2P", "canonical"],
)
def test_files_in_float32_write_what_transformers_writes_where_no_step_is_a_near_tie(flow: str) -> None:
    ours, theirs = steps("-f32.gguf", flow), steps("", flow)
    sure = [question for question, step in theirs.items() if not step.near_ties and not ours[question].near_ties]
    assert len(sure) >= 15
    assert [ours[question].text for question in sure] == [theirs[question].text for question in sure]


def test_drafts_change_no_text_of_quantized_files() -> None:
    texts = []
    for drafts in ("off", "ngram"):
        found = steps(".gguf", f"{FLOWS['fused']}[speculate={drafts}, near_tie_eps=0.01, max_tokens=24]", 6)
        texts.append({question: step.text for question, step in found.items() if not step.near_ties})
    shared = texts[0].keys() & texts[1].keys()
    assert shared and [texts[0][one] for one in sorted(shared)] == [texts[1][one] for one in sorted(shared)]


def test_served_files_answer_what_they_answer_without_a_server(tmp_path: Path) -> None:
    file, question = tmp_path / "both.flow", QUESTIONS[0]
    file.write_text(declared(FOLDER, ".gguf") + FLOWS["fused"] + "[max_tokens=24]", encoding="utf-8")
    command = [sys.executable, "-m", "flowinfer", "serve", str(file), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        address = next(found[1] for line in process.stderr if (found := re.match(r"ready: (http\S+)", line)))
        body = json.dumps({"model": "both", "messages": [{"role": "user", "content": question}]}).encode()
        asked = Request(f"{address}/v1/chat/completions", body, {"Content-Type": "application/json"})
        with urlopen(asked) as reply:
            text = json.load(reply)["choices"][0]["message"]["content"]
        process.send_signal(signal.SIGINT)
        process.stderr.read()
    assert text == steps(".gguf", FLOWS["fused"] + "[max_tokens=24]", 1)[question].text != ""


def test_the_models_have_tokenizers_of_two_kinds() -> None:
    from flowinfer.backends.gguf.load import load
    from flowinfer.spec import ModelSpec

    smol, gemma = (load(ModelSpec(name=n, ref=str(FOLDER / f"{n}.gguf"), backend="gguf"), "cpu") for n in NAMES)
    assert not smol.vocabulary().tokens.byte_pieces and len(gemma.vocabulary().tokens.byte_pieces) == 256
    assert not smol.is_exact and not gemma.is_exact


def test_the_document_shows_the_questions_that_its_seed_chooses() -> None:
    text = DOCUMENT.read_text("utf-8")
    assert all(f"**{question}**" in text for question in SHOWN)
