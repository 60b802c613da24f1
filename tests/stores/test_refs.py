"""References to models that other programs keep: which file they mean, and what is said where there is none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flowinfer.errors import LoadError
from flowinfer.stores.refs import fetch, gguf_files, locate
from flowinfer.stores.stored import NotHere
from tests.ggufs import hub, ollama, split, write


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    return tmp_path / "ollama"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_name_of_ollamas_means_the_file_of_its_manifest(store: Path) -> None:
    blob = ollama(store, template="{{ .Prompt }}", system="Be brief.", params='{"stop": ["<end>"]}')
    for ref in ("ollama:tiny", "ollama:tiny:latest", "ollama:library/tiny", "ollama:registry.ollama.ai/library/tiny"):
        found = locate(ref)
        assert found.path == blob and found.template == "{{ .Prompt }}"
        assert (found.system, found.stops) == ("Be brief.", ("<end>",))
    assert locate("ollama:tiny").path == blob
    other = ollama(store, "me/mine", "q8")
    assert locate("ollama:me/mine:q8").path == other


@pytest.mark.parametrize(
    ("params", "stops"), [('{"stop": null}', ()), ('{"stop": 5}', ()), ('{"stop": "x"}', ("x",)), ("{}", ())]
)
def test_ends_that_a_store_does_not_list_are_none(params: str, stops: tuple[str, ...], store: Path) -> None:
    ollama(store, params=params)
    assert locate("ollama:tiny").stops == stops


def test_a_name_that_ollama_does_not_hold_is_told_with_those_that_it_holds(store: Path) -> None:
    ollama(store)
    ollama(store, "me/mine", "q8")
    with pytest.raises(NotHere) as caught:
        locate("ollama:qwen3:4b")
    assert caught.value.message == f"'ollama:qwen3:4b' is not in {store}: there are tiny:latest, me/mine:q8"
    assert caught.value.help == "ollama pull qwen3:4b"


def test_without_a_store_of_ollamas_it_is_said_where_one_was_looked_for(store: Path) -> None:
    with pytest.raises(NotHere) as caught:
        locate("ollama:qwen3")
    assert caught.value.message == f"'ollama:qwen3': no store of Ollama's at {store}"
    assert caught.value.help == "OLLAMA_MODELS=FOLDER names it where it is elsewhere"


def test_a_store_that_another_user_keeps_to_himself_is_told(store: Path) -> None:
    ollama(store)
    (store / "manifests").chmod(0)
    is_root = os.geteuid() == 0
    try:
        if is_root:
            os.seteuid(65534)
        with pytest.raises(LoadError) as caught:
            locate("ollama:tiny")
    finally:
        if is_root:
            os.seteuid(0)
        (store / "manifests").chmod(0o755)
    assert caught.value.message == f"'ollama:tiny': {store} is another user's, and cannot be read"


@pytest.mark.parametrize("name", ["", "..", "../../etc/passwd", "a/b/c/d", "x:", "/etc/passwd", "a b"])
def test_no_name_leads_out_of_the_store(name: str, store: Path) -> None:
    ollama(store)
    with pytest.raises(LoadError, match="names no model"):
        locate(f"ollama:{name}")


MANIFESTS = {
    "not JSON": ("{", "is no JSON"),
    "a list": ("[]", "is no JSON object"),
    "nothing": ("{}", "has no one file of weights"),
    "strange layers": ('{"layers": [1, {"mediaType": 2}, {}]}', "has no one file of weights"),
    "a path for a digest": (
        '{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:../../x"}]}',
        "has no one file of weights",
    ),
    "parts": (
        f'{{"layers": [{{"mediaType": "application/vnd.ollama.image.tensor", "digest": "sha256:{"0" * 64}"}}]}}',
        "is kept in parts of another format",
    ),
    "weights that are gone": (
        f'{{"layers": [{{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:{"0" * 64}"}}]}}',
        "is missing; its manifest names it",
    ),
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_manifest_that_is_damaged_is_told(kind: str, store: Path) -> None:
    body, told = MANIFESTS[kind]
    ollama(store)
    (store / "manifests/registry.ollama.ai/library/tiny/latest").write_text(body, encoding="utf-8")
    with pytest.raises(LoadError) as caught:
        locate("ollama:tiny")
    assert told in caught.value.message and caught.value.help


def test_an_adapter_is_not_left_out_in_silence(store: Path) -> None:
    ollama(store, adapter="x")
    with pytest.raises(LoadError, match="has an adapter, which would not be applied"):
        locate("ollama:tiny")


def test_a_file_of_the_hub_is_found_in_its_cache(cache: Path) -> None:
    path = hub(cache)
    assert locate("hf:some/repo-GGUF/m.Q4_0.gguf").path == path
    assert locate("hf:some/repo-GGUF").path == path  # the only one there
    parts = split(path.with_name("big.gguf"))
    assert locate("hf:some/repo-GGUF/big-00001-of-00002.gguf").path == parts[0]


def test_what_the_hub_cache_lacks_is_told_and_not_downloaded(cache: Path) -> None:
    hub(cache)
    for find in (locate, fetch):  # HF_HUB_OFFLINE is set
        with pytest.raises(NotHere) as caught:
            find("hf:some/repo-GGUF/m.Q8_0.gguf")
        assert "is in the hub cache without 'm.Q8_0.gguf': there are m.Q4_0.gguf" in caught.value.message
        assert caught.value.help == "hf download some/repo-GGUF m.Q8_0.gguf"
    with pytest.raises(NotHere, match=r"'other/repo' is not in the hub cache, .*hub cannot be reached: HF_HUB_OFFLINE"):
        fetch("hf:other/repo/m.gguf")


@pytest.mark.parametrize("ref", ["hf:", "hf:repo", "hf:a/b/../../c.gguf", "hf:a/b/weights.bin", "hf:/etc/x.gguf"])
def test_what_names_no_file_of_the_hub_is_refused(ref: str, cache: Path) -> None:
    with pytest.raises(LoadError, match="names no file of the hub"):
        locate(ref)


def test_a_folder_means_its_only_model(tmp_path: Path) -> None:
    parts = split(tmp_path / "models" / "big.gguf")
    write(tmp_path / "models" / "mmproj-big.gguf")  # reads pictures
    assert locate(str(tmp_path / "models")).path == parts[0] and gguf_files(tmp_path) == [parts[0]]
    write(tmp_path / "models" / "small.gguf")
    with pytest.raises(LoadError, match=r"several models: there are big-00001-of-00002.gguf, small.gguf"):
        locate(str(tmp_path / "models"))


def test_a_folder_without_models_and_a_path_to_nothing_are_told(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"no \.gguf file in"):
        locate(str(tmp_path))
    with pytest.raises(NotHere, match="nothing at"):
        locate(str(tmp_path / "m.gguf"))
