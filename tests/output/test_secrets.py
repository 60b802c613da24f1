"""Keys and passwords: whatever a failing run writes, they are not in it."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import pytest

from flowinfer.errors import FlowError, RunError
from flowinfer.language.diagnostics import full
from flowinfer.output import secrets
from flowinfer.output.secrets import learn, learn_address, public_address, redacted, redacted_data, shown
from tests.command import running

KEY = 'sk-TEST"\\key/0123456789'
PASSWORD = "p@ss:w0rd/4711"
FLOW = """defaults {{ max_tokens=4 }}
model Far = "far" {{ backend=openai, base_url="{url}", api_key_env=FAR_KEY }}
model User = "user" {{ backend=openai, base_url="{user_url}" }}
Far -> User
"""


class Echo(BaseHTTPRequestHandler):
    """Answer with everything that was sent, as refusal or as answer."""

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer()

    def answer(self) -> None:
        said = f"{self.path} {self.headers.get('Authorization')}"
        user = self.headers.get("Authorization", "").removeprefix("Basic ")
        if user != self.headers.get("Authorization", ""):
            said += " " + base64.b64decode(user).decode()
        status = 200 if "Bearer" in said else 401
        data = json.dumps({"choices": [{"message": {"content": said}}], "error": {"message": said}}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


@pytest.fixture
def echo() -> Iterator[str]:
    with running(ThreadingHTTPServer(("127.0.0.1", 0), Echo)) as server:
        yield f"127.0.0.1:{server.server_address[1]}"


@pytest.fixture
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_known", set())
    monkeypatch.setattr(secrets, "_pattern", [])


def forms(secret: str) -> set[str]:
    code = base64.b64encode(secret.encode()).decode().rstrip("=")
    return {secret, quote(secret, safe=""), quote(secret), code, json.dumps(secret)[1:-1], repr(secret)[1:-1]}


def flowinfer(*arguments: str, cwd: Path, environment: Mapping[str, str]) -> str:
    command = [sys.executable, "-m", "flowinfer", *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["", "\r", "\x07x"])
def test_nothing_that_a_failing_run_writes_holds_a_key_or_password(tmp_path: Path, echo: str, ending: str) -> None:
    """Messages, plan, run folder, sweep folder, cache and report, for an endpoint that says all it was sent."""
    user_url = f"http://me:{quote(PASSWORD, safe='')}@{echo}/v1?api_key=query-0123456789"
    flow = FLOW.format(url=f"http://{echo}/v1", user_url=user_url)
    (tmp_path / "far.flow").write_text(flow, encoding="utf-8")
    (tmp_path / "line.flow").write_text(flow.replace("base_url=", "base_ur="), encoding="utf-8")
    (tmp_path / "zoo.toml").write_text(f'[models.Far]\nref="far"\nbackend="openai"\nbase_url="{user_url}"\n', "utf-8")
    (tmp_path / "items.jsonl").write_text('{"question": "1 + 1?", "answer": "2", "kind": "gsm8k"}\n', encoding="utf-8")
    environment = os.environ | {"FAR_KEY": KEY + ending, "FLOWINFER_CACHE": str(tmp_path / "cache"), "COLUMNS": "300"}
    environment |= {"HF_TOKEN": "hf_abcdefghijklmnopqrstu"}
    run = ("exec", "far.flow", "--dataset", "items.jsonl")
    sweep = ("sweep", "--flows", "far.flow", "--datasets", "items.jsonl")
    commands = [run, ("exec", "far.flow", "--prompt", "hello", "--trace")]
    if not ending:
        commands += [("check", "line.flow", "--json"), ("check", "line.flow"), ("plan", "far.flow", "--json"), sweep]
        commands += [
            ("show", "latest", "1", "--prompts"),
            ("models", "--zoo", "zoo.toml"),
            (*run, "--json", "--resume"),
        ]
        commands += [("report", "latest", "-o", "report", "--format", "html,json")]
    told = {" ".join(one): flowinfer(*one, cwd=tmp_path, environment=environment) for one in commands}
    given = {"far.flow", "line.flow", "zoo.toml"}
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name not in given]
    told |= {str(path): path.read_bytes().decode("utf-8", errors="replace") for path in files}
    assert ending == "\x07x" or any(path.name == "samples.jsonl" for path in files)
    wanted = {*forms(KEY), *forms(PASSWORD), *forms(f"me:{PASSWORD}"), "query-0123456789", "hf_abcdefghijklmnopqrstu"}
    leaks = [(where, secret) for where, text in told.items() for secret in wanted if secret in text]
    assert not leaks
    assert ending or ("***" in told[" ".join(run)] and (tmp_path / "sweeps").is_dir())


def test_a_traceback_of_our_own_shows_no_key(tmp_path: Path) -> None:
    code = (
        "import sys, types, flowinfer.cli as cli\n"
        "from flowinfer.output import secrets\n"
        "def run():\n    secrets.learn('my-own-key-42')\n    raise KeyError('my-own-key-42 \\x1b[31m')\n"
        "cli.run = run\n"
        "from flowinfer.__main__ import main\nmain()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "KeyError" in done.stderr and "my-own-key" not in done.stderr


@pytest.mark.usefixtures("nothing_known")
def test_what_is_known_is_hidden_in_every_form() -> None:
    learn(KEY)
    learn_address("http://me:p%40ss%3Aw0rd@host")
    for secret in (KEY, "p@ss:w0rd"):
        for form in forms(secret):
            assert redacted(f"a {form} b") == "a *** b", form
    assert redacted("Basic " + base64.b64encode(b"me:p@ss:w0rd").decode()) == "Basic ***"


@pytest.mark.usefixtures("nothing_known")
@pytest.mark.parametrize("word", ["EMPTY", "none", "ollama", "lm-studio", ""])
def test_what_stands_for_no_key_hides_nothing(word: str) -> None:
    learn(word)
    assert redacted(f"an answer with {word} in it") == f"an answer with {word} in it"


@pytest.mark.usefixtures("nothing_known")
def test_numbers_are_no_secrets() -> None:
    learn("123456")
    assert redacted_data({"n": 123456, "123456": ["123456", 0.123456]}) == {"n": 123456, "***": ["***", 0.123456]}


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("at http://me:pw@host/v1", "at http://***@host/v1"),
        ("http://host/v1?api_key=abc&n=1", "http://host/v1?api_key=***&n=1"),
        ("Authorization: Bearer abcdefgh", "Authorization: Bearer ***"),
        ('[api_key="abc def"]', '[api_key="***"]'),
        ('[api_key_env="MY_KEY"]', '[api_key_env="MY_KEY"]'),
        ('[api_key_env="hf_0123"]', '[api_key_env="***"]'),
        ("key sk-proj-0123456789abcdef", "key ***"),
        ("hf-internal-testing/tiny-random-llama", "hf-internal-testing/tiny-random-llama"),
        ("http://host/v1?max_tokens=5", "http://host/v1?max_tokens=5"),
    ],
)
def test_messages_hide_what_looks_like_a_secret(text: str, safe: str) -> None:
    assert shown(text) == safe
    assert RunError(text, help=text).message == safe


def test_the_caret_stays_in_its_place_below_a_hidden_secret() -> None:
    from flowinfer.language.check import check

    with pytest.raises(FlowError) as caught:
        check('model Far = "far" {backend=openai, base_url="http://me:pw@host", api_key="sk-1"}\nFar')
    lines = full(caught.value.diagnostics[0]).split("\n")
    assert lines[3] == '1 | model Far = "far" {backend=openai, base_url="http://*****@host", api_key="****"}'
    assert lines[3][lines[4].index("^") :].startswith("api_key")


def test_an_address_without_secrets_stays_as_it_is() -> None:
    assert public_address("http://host:8000/v1?api-version=2") == "http://host:8000/v1?api-version=2"


def test_an_address_whose_secrets_were_hidden_before_is_shown_as_it_is() -> None:
    learn_address("http://***@host/v1")
    assert redacted("http://***@host/v1") == "http://***@host/v1"
