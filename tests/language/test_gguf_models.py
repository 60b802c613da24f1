"""Models in GGUF files as flows and zoos name them: what is checked before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowinfer.errors import DataError, FlowError, MemoryShort, UsageError
from flowinfer.language.check import check
from flowinfer.language.joined import meant
from flowinfer.machine import Device, Machine
from flowinfer.planning.placement import place
from flowinfer.planning.plan import compile
from flowinfer.zoo import read_zoo
from tests.conftest import ROOT
from tests.ggufs import META, hub, ollama, split, write


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of models beside stores of Ollama's and the hub's."""
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    ollama(tmp_path / "ollama")
    hub(tmp_path / "hub")
    write(tmp_path / "m.gguf")
    split(tmp_path / "big.gguf")
    return tmp_path


def with_memory(size: int) -> Machine:
    """Return a machine without GPUs."""
    return Machine((Device("cpu", "", size, size),))


@pytest.mark.parametrize(
    "ref",
    ["m.gguf", "./m.gguf", "big-00001-of-00002.gguf", "ollama:tiny", "hf:some/repo-GGUF/m.Q4_0.gguf", "hf:x/y/z.gguf"],
)
def test_a_model_that_is_here_or_may_come_is_said_nothing_of(ref: str, folder: Path) -> None:
    assert check(f'model M = "{ref}" {{ backend=gguf }}\nM', base=folder).warnings == ()


@pytest.mark.parametrize(
    ("ref", "told", "cure"),
    [
        ("gone.gguf", "model 'M': nothing at '{folder}/gone.gguf'", "paths are relative to the file that names them"),
        ("some/repo", "model 'M': nothing at 'some/repo'", "hf:some/repo/FILE.gguf names a file of the hub"),
        (
            "ollama:qwen3",
            "model 'M': 'ollama:qwen3' is not in {folder}/ollama: there are tiny:latest",
            "ollama pull qwen3",
        ),
        ("ollama:", "model 'M': 'ollama:' names no model", "ollama:NAME[:TAG], as `ollama list` shows it"),
        ("hf:some", "model 'M': 'hf:some' names no file of the hub", "hf:OWNER/REPO/FILE.gguf"),
        ("cut.gguf", "model 'M': {folder}/cut.gguf is damaged: it ends 8 bytes too early", "download it again"),
    ],
)
def test_a_model_that_is_not_is_warned_of_at_its_declaration(ref: str, told: str, cure: str, folder: Path) -> None:
    (folder / "cut.gguf").write_bytes((folder / "m.gguf").read_bytes()[:-8])
    (warning,) = check(f'model M = "{ref}" {{ backend=gguf }}\nM', base=folder).warnings
    assert (warning.code, warning.message, warning.help) == ("W0101", told.format(folder=folder), cure)
    assert warning.span.column == 11


def test_a_template_that_only_ollama_has_is_told_before_anything_is_loaded(folder: Path) -> None:
    blob = ollama(folder / "ollama", "old", template="{{ .Prompt }}")
    write(blob, {key: said for key, said in META.items() if key != "tokenizer.chat_template"})
    (warning,) = check('model M = "ollama:old" { backend=gguf }\nM').warnings
    assert warning.message == "model 'M': the file has no chat template, only Ollama has one, in Go's language"
    assert not check('model M = "ollama:old" { backend=gguf, chat="off" }\nM').warnings


def test_an_option_of_a_model_that_is_set_is_told_where_it_belongs() -> None:
    with pytest.raises(UsageError, match="--set kv_type: the flow has no param or default option") as caught:
        check("Qwen", zoo="toy", overrides={"kv_type": "q8_0"})
    assert caught.value.help == """'kv_type' is an option of a model declaration: model M = "..." { kv_type=... }"""


def test_a_word_of_a_command_with_nothing_there_is_told_what_is_near(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"no file or folder '.*/mm.gguf'") as caught:
        meant(f"{folder}/mm.gguf")
    assert caught.value.help == f"did you mean '{folder}/m.gguf'?"


