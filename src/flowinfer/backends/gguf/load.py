"""Backend `gguf`: a GGUF file as a head, computed by llama.cpp."""

from __future__ import annotations

import hashlib
import json
import os
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from weakref import WeakValueDictionary

import torch

from flowinfer.backends.base import Prompt, Session, TokenModel, Turn
from flowinfer.backends.chat import ChatPrompts
from flowinfer.backends.gguf import tokens
from flowinfer.backends.gguf.context import Settings
from flowinfer.backends.gguf.library import last_problem, library
from flowinfer.backends.gguf.session import GgufSession
from flowinfer.backends.gguf.tokens import Apart, GgufTokenizer
from flowinfer.backends.naming import naming
from flowinfer.backends.plain_tokenizer import KnownTokenizer
from flowinfer.backends.versions import installed
from flowinfer.errors import LoadError
from flowinfer.fusion.ends import configured_ends, eos_ids
from flowinfer.fusion.selfcheck import keep, verified
from flowinfer.fusion.vocab import HeadVocabulary, TokenBytes
from flowinfer.spec import ModelSpec
from flowinfer.startup import STARTUP
from flowinfer.stores.gguf import Array, Gguf, read_gguf
from flowinfer.stores.refs import fetch, refuse_missing_template
from flowinfer.stores.stored import Stored

_KV_TYPES = {"float32": 0, "float16": 1, "q8_0": 8}
"""Types of keys and values, as ggml numbers them."""
_CONTROL = 3
"""The kind of control tokens in `tokenizer.ggml.token_type`."""
_NO_LIMIT = 1 << 20


class Weights:
    """A model of llama.cpp, freed when nobody holds it."""

    def __init__(self, spec: ModelSpec, path: Path, device: str) -> None:
        self._lib = lib = library()
        wanted = lib.llama_model_default_params()
        wanted.n_gpu_layers = (0 if device == "cpu" else -1) if spec.gpu_layers is None else spec.gpu_layers
        if device.startswith("cuda"):  # this one alone; llama.cpp would spread layers over all that it finds
            wanted.split_mode, wanted.main_gpu = lib.LLAMA_SPLIT_MODE_NONE, int(device.partition(":")[2] or 0)
        self.is_on_gpu = bool(wanted.n_gpu_layers and lib.llama_supports_gpu_offload())
        wanted.load_mode = lib.LLAMA_LOAD_MODE_AUTO if spec.mmap else lib.LLAMA_LOAD_MODE_NONE
        self.pointer = lib.llama_model_load_from_file(os.fsencode(path), wanted)
        if not self.pointer:
            raise LoadError(
                f"model '{spec.name}' cannot be loaded from '{path}': {last_problem()}",
                help="a newer llama-cpp-python may know what this file holds",
            )
        weakref.finalize(self, lib.llama_model_free, self.pointer)
        self.vocabulary = lib.llama_model_get_vocab(self.pointer)

    def is_(self, *kinds: str) -> bool:
        """Return whether llama.cpp says that the model is of one of some kinds, such as `is_recurrent`."""
        return any(getattr(self._lib, f"llama_model_{kind}")(self.pointer) for kind in kinds)


class GgufModel(TokenModel):
    """A loaded GGUF file; a `TokenModel`."""

    device = torch.device("cpu")
    """Where llama.cpp puts logits, wherever it computes them."""

    def __init__(self, spec: ModelSpec, stored: Stored, file: Gguf, weights: Weights, notes: Sequence[str]) -> None:
        self.name = spec.name
        self._spec = spec
        with naming(spec):
            with STARTUP.waiting_for("vocabulary", spec.name):
                known = _tokens(weights, file)
            self._told = _told(weights, GgufTokenizer(weights.vocabulary, known), file.chat_template)
            self._ended = SimpleNamespace(eos_token_id=_ends(weights, known))
            refuse_missing_template(stored, file, chat=spec.chat, system=spec.system)
            system = stored.system if spec.system is None else spec.system
            self._prompts = ChatPrompts(self._told, known, chat=spec.chat, system=system, disguise=Apart)
        self._stops = stored.stops
        ends = configured_ends(self._told, self._ended)
        self._tokens = known.writing(name for name in self._prompts.written if known.specials[name] not in ends)
        trained = library().llama_model_n_ctx_train(weights.pointer)
        limits = (trained, spec.context_length, _short_texts(file))
        self.max_positions = min((limit for limit in limits if limit), default=_NO_LIMIT)
        is_float32 = all(tensor.type == "F32" for tensor in file.tensors)
        kv_type = ("float32" if is_float32 else "float16") if spec.kv_type == "auto" else spec.kv_type
        self.bytes_beside = 1 if weights.is_on_gpu else file.read_bytes  # where a GPU reads them cores only wait
        self.is_exact = is_float32 and kv_type == "float32" and not weights.is_on_gpu  # CUDA multiplies by TF32
        self._settings = Settings(
            name=spec.name,
            model=weights,
            num_columns=len(known.pieces),
            kv_type=_KV_TYPES[kv_type],
            has_flash=not self.is_exact,
            is_on_gpu=weights.is_on_gpu,
            threads=spec.threads,
            max_positions=self.max_positions,
            can_forget=not weights.is_("is_recurrent", "is_hybrid"),
        )
        losses = "; ".join(known.losses)
        told = [f"'{spec.name}' reads no text exactly as it stands: {losses}"] if losses else []
        if texts := [stop for stop in self._stops if stop not in known.specials and stop.encode() not in known.id_of]:
            ends_at = ", ".join(map(repr, texts))
            told.append(f"'{spec.name}': Ollama also ends answers at {ends_at}; here stop=[...] behind its stage does")
        if (spec.context_length or 0) > self.max_positions:
            told.append(f"'{spec.name}' reads {self.max_positions} tokens at most, whatever context_length says")
        self.notes = (*notes, *told)

    @property
    def tokenizer(self) -> GgufTokenizer:
        """Return what reads texts as llama.cpp does."""
        return self._told.backend_tokenizer

    def vocabulary(self, stop_tokens: Sequence[str] = ()) -> HeadVocabulary:
        """Return token bytes, end ids and width of the logits."""
        turn_end = self._prompts.turn.end
        ends = eos_ids(self._told, self._ended, self._tokens, [*stop_tokens, *self._stops], turn_end)
        return HeadVocabulary(self._tokens, ends, self._settings.num_columns)

    def prompt(self, text: str, prefill: str = "", turns: Sequence[Turn] = ()) -> Prompt:
        """Apply the chat template, if any, and tokenize; where llama.cpp begins every prompt with a token, so here."""
        with naming(self._spec):
            prompt = self._prompts.build(text, prefill, turns)
        begin = self.tokenizer.begin_id
        return prompt if begin is None or prompt.ids[:1] == (begin,) else replace(prompt, ids=(begin, *prompt.ids))

    def open(self) -> Session:
        """Return an empty session."""
        return GgufSession(self._settings)

    def close(self) -> None:
        """Let go of the weights: they are freed with the last session."""
        del self._settings


