"""The transformers backend: what it loads, what it tells of a model, and what it refuses with which cure."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers
from transformers import (
    BertConfig,
    BertLMHeadModel,
    Cache,
    DynamicCache,
    FalconConfig,
    FalconForCausalLM,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.utils import ModelOutput

from flowinfer.backends import caches, hf
from flowinfer.backends.base import TokenModel
from flowinfer.backends.kinds import session_kind
from flowinfer.backends.known import whole
from flowinfer.backends.row_session import RowSession
from flowinfer.backends.session import BatchSession
from flowinfer.errors import LoadError
from flowinfer.spec import ModelSpec
from tests.backends import tiny
from tests.conftest import shared_path
from tests.fusion import toys

TINY = {
    "vocab_size": 300,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
KINDS = ("qwen2", "llama", "gpt2", "mistral")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder as save_pretrained leaves it."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = tiny.wrapped(toys.byte_level(), eos_token="<|im_end|>", chat_template=tiny.CHAT)
    tiny.network("qwen2", toys.byte_level().get_vocab_size() + 3).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def copied(folder: Path, to: Path, *names: str) -> Path:
    for name in names or [path.name for path in folder.iterdir()]:
        (to / name).write_bytes((folder / name).read_bytes())
    return to


def spec(ref: object, **options: object) -> ModelSpec:
    return ModelSpec(name="M", ref=str(ref), **options)


def test_loaded_model_decodes_as_transformers_does(checkpoint: Path) -> None:
    model = hf.load(spec(checkpoint), "cpu")
    prompt = model.prompt("hello")
    session = model.open()
    (row,) = session.add([prompt.ids])
    written = []
    for _ in range(12):
        written.append(int(session.logits([row])[0].argmax()))
        session.feed({row: [written[-1]]})
    ids = torch.tensor([prompt.ids])
    expected = whole(model._model).generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert expected[0, len(prompt.ids) :].tolist() == written


@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_is_a_token_model(kind: str) -> None:
    assert isinstance(tiny.model(kind), TokenModel)


@pytest.mark.parametrize(
    ("kind", "session"),
    [("qwen2", BatchSession), ("llama", BatchSession), ("gpt2", BatchSession), ("mistral", RowSession)],
)
def test_sliding_windows_get_a_cache_per_row(kind: str, session: type) -> None:
    assert isinstance(tiny.model(kind).open(), session)


@pytest.mark.parametrize(
    ("network", "batched"),
    [
        (lambda: Qwen2ForCausalLM(Qwen2Config(**TINY)), True),
        (lambda: Qwen2ForCausalLM(Qwen2Config(**TINY, rope_scaling={"rope_type": "dynamic", "factor": 2.0})), False),
        (lambda: FalconForCausalLM(FalconConfig(**TINY, alibi=True)), False),
        (lambda: FalconForCausalLM(FalconConfig(**TINY, alibi=False)), True),
        (
            lambda: GPTNeoForCausalLM(GPTNeoConfig(**TINY, num_layers=2, attention_types=[[["global", "local"], 1]])),
            False,
        ),
        (lambda: GPTNeoForCausalLM(GPTNeoConfig(**TINY, num_layers=2, attention_types=[[["global"], 2]])), True),
    ],
    ids=["rope", "dynamic-rope", "alibi", "falcon-rope", "local", "global"],
)
def test_positions_that_padding_would_change_get_a_cache_per_row(
    network: Callable[[], PreTrainedModel], batched: bool
) -> None:
    model = hf.HfModel(spec("x"), network(), tiny.wrapped(toys.byte_level()))
    assert isinstance(model.open(), BatchSession if batched else RowSession)


@dataclass
class _Renamed(ModelOutput):
    logits: torch.Tensor | None = None
    memory: Cache | None = None


class RenamedForCausalLM(Qwen2ForCausalLM):
    """A model of a release, or with code of its own, whose forward calls its cache otherwise and keeps all logits."""

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        memory: Cache | None = None,
        use_cache: bool = True,
    ) -> _Renamed:
        memory = memory if memory is not None else DynamicCache()
        masks = {"attention_mask": attention_mask, "position_ids": position_ids}
        words = caches.words_of(self.plain)
        output = self.plain(input_ids=input_ids, **masks, **{words.cache: memory}, use_cache=True)
        return _Renamed(logits=output.logits, memory=output[words.cache] if use_cache else None)


class Forgetful(Qwen2ForCausalLM):
    """A model that gives back a cache and does not look at it."""

    def forward(self, input_ids: torch.Tensor, **others: Any) -> Any:
        return super().forward(input_ids=input_ids, use_cache=others.get("use_cache"))


class Clumsy(Qwen2ForCausalLM):
    """A model that fails behind a cache."""

    def forward(self, input_ids: torch.Tensor, **others: Any) -> Any:
        assert others.get("attention_mask") is None and len(others) < 4, "one token at a time"
        return super().forward(input_ids=input_ids, **others)


def qwen2(kind: type[PreTrainedModel] = Qwen2ForCausalLM) -> PreTrainedModel:
    torch.manual_seed(0)
    return kind(Qwen2Config(**TINY, initializer_range=0.3)).eval()


@pytest.mark.parametrize("open_", [BatchSession, RowSession])
def test_what_a_models_cache_is_called_does_not_matter(open_: type) -> None:
    own = qwen2()
    renamed = qwen2(RenamedForCausalLM)
    renamed.plain = own
    model = hf.HfModel(spec("x"), renamed, tiny.wrapped(toys.byte_level()))
    assert isinstance(model.open(), BatchSession) and caches.words_of(renamed) == caches.Words(
        "memory", can_keep=False, can_place=True
    )
    sessions = [open_(network) for network in (own, renamed)]
    for session in sessions:
        session.add([[1, 2, 3], [4]])
        session.feed({0: [5, 6], 1: [7]})
        session.rollback(0, 1)
    verified = [session.verify({0: [[8], [9, 10]], 1: [[11]]}) for session in sessions]
    torch.testing.assert_close(verified[1], verified[0])
    torch.testing.assert_close(sessions[1].logits([0, 1]), sessions[0].logits([0, 1]))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Forgetful, "goes on from its cache with other logits"),
        (Clumsy, "cannot go on from its cache: AssertionError: one token at a time"),
    ],
)
def test_a_model_that_cannot_go_on_from_its_cache_is_found_out(kind: type[PreTrainedModel], reason: str) -> None:
    with pytest.raises(caches.NotCached, match=reason):
        session_kind(qwen2(kind))


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (lambda: BertLMHeadModel(BertConfig(**TINY, is_decoder=False)), "keeps no key-value cache"),
        (
            lambda: OpenAIGPTLMHeadModel(OpenAIGPTConfig(vocab_size=64, n_embd=16, n_layer=1, n_head=2)),
            "keeps no key-value cache",
        ),
        (lambda: MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2)), "other logits"),
    ],
    ids=["encoder", "without a cache", "recurrent"],
)
def test_a_model_without_a_cache_to_go_on_from_is_refused(
    network: Callable[[], PreTrainedModel], reason: str, checkpoint: Path, tmp_path: Path
) -> None:
    copied(checkpoint, tmp_path, "tokenizer.json", "tokenizer_config.json")
    torch.manual_seed(0)
    made = network()
    for weight in made.parameters():
        weight.data.normal_(std=0.3)
    made.save_pretrained(tmp_path)
    with pytest.raises(LoadError, match=reason) as caught:
        hf.load(spec(tmp_path), "cpu")
    assert caught.value.help and "openai" in caught.value.help


@pytest.mark.parametrize(
    ("dtype", "loaded", "is_exact"),
    [
        ("auto", torch.float32, True),
        ("float32", torch.float32, True),
        ("bfloat16", torch.bfloat16, False),
        ("float16", torch.float16, False),
    ],
)
def test_plan_decides_the_dtype(checkpoint: Path, dtype: str, loaded: torch.dtype, is_exact: bool) -> None:
    model = hf.load(spec(checkpoint), "cpu", dtype)
    assert (model._model.dtype, model.is_exact) == (loaded, is_exact)


def test_spec_decides_the_dtype_where_the_plan_does_not(checkpoint: Path) -> None:
    assert hf.load(spec(checkpoint, dtype="bfloat16"), "cpu")._model.dtype is torch.bfloat16


def test_num_columns_is_the_width_of_the_logits() -> None:
    model = tiny.model("qwen2", padding=7)
    assert model.num_columns == toys.byte_level().get_vocab_size() + 7
    assert model.vocabulary().num_columns == model.num_columns


def test_tokens_beyond_the_embedding_are_left_out() -> None:
    """A tokenizer may have grown beyond the embedding; such ids cannot be fed."""
    tokenizer = toys.byte_level()
    model = hf.HfModel(spec("x"), tiny.network("qwen2", 350), tiny.wrapped(tokenizer))
    assert len(model.vocabulary().tokens.pieces) == 350


@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
def test_max_positions_are_the_configs(kind: str) -> None:
    assert tiny.model(kind, max_positions=99).max_positions == 99


def test_end_ids_are_those_of_tokenizer_and_generation_config() -> None:
    """The story models end with <s>, which only their generation config tells."""
    model = hf.load(spec(shared_path("data", "models", "stories260K")), "cpu")
    assert model.vocabulary().eos_ids == {1, 2}


def test_user_stop_tokens_end_too() -> None:
    assert tiny.model("qwen2").vocabulary(["<|im_start|>"]).eos_ids >= {1, 2}


def test_closed_model_lets_its_weights_go() -> None:
    model = tiny.model("qwen2")
    model.close()
    assert model._model is None


def test_tokenizer_json_is_read_as_it_is_whatever_class_the_config_names(tmp_path: Path, checkpoint: Path) -> None:
    """R1-Distill-Qwen's config names LlamaTokenizer, which would rebuild its byte-level vocabulary wrongly."""
    folder = copied(checkpoint, tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "LlamaTokenizerFast"}))
    model = hf.load(spec(folder), "cpu")
    assert model.vocabulary().tokens.fingerprint == tiny.model("qwen2").vocabulary().tokens.fingerprint


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"model 'M': no folder '.*nowhere'$") as caught:
        hf.load(spec(tmp_path / "nowhere"), "cpu")
    assert caught.value.help == "local refs are relative to the file that names them"