@pytest.mark.parametrize("ref", ["m.gguf", "ollama:tiny", "hf:some/repo-GGUF/m.Q4_0.gguf"])
def test_a_gguf_file_without_its_backend_is_refused_with_the_cure(ref: str, folder: Path) -> None:
    with pytest.raises(FlowError) as caught:
        check(f'model M = "{ref}"\nM', base=folder)
    (found,) = caught.value.diagnostics
    assert (found.code, found.help, found.span.column) == ("E0207", "write backend=gguf", 11)
    (folder / "zoo.toml").write_text(f'[models.M]\nref = "{ref}"\n')
    with pytest.raises(DataError, match="is a GGUF file, which backend 'hf' does not read"):
        read_zoo(folder / "zoo.toml")


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        ('device=["cuda:0", "cuda:1"]', "E0207", "backend 'gguf' keeps a model on one device"),
        ('revision="v2"', "E0207", "a local folder has no revision 'v2'"),
        (
            'system="Be brief.", chat=off',
            "E0207",
            "option 'system' needs the chat template that 'chat=off' switches off",
        ),
        ("dtype=bfloat16", "E0208", "option 'dtype' does nothing: backend 'gguf' takes no notice of it"),
        ("kv_type=q4", "E0206", "option 'kv_type' cannot be 'q4'"),
        ("context_length=0", "E0202", "option 'context_length' must be greater than or equal to 1, found 0"),
        ("threads=many", "E0201", "option 'threads' must be a whole number, found the text many"),
    ],
)
def test_options_that_a_gguf_file_does_not_take_are_refused(options: str, code: str, told: str, folder: Path) -> None:
    with pytest.raises(FlowError) as caught:
        check(f'model M = "m.gguf" {{ backend=gguf, {options} }}\nM', base=folder)
    (found,) = caught.value.diagnostics
    assert (found.code, found.message) == (code, told)


def test_a_zoo_file_names_its_models_beside_itself(folder: Path) -> None:
    (folder / "zoo.toml").write_text('[models.M]\nref = "m.gguf"\nbackend = "gguf"\nthreads = 2\n')
    assert read_zoo(folder / "zoo.toml").models["M"].ref == str(folder / "m.gguf")
    assert check("M", zoo=str(folder / "zoo.toml")).warnings == ()


def test_the_plan_says_how_large_a_file_is_and_how_it_is_stored(folder: Path) -> None:
    write(folder / "m.gguf", {**META, "general.file_type": 15, "llama.attention.head_count_kv": 1})
    plan = place(compile(check('model M = "m.gguf" { backend=gguf }\nM', base=folder)), with_memory(1 << 30))
    need, placed = plan.needs["M"], plan.placements["M"]
    assert (need.parameters, need.weight_bytes, need.download_bytes) == (32, (folder / "m.gguf").stat().st_size, 0)
    assert need.kv_bytes_per_token == 2 * 1 * (4 + 4) * 4  # layers x heads of keys and values x both x float32
    assert placed.dtype == "Q4_K_M" and placed.device == "cpu"


def test_heads_that_map_one_file_need_its_memory_once(folder: Path) -> None:
    text = 'model A = "m.gguf" { backend=gguf }\nmodel B = "m.gguf" { backend=gguf, system="Be brief."MMAP }\n(A | B)'
    size = (folder / "m.gguf").stat().st_size
    room = with_memory(int(size * 1.5))
    shared = compile(check(text.replace("MMAP", ""), base=folder))
    assert len(place(shared, room).waves) == 1
    apart = compile(check(text.replace("MMAP", ", mmap=false"), base=folder))
    with pytest.raises(MemoryShort) as caught:
        place(apart, room)
    assert caught.value.help == "try smaller models"


def test_the_flow_that_is_shown_to_laptops_is_one() -> None:
    text = (ROOT / "docs" / "laptops.md").read_text("utf-8").split("```\n")[1]
    flow = check(text)
    assert [flow.models[name].backend for name in ("Small", "Large")] == ["gguf", "gguf"]
