"""Model folders with damaged files: an answer or a refusal in one line, whatever they hold."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import flowinfer
from flowinfer.errors import FlowInferError
from tests.backends import tiny
from tests.fusion import toys
from tests.fuzz.rounds import rounds

ODD: tuple[Any, ...] = (
    *(None, True, 0, -1, 1, 7, 10**9, 10**12, 10**400, 0.5, -1.5, 1e308, float("nan"), float("inf")),
    *("", "x", "\ud800", "{{ x", "{% for x in y %}", "../../x", [], [1], {}, {"a": []}, [["a", -5.0]], "a" * 10_000),
)
"""What may stand in the place of any value of a JSON file."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    tokenizer = tiny.wrapped(toys.byte_level(), eos_token="<|im_end|>", chat_template=tiny.CHAT)
    tiny.network("qwen2", toys.byte_level().get_vocab_size() + 3).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": 2}')
    return folder


def places(value: Any) -> list[tuple[Any, Any]]:
    """Return every (container, key) of a JSON document."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in ((value, key), *places(value[key]))]


def change_value(data: bytes, rng: random.Random) -> bytes:
    document = json.loads(data)
    container, key = rng.choice(places(document))
    if rng.random() < 0.3:
        del container[key]
    else:
        container[key] = rng.choice(ODD)
    return json.dumps(document).encode()


def change_header(data: bytes, rng: random.Random) -> bytes:
    end = 8 + int.from_bytes(data[:8], "little")
    header = change_value(data[8:end], rng)
    return len(header).to_bytes(8, "little") + header + data[end:]


def change_bytes(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 20))):
        changed[rng.randrange(min(len(changed), rng.choice((16, 1000, 10**9))))] = rng.randrange(256)
    return bytes(changed)


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def repeat(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start : start + rng.randrange(1, 50)] * rng.choice((2, 1000)) + data[start:]


def damage(path: Path, rng: random.Random) -> str:
    """Damage a file; return what was done to it."""
    kinds: list[Callable[[bytes, random.Random], bytes]] = [change_bytes, cut, repeat]
    if path.suffix == ".json":
        kinds += [change_value] * 9
    if path.suffix == ".safetensors":
        kinds += [change_header] * 3
    kind = rng.choice(kinds)
    path.write_bytes(kind(path.read_bytes(), rng))
    return f"{kind.__name__} of {path.name}"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what libraries say about damaged files is theirs
def test_a_damaged_folder_answers_or_is_refused_in_one_line(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWINFER_CACHE", str(tmp_path / "cache"))
    for seed, rng in rounds():
        folder = tmp_path / "damaged"
        shutil.copytree(sound, folder)
        files = rng.sample(sorted(folder.iterdir()), rng.choice((1, 1, 1, 2)))
        done = " and ".join(damage(path, rng) for path in files)
        flow = f'model A = "{folder}"\nA[max_tokens=3, prompt="{{question}}", device=cpu]'
        try:
            with flowinfer.parse(flow) as pipeline:
                pipeline.run("hello <|im_end|>")
        except FlowInferError as error:
            assert "\n" not in error.message, f"seed {seed}, {done}: {error.message}"
        except BaseException as error:
            raise AssertionError(f"seed {seed}, {done}: {type(error).__name__}: {str(error)[:200]}") from error
        shutil.rmtree(folder)