def test_folder_without_safetensors_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    folder = copied(checkpoint, tmp_path, "config.json", "tokenizer.json", "tokenizer_config.json")
    with pytest.raises(LoadError) as caught:
        hf.load(spec(folder), "cpu")
    assert caught.value.message == f"no .safetensors file in {folder}"
    assert caught.value.help == "convert the weights with save_pretrained(safe_serialization=True)"


def test_pickled_weights_are_refused(tmp_path: Path, checkpoint: Path) -> None:
    """They run code when they are opened."""
    folder = copied(checkpoint, tmp_path, "config.json", "tokenizer.json", "tokenizer_config.json")
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(LoadError, match=r"no \.safetensors file"):
        hf.load(spec(folder), "cpu")


def test_folder_without_a_tokenizer_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    folder = copied(checkpoint, tmp_path, "config.json", "model.safetensors")
    with pytest.raises(LoadError) as caught:
        hf.load(spec(folder), "cpu")
    assert caught.value.message == f"no tokenizer in {folder}"
    assert caught.value.help == "save the model's tokenizer beside its weights (tokenizer.save_pretrained)"


def test_damaged_weights_are_refused(tmp_path: Path, checkpoint: Path) -> None:
    folder = copied(checkpoint, tmp_path)
    (folder / "model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(LoadError) as caught:
        hf.load(spec(folder), "cpu")
    assert caught.value.message == f"{folder}/model.safetensors is damaged: its header is longer than the file"
    assert caught.value.help == "download it again"


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("damage", ["{", "[]", "{}"])
def test_damaged_files_of_a_folder_are_refused(tmp_path: Path, checkpoint: Path, name: str, damage: str) -> None:
    """Also generation_config.json, which transformers would pass over: the end tokens stand in it."""
    folder = copied(checkpoint, tmp_path)
    (folder / name).write_text(damage)
    if damage == "{}" and name in ("tokenizer_config.json", "generation_config.json"):
        hf.load(spec(folder), "cpu")
        return
    with pytest.raises(LoadError, match=r"model 'M' cannot be loaded from|config\.json is no JSON"):
        hf.load(spec(folder), "cpu")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize(
    "damage",
    [
        b"[" * 10_000,
        b'{"a":' * 10_000,
        b"\xff\xfe{\x00}\x00",
        b"\x00" * 64,
        b"",
        b"null",
        b'{"model": 3, "model_type": 3}',
    ],
    ids=["nested", "nested objects", "utf-16", "zeros", "empty", "null", "types"],
)
def test_whatever_a_file_of_a_folder_holds_is_one_line(
    tmp_path: Path, checkpoint: Path, name: str, damage: bytes
) -> None:
    """Also what ends in a RecursionError, or in a panic of a library written in Rust."""
    folder = copied(checkpoint, tmp_path)
    (folder / name).write_bytes(damage)
    try:
        hf.load(spec(folder), "cpu")
    except LoadError as error:
        assert "\n" not in error.message and error.help


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 9}, "weights are missing in '.*', such as model.layers.2."),
        ({"num_hidden_layers": 9, "layer_types": ["full_attention"]}, "cannot be loaded"),
        ({"hidden_size": 16}, "cannot be loaded"),
        ({"num_attention_heads": "four"}, "cannot be loaded"),
    ],
)
def test_a_config_of_another_model_is_refused(
    tmp_path: Path, checkpoint: Path, change: dict[str, Any], message: str
) -> None:
    """Transformers would fill missing layers with random numbers and go on."""
    folder = copied(checkpoint, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config.pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(LoadError, match=message):
        hf.load(spec(folder), "cpu")


def test_encoder_decoder_models_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "t5", "is_encoder_decoder": true}')
    with pytest.raises(LoadError) as caught:
        hf.load(spec(tmp_path), "cpu")
    assert caught.value.message == f"model 'M' ({tmp_path}) is an encoder-decoder model"
    assert caught.value.help == "flowinfer runs decoder-only models"


