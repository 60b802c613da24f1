"""Models of the lab zoo as GGUF files, written for tests with the package `gguf`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from flowinfer import zoos
from flowinfer.fusion.selfcheck import cache_folder

LAB = Path(zoos.__file__).parent / "lab"
_LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def written(name: str, kind: str = "F32", *, folder: Path | None = None, **changed: Any) -> Path:
    """Return the file of a model of the lab zoo, written once for a process.

    Args:
        name: qwen, ds or yi.
        kind: of its matrices, see `write`.
        folder: where; the suite's cache if not given.
        changed: see `write`.
    """
    pytest.importorskip("gguf", reason="needs the package gguf")
    given = "".join(f"-{key}-{value!r:.12}" for key, value in changed.items()).replace("/", "")
    path = (folder or cache_folder() / "gguf") / f"{name}-{kind}{given}.gguf"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path if path.exists() else write(LAB / name, path, kind, **changed)


def write(folder: Path, path: Path, kind: str = "F32", **changed: Any) -> Path:
    """Write a model folder as a GGUF file.

    Args:
        folder: config.json, model.safetensors and tokenizer.json of the Llama family.
        path: the file.
        kind: of matrices: F32, F16, Q8_0 or Q4_0; what no block fits in stays F32.
        changed: what is to be otherwise: `architecture`, `add_bos`, `template`, `tokenizer` (its kind), `prefix`
            (of new texts of 300 tokens).
    """
    import gguf

    config = json.loads((folder / "config.json").read_text("utf-8"))
    writer = gguf.GGUFWriter(path, changed.get("architecture", config["model_type"]))
    _add_shape(writer, config, kind)
    _add_tokens(writer, folder, config, changed)
    for name, tensor in _tensors(folder, config):
        if kind != "F32" and tensor.ndim == 2 and tensor.shape[1] % 32 == 0:
            wanted = getattr(gguf.GGMLQuantizationType, kind)
            writer.add_tensor(name, gguf.quants.quantize(tensor, wanted), raw_dtype=wanted)
        else:
            writer.add_tensor(name, np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_shape(writer: Any, config: Mapping[str, Any], kind: str) -> None:
    import gguf

    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    types = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "Q8_0": "MOSTLY_Q8_0", "Q4_0": "MOSTLY_Q4_0"}
    writer.add_file_type(getattr(gguf.LlamaFileType, types[kind]))
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])


def _add_tokens(writer: Any, folder: Path, config: Mapping[str, Any], changed: Mapping[str, Any]) -> None:
    document = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    added = {token["id"]: token for token in document["added_tokens"]}
    names = {i: piece for piece, i in document["model"]["vocab"].items()}
    names |= {i: token["content"] for i, token in added.items()}
    names |= {i: f"{changed['prefix']}{i}" for i in range(700, 1000)} if "prefix" in changed else {}
    is_marked = config["model_type"] == "llama"  # the lab's only SentencePiece vocabulary
    kinds = [_kind(i, names.get(i), added, is_marked) for i in range(config["vocab_size"])]
    writer.add_token_list([names.get(i, f"[PAD{i}]") for i in range(config["vocab_size"])])
    writer.add_token_types([int(kind) for kind in kinds])
    writer.add_tokenizer_model(changed.get("tokenizer", "llama" if is_marked else "gpt2"))
    if is_marked:
        writer.add_token_scores(_scores(document["model"], config["vocab_size"]))
        writer.add_add_space_prefix(False)
    else:
        writer.add_tokenizer_pre("qwen2" if config["model_type"] == "qwen2" else "llama-bpe")
        writer.add_token_merges([" ".join(merge) for merge in document["model"]["merges"]])
    writer.add_eos_token_id(config["eos_token_id"])
    if config.get("bos_token_id") is not None:
        writer.add_bos_token_id(config["bos_token_id"])
    writer.add_add_bos_token(changed.get("add_bos", False))
    template = changed.get("template", (folder / "chat_template.jinja").read_text("utf-8"))
    if template is not None:
        writer.add_chat_template(template)


def _kind(token_id: int, name: str | None, added: Mapping[int, Any], is_marked: bool) -> Any:
    from gguf import TokenType

    if name is None:
        return TokenType.UNUSED
    if token_id in added:
        is_unknown = is_marked and name == "<unk>"
        return (
            TokenType.UNKNOWN
            if is_unknown
            else TokenType.CONTROL
            if added[token_id]["special"]
            else TokenType.USER_DEFINED
        )
    return TokenType.BYTE if is_marked and name.startswith("<0x") and name.endswith(">") else TokenType.NORMAL


def _scores(model: Mapping[str, Any], size: int) -> list[float]:
    """Return what makes SentencePiece merge in the order of a `tokenizers` model: the earlier the merge, the more."""
    scores = [-1e6] * size
    for rank, (left, right) in enumerate(model["merges"]):
        scores[model["vocab"][left + right]] = max(scores[model["vocab"][left + right]], -float(rank))
    return scores


def _tensors(folder: Path, config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the weights by GGUF's names, as float32, those of Llama's queries and keys in the order of its rotation."""
    for name, stored in load_file(folder / "model.safetensors").items():
        tensor = stored.astype(np.float32)
        module, _, kind = name.rpartition(".")
        if module in _OUTSIDE:
            yield f"{_OUTSIDE[module]}.{kind}", tensor
            continue
        _, _, layer, inner = module.split(".", 3)
        heads = {"self_attn.q_proj": "num_attention_heads", "self_attn.k_proj": "num_key_value_heads"}.get(inner)
        if config["model_type"] == "llama" and heads:
            halves = tensor.reshape(config[heads], 2, -1, *tensor.shape[1:])
            tensor = halves.swapaxes(1, 2).reshape(tensor.shape)
        yield f"blk.{layer}.{_LAYER[inner]}.{kind}", tensor