def load(spec: ModelSpec, device: str, dtype: str = "auto") -> GgufModel:
    """Load a GGUF file.

    Args:
        spec: what the zoo or flow says; `stores.refs` says what `spec.ref` can be.
        device: the plan's choice; on anything but `cpu` llama.cpp computes where it was built to.
        dtype: not heeded: weights are as they are stored.
    Raises:
        LoadError: it is no such file, unsuitable or damaged, or llama.cpp is not installed, with the cure.
    """
    del dtype
    library()
    with STARTUP.waiting_for("network", spec.name):
        with naming(spec):
            stored = fetch(spec.ref, spec.revision)
            file = read_gguf(stored.path)
        weights = _weights(spec, file, device)
    if weights.is_("has_encoder", "is_diffusion") or not weights.is_("has_decoder"):
        raise LoadError(
            f"model '{spec.name}' ({spec.ref}) is no decoder-only model", help="flowinfer runs decoder-only models"
        )
    model = GgufModel(spec, stored, file, weights, _without_gpus(spec, device))
    model.vocabulary()
    model.prompt("x")
    return model


_held: WeakValueDictionary[tuple[object, ...], Weights] = WeakValueDictionary()
"""What somebody holds, by file and by how it was loaded."""


def _weights(spec: ModelSpec, file: Gguf, device: str) -> Weights:
    """Load a file's weights, once for all heads of it: llama.cpp may rearrange them, in a copy for each time."""
    parts = ((str(part), (stat := part.stat()).st_size, stat.st_mtime_ns) for part in file.parts)
    key = (*parts, device, spec.gpu_layers, spec.mmap)
    found = _held.get(key)
    if found is None:
        found = _held[key] = Weights(spec, file.parts[0], device)
    return found


def _without_gpus(spec: ModelSpec, device: str) -> list[str]:
    """Return what is to be told where a GPU is meant and llama.cpp has none."""
    if (device == "cpu" and not spec.gpu_layers) or library().llama_supports_gpu_offload():
        return []
    cure = "device=cpu lets the plan count it there" if device != "cpu" else "`flowinfer doctor` says how to build it"
    return [f"llama.cpp was built without GPUs here: '{spec.name}' computes on the CPU ({cure})"]


def _tokens(weights: Weights, file: Gguf) -> TokenBytes:
    """Read what a file's ids write; what has passed here before is not read again."""
    stats = [(str(part), (stat := part.stat()).st_size, stat.st_mtime_ns) for part in file.parts]
    code = Path(tokens.__file__).read_text("utf-8")
    cache_key = hashlib.sha256(json.dumps([stats, code, installed("llama-cpp-python")]).encode()).hexdigest()
    found = verified(cache_key)
    if found is None:
        kinds = file.metadata.get("tokenizer.ggml.token_type")
        controls = {i for i, kind in enumerate(kinds.values()) if kind == _CONTROL} if isinstance(kinds, Array) else ()
        found = tokens.read_tokens(weights.vocabulary, controls)
        keep(found, cache_key)
    return found


def _short_texts(file: Gguf) -> int | None:
    """Return the longest text that a model reads by its frequencies for short texts, where it has others for long ones.

    llama.cpp chooses by the size of a context and not by a text, so the others are never used.
    """
    if not any(tensor.name == "rope_factors_long.weight" for tensor in file.tensors):
        return None
    limit = file.metadata.get(f"{file.architecture}.rope.scaling.original_context_length")
    return limit if isinstance(limit, int) else None


def _told(weights: Weights, tokenizer: GgufTokenizer, template: str | None) -> KnownTokenizer[GgufTokenizer]:
    """Read what a file says of its tokens and turns."""
    lib = library()
    named = {"bos_token": lib.llama_vocab_bos, "eos_token": lib.llama_vocab_eos, "pad_token": lib.llama_vocab_pad}
    ids = {name: ask(weights.vocabulary) for name, ask in named.items()}
    names = {
        name: lib.llama_vocab_get_text(weights.vocabulary, i).decode(errors="replace")
        for name, i in ids.items()
        if i >= 0
    }
    return KnownTokenizer(tokenizer, template, names, ids["eos_token"] if ids["eos_token"] >= 0 else None)


def _ends(weights: Weights, known: TokenBytes) -> list[int]:
    """Return all ids that end a generation."""
    is_end = library().llama_vocab_is_eog
    return [i for i in range(len(known.pieces)) if is_end(weights.vocabulary, i)]