def test_unknown_quantization_is_refused(checkpoint: Path) -> None:
    with pytest.raises(LoadError) as caught:
        hf.load(spec(checkpoint, quantization="int3"), "cpu")
    assert caught.value.message == "model 'M': unknown quantization 'int3'"
    assert caught.value.help == ("known: bnb-8bit, bnb-4bit; a checkpoint that is stored quantized needs no option")


@pytest.mark.parametrize(
    ("device", "said", "cure"),
    [
        ("cpu", "'bnb-4bit' computes on a GPU, and the model lies on the CPU", "leave its quantization out"),
        ("cuda:0", "'bnb-4bit' needs bitsandbytes and accelerate", "pip install bitsandbytes accelerate"),
    ],
)
def test_quantization_says_what_it_lacks(
    device: str, said: str, cure: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowinfer.backends.hf_network.find_spec", lambda name: None)
    with pytest.raises(LoadError, match=said) as caught:
        hf.load(spec(checkpoint, quantization="bnb-4bit"), device)
    assert caught.value.help is not None and caught.value.help.startswith(cure)


def test_tokenizer_of_words_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    folder = copied(checkpoint, tmp_path)
    words = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    with pytest.raises(LoadError, match="WordLevel tokenizers lose spaces and case"):
        hf.load(spec(folder), "cpu")


@pytest.mark.parametrize("name", ["qwen", "ds", "yi"])
def test_trial_models_load_and_read(name: str) -> None:
    model = hf.load(spec(shared_path("trial_zoo", name)), "cpu")
    session = model.open()
    (row,) = session.add([model.prompt("hello").ids])
    assert session.logits([row]).shape == (1, model.num_columns)


def test_text_that_tokenizes_beyond_the_embedding_is_written_with_the_ids_that_there_are() -> None:
    """Also where the embedding is smaller than the head."""
    tokenizer = toys.byte_level()
    full = hf.HfModel(spec("x"), tiny.network("qwen2", 400), tiny.wrapped(tokenizer))
    network = copy.deepcopy(tiny.network("qwen2", 400))
    network.set_input_embeddings(torch.nn.Embedding(300, 32))
    small = hf.HfModel(spec("x"), network, tiny.wrapped(tokenizer))
    text = "Once upon a time the answer is 42"
    assert max(full.prompt(text).ids) >= 300 > max(small.prompt(text).ids)
    pieces = small.vocabulary().tokens.pieces
    assert b"".join(pieces[i] or b"" for i in small.prompt(text).ids) == text.encode()


def test_a_template_that_writes_tokens_beyond_the_embedding_is_refused_at_load(
    checkpoint: Path, tmp_path: Path
) -> None:
    folder = copied(checkpoint, tmp_path)
    tokenizer = tiny.wrapped(toys.byte_level(), chat_template="<|far|>{{ messages[0]['content'] }}")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|a|>", "<|b|>", "<|c|>", "<|far|>"]})
    tokenizer.save_pretrained(folder)
    with pytest.raises(LoadError, match="the tokenizer writes id 392, the model knows 392 ids") as caught:
        hf.load(spec(folder), "cpu")
    assert caught.value.help == "the tokenizer is another model's, or the embedding was never resized for it"


@pytest.mark.parametrize("value", ["x", 1.5, -1, [2, "x"], [[2]], {"a": 2}])
def test_end_tokens_that_are_no_ids_are_refused_at_load(checkpoint: Path, tmp_path: Path, value: object) -> None:
    folder = copied(checkpoint, tmp_path)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(LoadError) as caught:
        hf.load(spec(folder), "cpu")
    assert "\n" not in caught.value.message


def test_weights_that_are_no_numbers_are_refused_at_load(checkpoint: Path, tmp_path: Path) -> None:
    copied(checkpoint, tmp_path)
    network = copy.deepcopy(tiny.network("qwen2", toys.byte_level().get_vocab_size() + 3))
    network.get_input_embeddings().weight.data[:] = float("nan")
    network.save_pretrained(tmp_path)
    with pytest.raises(LoadError, match="gives logits that are no numbers: its weights are damaged"):
        hf.load(spec(tmp_path), "cpu")


@pytest.mark.parametrize("change", [{"max_position_embeddings": -3}, {"hidden_size": 10**12}, {"vocab_size": 10**9}])
def test_a_network_far_larger_than_its_weights_is_refused_before_it_is_built(
    checkpoint: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    folder = copied(checkpoint, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    try:
        hf.load(spec(folder), "cpu")
    except LoadError as error:
        assert "\n" not in error.message and error.help
    else:
        assert "max_position_embeddings" in change


@pytest.mark.parametrize(
    ("key", "value"),
    [("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}), ("merges", [["zzz", "q"]])],
)
def test_what_the_tokenizers_library_panics_over_is_a_load_error(
    tmp_path: Path, checkpoint: Path, key: str, value: object
) -> None:
    folder = copied(checkpoint, tmp_path)
    file = folder / "tokenizer.json"
    data = json.loads(file.read_text("utf-8"))
    (data["model"] if key == "merges" else data)[key] = value
    file.write_text(json.dumps(data), "utf-8")
    with pytest.raises(LoadError, match=r"(?i)cannot be loaded|tokenizer"):
        hf.load(spec(folder), "cpu")


def test_what_a_tokenizer_loses_is_noted() -> None:
    losing = Tokenizer.from_str(toys.byte_level().to_str())
    losing.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    (note,) = tiny.model("qwen2", "L", tokenizer=losing).notes
    said = "compatibility forms are replaced (NFKC); upper case is lost"
    assert note == f"'L' reads no text exactly as it stands: {said}"
