"""Clients that people use beside OpenAI's own, each in its process: a plain call, a stream, a stop, a failure."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flowinfer import load
from flowinfer.tasks.base import load_questions, question_text
from tests.command import flowinfer
from tests.conftest import ROOT
from tests.serving.test_clients import ASK, Process

pytestmark = pytest.mark.slow

LANGCHAIN = """
import sys
import openai
from langchain_openai import ChatOpenAI
chat = ChatOpenAI(base_url=sys.argv[1], api_key="none", model="s2p", max_tokens=8, max_retries=0)
whole = chat.invoke("3 + 4 = ?")
assert whole.content and whole.usage_metadata["total_tokens"] > 8, whole
assert "".join(piece.content for piece in chat.stream("3 + 4 = ?")) == whole.content
stream = chat.bind(max_tokens=500).stream("3 + 4 = ?")
next(stream)
stream.close()
assert "=" not in chat.invoke("3 + 4 = ?", stop=["="]).content
try:
    chat.bind(n=2).invoke("3 + 4 = ?")
except openai.BadRequestError as error:
    assert error.param == "n"
else:
    raise AssertionError("n=2 was not refused")
print("well")
"""
LITELLM = """
import sys
import litellm
litellm.telemetry = False
asked = dict(model="openai/s2p", api_base=sys.argv[1], api_key="none", max_tokens=8, num_retries=0,
             messages=[{"role": "user", "content": "3 + 4 = ?"}])
whole = litellm.completion(**asked)
assert whole.choices[0].message.content and whole.usage.total_tokens > 8, whole
chunks = list(litellm.completion(**asked, stream=True, stream_options={"include_usage": True}))
text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
assert text == whole.choices[0].message.content, text
for chunk in litellm.completion(**asked | {"max_tokens": 500}, stream=True):
    break
assert "=" not in litellm.completion(**asked, stop=["="]).choices[0].message.content
try:
    litellm.completion(**asked | {"model": "openai/s2q"})
except litellm.NotFoundError:
    print("well")
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Process]:
    process = Process(str(ROOT / "pipelines" / "s2p.flow"))
    yield process
    process.signal(15)
    assert process.ended() == 0


def needs(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed: pip install 'flowinfer[clients]'")


@pytest.mark.parametrize(("module", "script"), [("langchain_openai", LANGCHAIN), ("litellm", LITELLM)])
def test_a_library_is_served(server: Process, module: str, script: str) -> None:
    needs(module)
    environment = os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANGSMITH_TRACING": "false"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, f"{server.address}/v1"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.stdout.rstrip().endswith("well"), done.stdout + done.stderr


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with npm's clients of the pinned versions."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("node and npm are not installed")
    folder = tmp_path_factory.mktemp("npm") / "clients"
    shutil.copytree(Path(__file__).parent / "npm", folder)
    command = [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"npm cannot get the packages: {done.stderr.strip().splitlines()[:1]}")
    return folder


@pytest.mark.parametrize("script", ["openai.mjs", "ai-sdk.mjs"])
def test_a_client_from_npm_is_served(server: Process, packages: Path, script: str) -> None:
    command = ["node", script, f"{server.address}/v1"]
    done = subprocess.run(command, cwd=packages, capture_output=True, text=True, check=False)
    assert done.stdout == "well\n", done.stdout + done.stderr


TASK = """
task: items
dataset_path: json
dataset_kwargs: {data_files: {test: items.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["Question:"], max_gen_toks: 64, temperature: 0}
metric_list: [{metric: exact_match}]
"""


CHOICES = """
task: choices
dataset_path: json
dataset_kwargs: {data_files: {test: choices.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}\\nAnswer:"
doc_to_choice: letters
doc_to_target: gold
metric_list: [{metric: acc}]
"""
WORDS = """
task: words
dataset_path: json
dataset_kwargs: {data_files: {test: words.jsonl}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{question}}\\nAnswer:"
doc_to_target: " {{answer}}"
metric_list: [{metric: perplexity}]
"""


def evaluated(folder: Path, tasks: str, *options: str) -> list[dict[str, Any]]:
    """Let lm-eval ask tasks of a folder; return its records."""
    lm_eval = shutil.which("lm_eval")
    assert lm_eval is not None
    command = [lm_eval, "run", *options, "--include_path", ".", "--tasks", tasks, "--log_samples"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder), "OPENAI_API_KEY": "none"}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | offline
    done = subprocess.run(
        [*command, "--output_path", "out"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for file in folder.glob("out/*/samples_*.jsonl") for line in file.read_text().splitlines()]


@pytest.mark.parametrize("flow", ["{Qwen}", "({Qwen}:0.6 | {Ds}:0.4)"])
def test_lm_eval_is_told_the_likelihoods_of_by_likelihood(flow: str, tmp_path: Path) -> None:
    needs_lm_eval()
    asked = load_questions("ceval", use_items=True, limit=6).questions
    letters = [
        {"question": question_text(one), "letters": list(one.choices), "gold": [*one.choices].index(one.reference)}
        for one in asked
    ]
    sums = load_questions("gsm8k", use_items=True, limit=6).questions
    words = [{"question": f"问题：{one.question}", "answer": one.reference} for one in sums]
    for name, lines in (("choices", letters), ("words", words)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(line) for line in lines), "utf-8")
        (tmp_path / f"{name}.yaml").write_text({"choices": CHOICES, "words": WORDS}[name])
    lab = ROOT / "src/flowinfer/zoos/lab"
    declared = "".join(f'model {name} = "{lab}/{name.lower()}" {{ chat="off" }}\n' for name in ("Qwen", "Ds"))
    text = 'defaults { prompts="none", context=canonical }\n' + flow.replace("{", "").replace("}", "")
    used = [line for line in declared.splitlines(keepends=True) if line.split()[1] in text]
    (tmp_path / "one.flow").write_text("".join(used) + text)
    process = Process(str(tmp_path / "one.flow"))
    address = f"model=one,base_url={process.address}/v1/completions,tokenizer={lab}/qwen,tokenized_requests=False"
    found = evaluated(tmp_path, "choices,words", "--model", "local-completions", "--model_args", address)
    process.signal(15)
    assert process.ended() == 0 and len(found) == 12
    with load(tmp_path / "one.flow") as own:
        for record in found:
            arguments = list(record["arguments"].values())
            told = own.likelihood(arguments[0]["arg_0"], [one["arg_1"] for one in arguments])
            said = [float(one[0][0]) for one in record["resps"]]
            assert said == pytest.approx(list(told.values()), abs=1e-3)


