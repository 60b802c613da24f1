"""Options that do nothing: told for every backend, option and place, from what backends declare."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from flowinfer import registry
from flowinfer.backends.base import Turn
from flowinfer.backends.wording import Wording
from flowinfer.errors import FlowError, UsageError
from flowinfer.language.check import check
from flowinfer.language.options import TABLES
from flowinfer.registry import backends
from flowinfer.spec import Decoding, ModelSpec, Parallel
from tests.zoos import NAMES

MODEL_OPTIONS = {
    "revision": '"main"',
    "dtype": "float16",
    "device": '"cuda:0"',
    "think": "keep",
    "chat": "off",
    "system": '"Be brief."',
    "quantization": '"bnb-8bit"',
    "trust_remote_code": "true",
    "gpu_layers": "4",
    "kv_type": "float16",
    "context_length": "512",
    "threads": "2",
    "mmap": "false",
    "base_url": '"http://localhost:1/v1"',
    "api_key_env": '"KEY"',
    "parallel": "3",
    "input_cost": "1",
    "output_cost": "1.5",
    "cached_cost": "0.5",
}
STEP_OPTIONS = {
    "max_tokens": "7",
    "temperature": "0.5",
    "top_p": "0.9, temperature=1",
    "seed": "7",
    "stop": '"x"',
    "stop_tokens": '"<end>"',
    "context": "canonical",
    "eos": "max",
    "utf8": "off",
    "strict": "true",
    "near_tie_eps": "0.1",
    "prefill": '"So:"',
    "speculate": "ngram",
}
GROUP_OPTIONS = {"fuse": "vote", "topk": "dense", "thinking": "free", "lstrip_first": "true"}
REFS = {"gguf": "hf:org/m/m.gguf"}
NEEDED = {"openai": 'base_url="http://localhost:1/v1"'}


def texts() -> None:
    """Stand for a plug-in that loads text models and says no more."""


def bare() -> None:
    """Stand for a plug-in that loads token models and says nothing."""


def picky() -> None:
    """Stand for a plug-in that says what it heeds."""


texts.text_only = True  # type: ignore[attr-defined]  # as plug-ins declare it
picky.text_only = True  # type: ignore[attr-defined]
picky.options = ("max_tokens", "prefill", "device")  # type: ignore[attr-defined]
ALWAYS = {"think"}
TEXTS = {"max_tokens", "temperature", "top_p", "seed", "stop"}
REMOTE = {"base_url", "api_key_env", "parallel", "input_cost", "output_cost", "cached_cost"}
FILES = {"gpu_layers", "kv_type", "context_length", "threads", "mmap"}
HEEDED = {
    "hf": {*MODEL_OPTIONS, *STEP_OPTIONS} - REMOTE - FILES,
    "gguf": ALWAYS | FILES | {*STEP_OPTIONS} | {"revision", "device", "chat", "system"},
    "openai": ALWAYS | TEXTS | REMOTE | {"system"},
    "bare": {*MODEL_OPTIONS, *STEP_OPTIONS},
    "texts": {*MODEL_OPTIONS} | TEXTS,
    "picky": ALWAYS | {"max_tokens", "prefill", "device"},
}
PAIRS = [(backend, option) for backend in HEEDED for option in (*MODEL_OPTIONS, *STEP_OPTIONS)]


@pytest.fixture(autouse=True)
def plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    points = [EntryPoint(name, f"{__name__}:{name}", "flowinfer.backends") for name in ("texts", "bare", "picky")]
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == "flowinfer.backends" else [])
    backends.cache_clear()
    yield
    backends.cache_clear()


def said(text: str) -> list[tuple[str, str]]:
    """Return code and option of everything that is said of a flow."""
    try:
        found = check(text, zoo=NAMES).warnings
    except FlowError as error:
        found = error.diagnostics
    return [(d.code, d.message.split("'")[1]) for d in found]


@pytest.mark.parametrize(("backend", "option"), PAIRS)
def test_every_backend_refuses_the_options_that_it_does_not_heed(backend: str, option: str) -> None:
    needed = [f"backend={backend}", *([NEEDED[backend]] if backend in NEEDED and option != "base_url" else [])]
    in_model = [f"{option}={MODEL_OPTIONS[option]}"] if option in MODEL_OPTIONS else []
    in_step = f"[{option}={STEP_OPTIONS[option]}]" if option in STEP_OPTIONS else ""
    ref = REFS.get(backend, "org/m")
    found = said(f'model M = "{ref}" {{ {", ".join([*needed, *in_model])} }}\nM{in_step}')
    others = {"temperature"} if option == "top_p" and backend == "picky" else set()
    assert [one for one in found if one[1] not in others] == ([] if option in HEEDED[backend] else [("E0208", option)])


def test_the_matrix_knows_every_option() -> None:
    assert {*MODEL_OPTIONS, *TABLES, "name", "ref", "backend"} == {*ModelSpec.model_fields}
    assert {*STEP_OPTIONS, *GROUP_OPTIONS, "fuse_options"} == {*Decoding.model_fields}


@pytest.mark.parametrize("option", [*STEP_OPTIONS, *GROUP_OPTIONS])
def test_the_endpoint_is_asked_with_just_the_options_that_its_backend_declares(option: str) -> None:
    spec = ModelSpec(name="M", ref="m", backend="openai", base_url="http://localhost:1/v1")
    wording = Wording(spec)
    plain = Decoding()
    values = {"max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "stop": ("x",), "stop_tokens": ("x",)}
    other = plain.model_copy(update={option: values.get(option, "other")})
    turns = [Turn("user", "p")]
    seed = 2 if option == "seed" else 1
    is_sent = wording.body(turns, plain, 1, streams=False) != wording.body(turns, other, seed, streams=False)
    assert is_sent == backends()["openai"].heeds(option)


ENDPOINT = 'model T = "t" { backend=openai, base_url="http://localhost:1/v1" }\n'
PLACES = [
    ("Qwen[topk=dense]", [("E0205", "topk")]),
    ("Qwen[thinking=free]", [("E0205", "thinking")]),
    ("Qwen -> Ds[lstrip_first=true]", [("E0205", "lstrip_first")]),
    ("Qwen[speculate=upstream]", [("E0206", "speculate")]),
    ("Qwen -> Ds[speculate=upstream]", []),
    ("Qwen -> Ds[speculate=alternate]", [("E0206", "speculate")]),
    ("(Qwen | Ds)[speculate=alternate, topk=dense, thinking=free, lstrip_first=true]", []),
    ("(Qwen | Ds)[top_p=0.9]", [("W0200", "top_p")]),
    ("Qwen[top_p=0.9, temperature=1]", []),
    ('(Qwen | Ds)[thinking=free, prefill="x"]', [("W0200", "thinking")]),
    ("Qwen[topk=auto, strict=false, seed=3]", []),
    ("defaults { topk=dense, thinking=free }\nQwen -> (Ds | Yi)", []),
    ("defaults { topk=dense }\nQwen -> Ds", [("W0200", "topk")]),
    (ENDPOINT + "defaults { topk=dense }\n(Qwen | Ds) -> T", []),
    (ENDPOINT + "T[topk=dense]", [("E0208", "topk")]),
    (ENDPOINT + 'defaults { prefill="x" }\nQwen -> T', [("W0200", "prefill")]),
    (ENDPOINT + 'defaults { prefill="x" }\nQwen -> T[prefill=""]', []),
    (ENDPOINT + '(Qwen & T)[prefill="x"]', [("W0200", "prefill")]),
    (ENDPOINT + '(T & T)[prefill="x"]', [("E0208", "prefill")]),
    ("defaults { fuse=vote }\nQwen", [("W0200", "fuse")]),
    ("defaults { fuse=vote }\nQwen -> (Ds | (Qwen | Yi))", []),
    ("defaults { tau=0.3 }\n(Qwen | Ds)", [("W0200", "tau")]),
    ("defaults { tau=0.3, fuse=gated }\n(Qwen | Ds)", []),
    ("defaults { top_p=0.9 }\nQwen -> Ds[temperature=1]", []),
    ('model Q = "org/q" { quantization="bnb-4bit", device=cpu }\nQ', [("E0207", "bnb-4bit")]),
    ('model Q = "org/q" { chat=off, system="x" }\nQ', [("E0207", "system")]),
]


@pytest.mark.parametrize(("text", "expected"), PLACES, ids=[text for text, _ in PLACES])
def test_an_option_that_its_place_has_no_use_for_is_told(text: str, expected: list[tuple[str, str]]) -> None:
    assert said(text) == expected


def test_a_local_folder_has_no_revisions(tmp_path: Path) -> None:
    assert said(f'model Q = "{tmp_path}" {{ revision="main" }}\nQ')[0][0] == "E0207"


def test_what_set_says_in_vain_is_a_warning_at_the_flow() -> None:
    (found,) = check("# one\nQwen", zoo=NAMES, overrides={"topk": "dense"}).warnings
    assert (found.code, found.span.line) == ("W0200", 2) and "--set" in found.message


def test_a_plug_in_that_heeds_an_unknown_option_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picky, "options", ("max_tokns",))
    backends.cache_clear()
    with pytest.raises(UsageError, match="'picky' of another package heeds an option that there is not: 'max_tokns'"):
        backends()


@pytest.mark.parametrize(("text", "value"), [("auto", "auto"), ("true", True), ("false", False)])
def test_an_option_may_be_a_word_or_a_truth_value(text: str, value: object) -> None:
    for flow, sets in (("(Qwen | Ds)", {"lstrip_first": text}), (f"(Qwen | Ds)[lstrip_first={text}]", {})):
        root = check(flow, zoo=NAMES, overrides=sets).root
        assert isinstance(root, Parallel) and root.decoding.lstrip_first is value
    assert said("(Qwen | Ds)[lstrip_first=1]") == [("E0206", "lstrip_first")]
