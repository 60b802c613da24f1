"""GGUF files of the hub: downloaded where they are missing here, and what is told where they cannot be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import running
from tests.ggufs import split, write
from tests.stores.fake_hub import COMMIT, FakeHub

REFUSED = {
    "hf:some/repo/no.gguf": ("'some/repo' has no file 'no.gguf'", "see its page on the hub, some/repo"),
    "hf:half/repo/big-00001-of-00002.gguf": (
        "'half/repo' has no file 'big-00002-of-00002.gguf'",
        "see its page on the hub, half/repo",
    ),
    "hf:none/repo/m.gguf": (
        "the hub has no 'none/repo', or not for everybody",
        "check its name; `hf auth login` if it is closed",
    ),
    "hf:closed/repo/m.gguf": (
        "'closed/repo' is for those only whom its owner lets in",
        "ask there, then `hf auth login`: see its page on the hub, closed/repo",
    ),
    "hf:some/repo/m.gguf@v9": ("'some/repo' has no revision 'v9'", "see its page on the hub, some/repo"),
}
FETCHED = ["hf:some/repo/sub/m.gguf", "hf:some/repo/big-00002-of-00002.gguf", "hf:some/repo/sub/m.gguf"]
UNNAMED = "hf:other/repo"
_FETCH = """
import json, sys
from flowinfer.errors import LoadError
from flowinfer.stores.refs import fetch
for ref in sys.argv[1:]:
    name, _, revision = ref.partition("@")
    try:
        told = {"path": str(fetch(name, revision or None).path)}
    except LoadError as error:
        told = {"message": error.message, "help": error.help}
    print(json.dumps({"ref": ref, **told}), flush=True)
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def told(cache: Path) -> list[dict[str, str]]:
    """Return what came of each reference, asked in turn in one process: its client reads the address as it begins."""
    model = write(cache / "m.gguf").read_bytes()
    parts = {part.name: part.read_bytes() for part in split(cache / "big.gguf")}
    files = {f"some/repo/{name}": body for name, body in {"sub/m.gguf": model, **parts}.items()}
    files["half/repo/big-00001-of-00002.gguf"] = parts["big-00001-of-00002.gguf"]
    with running(FakeHub({**files, "closed/repo/m.gguf": None})) as hub:
        environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
        environment |= {"HF_ENDPOINT": hub.address, "HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1"}
        command = [sys.executable, "-c", _FETCH, *FETCHED, UNNAMED, *REFUSED]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        downloads = [path for path in hub.asked if path.startswith("GET") and "/resolve/" in path]
        assert len(downloads) == len(set(downloads)), "nothing is downloaded twice"
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_files_of_the_hub_are_downloaded_with_all_their_parts(told: list[dict[str, str]], cache: Path) -> None:
    snapshot = cache / "models--some--repo" / "snapshots" / COMMIT
    wanted = [snapshot / "sub/m.gguf", snapshot / "big-00002-of-00002.gguf", snapshot / "sub/m.gguf"]
    assert [one.get("path") for one in told[:3]] == [str(path) for path in wanted], told
    assert (snapshot / "big-00001-of-00002.gguf").is_file()


def test_a_repository_that_is_not_here_needs_the_name_of_a_file(told: list[dict[str, str]]) -> None:
    assert told[3]["message"].startswith("'other/repo' is not in the hub cache")
    assert told[3]["help"] == "name the file that is meant: hf:other/repo/FILE.gguf"


@pytest.mark.parametrize("ref", REFUSED)
def test_what_the_hub_refuses_is_told_with_its_cure(ref: str, told: list[dict[str, str]]) -> None:
    problem, cure = REFUSED[ref]
    found = next(one for one in told if one["ref"] == ref)
    assert found["message"].startswith(f"'{ref.partition('@')[0]}' cannot be downloaded: {problem}")
    assert found["help"] == cure and "\n" not in found["message"]