def needs_lm_eval() -> None:
    if shutil.which("lm_eval") is None:
        pytest.skip("lm_eval is not installed: pip install 'lm-eval[api]' transformers")


def test_lm_eval_is_given_the_texts_of_exec(tmp_path: Path) -> None:
    """Items of gsm8k's form, through a flow of two stages."""
    needs_lm_eval()
    items = load_questions("gsm8k", use_items=True, limit=6).questions
    lines = [json.dumps({"question": question_text(item), "answer": item.reference}) for item in items]
    (tmp_path / "items.jsonl").write_text("\n".join(lines), "utf-8")
    (tmp_path / "items.yaml").write_text(TASK)
    (tmp_path / "one.flow").write_text('defaults { max_tokens=64, prompts="plain" }\nYi -> (Qwen | Ds)')
    asked = [json.dumps({"prompt": question_text(item)}) for item in items]
    (tmp_path / "asked.jsonl").write_text("\n".join(asked), "utf-8")
    told = flowinfer("exec", "one.flow", "--input", "asked.jsonl", "--zoo", "lab", cwd=tmp_path)
    answers = [json.loads(line)["text"] for line in told.stdout.splitlines()]
    here = {question_text(item): text for item, text in zip(items, answers, strict=True)}
    process = Process(str(tmp_path / "one.flow"))
    address = f"model=one,base_url={process.address}/v1/chat/completions,num_concurrent=4"
    options = ["--model", "local-chat-completions", "--model_args", address, "--apply_chat_template"]
    there = evaluated(tmp_path, "items", *options)
    process.signal(15)
    assert process.ended() == 0
    assert {one["doc"]["question"]: one["resps"][0][0] for one in there} == here


def test_llm_is_served(server: Process, tmp_path: Path) -> None:
    needs("llm")
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: s2p\n  model_name: s2p\n  api_base: {server.address}/v1\n"
        f"- model_id: s2q\n  model_name: s2q\n  api_base: {server.address}/v1\n"
    )

    def llm(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "ignore", "-m", "llm", *arguments, ASK[0]["content"]]
        environment = os.environ | {"LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    whole = llm("-m", "s2p", "--no-stream", "-o", "max_tokens", "8")
    assert whole.returncode == 0, whole.stderr
    assert llm("-m", "s2p", "-o", "max_tokens", "8").stdout == whole.stdout
    assert "=" not in llm("-m", "s2p", "-o", "stop", "=").stdout
    failed = llm("-m", "s2q")
    assert failed.returncode != 0
    assert "the model 's2q' does not exist; did you mean 's2p'?" in failed.stderr
