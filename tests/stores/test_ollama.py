"""Ollama's store: spellings of a name, and its two layouts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from flowinfer.errors import LoadError
from flowinfer.stores.listing import local_models
from flowinfer.stores.refs import locate
from flowinfer.stores.stored import NotHere
from tests.ggufs import ollama

_LIST = "application/vnd.ollama.manifest.list.v2+json"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    return tmp_path / "ollama"


def kept(store: Path, text: str) -> str:
    """Keep a text as a blob; return its digest."""
    digest = f"sha256:{sha256(text.encode()).hexdigest()}"
    (store / "blobs" / digest.replace(":", "-")).write_text(text, encoding="utf-8")
    return digest


def link(store: Path, manifest: Mapping[str, Any] | str, name: str = "tiny", tag: str = "latest") -> Path:
    """Give a manifest a name in the newer layout, as a link to its blob."""
    digest = kept(store, manifest if isinstance(manifest, str) else json.dumps(manifest))
    path = store / "manifests-v2/ollama.com/library" / name / tag
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(Path("../../../../blobs") / digest.replace(":", "-"))
    return path


def moved(store: Path, name: str = "tiny") -> tuple[Path, Mapping[str, Any]]:
    """Put a model into a store and take its name away; return its weights' file and its manifest."""
    blob = ollama(store, name)
    manifest = store / "manifests/registry.ollama.ai/library" / name / "latest"
    found = json.loads(manifest.read_text("utf-8"))
    manifest.unlink()
    return blob, found


@pytest.mark.parametrize(
    ("kept_as", "tag", "asked"),
    [
        ("qwen", "latest", ["QWEN", "Qwen:LATEST", "library/QWEN", "Library/qwen", "Registry.Ollama.AI/library/Qwen"]),
        ("Qwen3", "4B", ["qwen3:4b", "QWEN3:4B", "ollama.com/library/qwen3:4b", "https://ollama.com/library/qwen3:4b"]),
        ("me/Mine", "q8_0", ["ME/mine:Q8_0", "registry.ollama.ai/Me/mine:q8_0"]),
    ],
)
def test_a_name_is_the_same_in_upper_and_lower_case(kept_as: str, tag: str, asked: list[str], store: Path) -> None:
    blob = ollama(store, kept_as, tag)
    assert [locate(f"ollama:{name}").path for name in asked] == [blob] * len(asked)
    with pytest.raises(NotHere):
        locate(f"ollama:{asked[0]}x")


def test_names_of_other_registries_are_the_same_in_upper_and_lower_case(store: Path) -> None:
    blob = ollama(store)
    library = store / "manifests/registry.ollama.ai/library/tiny"
    hub = store / "manifests/hf.co/Some/Repo-GGUF"
    hub.parent.mkdir(parents=True)
    library.rename(hub)
    (hub / "latest").rename(hub / "Q4_K_M")
    for name in ("hf.co/Some/Repo-GGUF:Q4_K_M", "HF.co/some/repo-gguf:q4_k_m", "https://hf.co/some/Repo-GGUF:q4_K_M"):
        assert locate(f"ollama:{name}").path == blob
    with pytest.raises(NotHere, match=r"there are hf\.co/Some/Repo-GGUF:Q4_K_M"):
        locate("ollama:some/repo-gguf:q4_k_m")  # of Ollama's own registry


def test_of_two_names_that_differ_in_case_only_the_one_as_it_is_spelled_is_meant(store: Path) -> None:
    small, large = ollama(store, "tiny"), ollama(store, "Tiny")
    assert (locate("ollama:tiny").path, locate("ollama:Tiny").path) == (small, large) and small != large


def test_a_name_in_the_newer_layout_is_found_and_listed(store: Path) -> None:
    blob, manifest = moved(store)
    link(store, manifest)
    for name in ("tiny", "TINY:latest", "registry.ollama.ai/library/tiny", "ollama.com/library/tiny"):
        assert locate(f"ollama:{name}").path == blob
    assert [model.ref for model in local_models({"OLLAMA_MODELS": str(store)})] == ["ollama:tiny"]
    with pytest.raises(NotHere, match="there are tiny:latest"):
        locate("ollama:other")


def test_what_both_layouts_have_is_meant_as_it_stands_in_the_newer_one(store: Path) -> None:
    old = ollama(store)
    new, manifest = moved(store, "other")
    named = link(store, manifest)
    assert locate("ollama:tiny").path == new
    (store / "blobs" / named.readlink().name).unlink()  # as a program that does not know the newer layout leaves it
    assert locate("ollama:tiny").path == old


def test_of_a_list_of_manifests_that_of_gguf_weights_is_taken(store: Path) -> None:
    blob, manifest = moved(store)
    other = {"runner": "mlx", "format": "safetensors", "digest": "sha256:" + "0" * 64}
    by_digest = {"runner": "llamacpp", "format": "gguf", "digest": kept(store, json.dumps(manifest))}
    for one in (by_digest, {"runner": "Ollama", **manifest}):
        link(store, {"schemaVersion": 2, "mediaType": _LIST, "manifests": [other, one]})
        assert locate("ollama:tiny").path == blob
    link(store, {"schemaVersion": 2, "mediaType": _LIST, "manifests": [other]})
    with pytest.raises(LoadError, match="'ollama:tiny' is kept in parts of another format"):
        locate("ollama:tiny")


@pytest.mark.parametrize(
    "listed", [None, 5, [], [5], [{"runner": "ollama"}], [{"runner": "ollama", "digest": "sha256:../x"}]]
)
def test_a_damaged_list_of_manifests_is_told(listed: object, store: Path) -> None:
    moved(store)
    link(store, {"mediaType": _LIST, "manifests": listed})
    with pytest.raises(LoadError) as caught:
        locate("ollama:tiny")
    assert caught.value.help == "ollama pull tiny"
