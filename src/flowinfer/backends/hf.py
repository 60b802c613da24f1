"""Backend `hf`: any decoder-only transformers model, from the hub or a local folder, safetensors only."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flowinfer.backends.base import Prompt, Session, Turn
from flowinfer.backends.caches import NotCached
from flowinfer.backends.chat import ChatPrompts
from flowinfer.backends.hf_network import around, dtype_of, filled, num_numbers, without_weights
from flowinfer.backends.kinds import session_kind
from flowinfer.backends.known import WRITTEN, KnownNetwork, whole
from flowinfer.backends.naming import naming
from flowinfer.backends.plain import described, own_logits
from flowinfer.backends.remembered import identify, recall, recall_files, remember
from flowinfer.backends.rotary import most_positions
from flowinfer.backends.session import BatchSession
from flowinfer.backends.tokenizers import load_tokenizer
from flowinfer.backends.versions import untried
from flowinfer.backends.weights import mapped, take
from flowinfer.checkpoint import Held, read_config, read_folder, refuse_incomplete, refuse_larger
from flowinfer.errors import FlowInferError, LoadError, MemoryShort, is_memory_short
from flowinfer.fusion.ends import configured_ends, eos_ids
from flowinfer.fusion.vocab import HeadVocabulary, TokenBytes, token_bytes
from flowinfer.machine import hub_folder, hub_problem, is_hub_offline, model_folder
from flowinfer.spec import ModelSpec, Share
from flowinfer.startup import NEEDLESS, STARTUP
from flowinfer.zoo import is_missing

if TYPE_CHECKING:
    from tokenizers import Tokenizer


_MOST_TOKENIZERS = 4
"""Loaded at once."""


class HfModel:
    """A loaded transformers model; a `TokenModel`.

    Args:
        spec: what the zoo or flow says.
        model: transformers' own, or what is known of it.
        tokenizer: likewise.
        every: what the tokenizer's ids write, where that is read already.
    """

    def __init__(self, spec: ModelSpec, model: Any, tokenizer: Any, every: TokenBytes | None = None) -> None:
        self.name = spec.name
        self.device: torch.device = model.device
        self._model = model
        self._tokenizer = tokenizer
        self.num_columns = _num_columns(model)
        self._spec = spec
        with naming(spec), STARTUP.waiting_for("vocabulary", spec.name):
            every = every or token_bytes(tokenizer)
            tokens = every.limited(min(self.num_columns, int(model.get_input_embeddings().weight.shape[0])))
            self._prompts = ChatPrompts(tokenizer, tokens, chat=spec.chat, system=spec.system)
        ends = configured_ends(tokenizer, model.generation_config)
        self._tokens = tokens.writing(name for name in self._prompts.written if tokens.specials[name] not in ends)
        self._beyond = every.pieces[len(tokens.pieces) :]
        """What the tokenizer's ids write for which the model has no embedding or no logit."""
        self.is_exact = model.dtype in (torch.float32, torch.float64)
        known = recall(model)
        self.max_positions = known.max_positions or _max_positions(model.config)
        with STARTUP.waiting_for("check", spec.name):
            kind = session_kind(model)
        if not known.max_positions:
            end_ids = getattr(model.generation_config, "eos_token_id", None)
            remember(model, max_positions=self.max_positions, end_ids=end_ids)
        self.notes = tuple(_notes(spec.name, tokens.losses, is_batched=kind is BatchSession))

    @property
    def tokenizer(self) -> Tokenizer:
        """Return the `tokenizers` object."""
        return self._tokenizer.backend_tokenizer  # type: ignore[no-any-return]  # untyped

    @property
    def transformers_model(self) -> Any:  # untyped in transformers
        """Return the transformers model itself, or what is known of it while nobody has needed that."""
        return self._model

    def vocabulary(self, stop_tokens: Sequence[str] = ()) -> HeadVocabulary:
        """Return token bytes, end ids and width of the logits."""
        turn_end = self._prompts.turn.end
        ends = eos_ids(self._tokenizer, self._model.generation_config, self._tokens, stop_tokens, turn_end)
        return HeadVocabulary(self._tokens, frozenset(i for i in ends if i < self.num_columns), self.num_columns)

    def prompt(self, text: str, prefill: str = "", turns: Sequence[Turn] = ()) -> Prompt:
        """Apply the chat template, if any, and tokenize."""
        with naming(self._spec):
            prompt = self._prompts.build(text, prefill, turns)
            if not self._beyond or max(prompt.ids, default=0) < len(self._tokens.pieces):
                return prompt
            return replace(prompt, ids=tuple(i for token_id in prompt.ids for i in self._readable(token_id)))

    def _readable(self, token_id: int) -> Sequence[int]:
        """Return ids of the model that write what an id of its tokenizer writes."""
        size = len(self._tokens.pieces)
        if token_id < size:
            return (token_id,)
        piece = self._beyond[token_id - size]
        if piece is None:
            raise LoadError(
                f"the tokenizer writes id {token_id}, the model knows {size} ids",
                help="the tokenizer is another model's, or the embedding was never resized for it",
            )
        return self._tokens.cover(piece)

    def open(self) -> Session:
        """Return an empty session of the kind that this architecture allows."""
        network = whole(self._model)
        return session_kind(network)(network)

    def close(self) -> None:
        """Free the weights."""
        self._model = None
        gc.collect()  # a packed model and its runner hold on to each other
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _notes(name: str, losses: Sequence[str], *, is_batched: bool) -> Iterator[str]:
    """Yield what the user should know of a model."""
    if not is_batched:
        yield f"'{name}' has layers that do not attend to every token: its rows run one by one"
    if losses:
        yield f"'{name}' reads no text exactly as it stands: {'; '.join(losses)}"


def load(spec: ModelSpec, device: str, dtype: str = "auto", *, split: Sequence[Share] = ()) -> HfModel:
    """Load a model and its tokenizer.

    Args:
        spec: what the zoo or flow says.
        device: `cpu` or `cuda:N`.
        dtype: the plan's choice; "auto" means float32 on a CPU, the checkpoint's own elsewhere.
        split: where its layers go, if to several devices.
    Raises:
        LoadError: missing, unsuitable or damaged, with the cure.
        MemoryShort: the weights do not fit.
    """
    try:
        return _load(spec, device, dtype, split)
    except LoadError as error:
        if untried():
            error.help = f"{error.help}; flowinfer was not tried with {', '.join(untried())}"
        raise


@dataclass(frozen=True)
class _Read:
    """A tokenizer, and what its ids write."""

    tokenizer: Any
    """transformers', or what is known of it."""
    every: TokenBytes


_begun: dict[tuple[str, str | None], Future[_Read]] = {}
"""Tokenizers that are being loaded, by ref and revision; until `load` takes them."""


def begin(specs: Iterable[ModelSpec]) -> None:
    """Begin to load the tokenizers of local folders in threads: reading one leaves Python free for other work."""
    pool = ThreadPoolExecutor(_MOST_TOKENIZERS)
    for spec in specs:
        if os.path.isdir(spec.ref) and not spec.trust_remote_code and _key(spec) not in _begun:
            _begun[_key(spec)] = pool.submit(_local_tokenizer, spec)
    pool.shutdown(wait=False)


def _local_tokenizer(spec: ModelSpec) -> _Read:
    return _read_tokenizer(spec, {"revision": spec.revision, "trust_remote_code": False})


def _read_tokenizer(spec: ModelSpec, options: Mapping[str, Any]) -> _Read:
    with STARTUP.waiting_for("tokenizer", spec.name):
        tokenizer = load_tokenizer(spec.ref, **options)
    with STARTUP.waiting_for("vocabulary", spec.name):
        return _Read(tokenizer, token_bytes(tokenizer))


def drop() -> None:
    """Let go of tokenizers that nobody has taken."""
    _begun.clear()


def _key(spec: ModelSpec) -> tuple[str, str | None]:
    return spec.ref, spec.revision


def _load(spec: ModelSpec, device: str, dtype: str, split: Sequence[Share]) -> HfModel:
    options: dict[str, Any] = {"revision": spec.revision, "trust_remote_code": spec.trust_remote_code}
    if is_missing(spec):
        raise LoadError(
            f"model '{spec.name}': no folder '{spec.ref}'", help="local refs are relative to the file that names them"
        )
    if not os.path.isdir(spec.ref):
        options |= _without_hub(spec)
    try:
        held = _held(spec)
        if (known := _known(spec, held, device, dtype, split)) is not None:
            return known
        config = _config(spec.ref, options)
        _refuse_unsuitable(spec, config)
        empty = None
        if held.files and not spec.trust_remote_code:
            with STARTUP.waiting_for("config", spec.name), STARTUP.without(*NEEDLESS):
                empty = without_weights(config)
                refuse_larger(num_numbers(empty), held, config.to_dict())
        with naming(spec):
            read = _tokenizer(spec, options)
        with STARTUP.waiting_for("network", spec.name):
            network = filled(spec, config, empty, held, device, dtype, options, split)
        if held.files and not spec.trust_remote_code and not spec.quantization:
            identify(network, held)
        return _served(spec, network, read)
    except (FlowInferError, KeyboardInterrupt, SystemExit):
        raise
    except NotCached as error:
        raise LoadError(
            f"model '{spec.name}' ({spec.ref}, {type(network).__name__}) {error}",
            help="flowinfer decodes what can go on from a key-value cache; others can be reached over backend=openai",
        ) from error
    except BaseException as error:  # a damaged file breaks any library that reads it; Rust panics are no Exception
        if is_memory_short(error):
            where = " and ".join(share.device for share in split) or device
            raise MemoryShort(
                f"model '{spec.name}' ({spec.ref}) does not fit into the memory of {where}",
                help='`flowinfer plan` shows what fits; another device, several (device=["cuda:0", "cuda:1"]),'
                " dtype=bfloat16 or quantization may help",
            ) from error
        raise LoadError(
            f"model '{spec.name}' cannot be loaded from '{spec.ref}': {_first_line(error)}",
            help=_cure(spec, error),
        ) from error


def _known(spec: ModelSpec, held: Held, device: str, dtype: str, split: Sequence[Share]) -> HfModel | None:
    """Load a model without transformers' classes; None where they are needed.

    It has passed its checks here, or is one whose config is understood.
    """
    is_local = os.path.isdir(spec.ref) or is_hub_offline()  # else the hub may have a newer one
    if split or spec.quantization or spec.trust_remote_code or not held.files or not is_local:
        return None
    wanted = dtype_of(spec, device, dtype)
    config = read_config(held.files[0].parent) or {}
    stated = str(config.get("dtype", config.get("torch_dtype"))) if wanted == "auto" else wanted
    kind = getattr(torch, stated, None)
    if "quantization_config" in config or not isinstance(kind, torch.dtype):
        return None
    passed = recall_files(held, kind, torch.device(device))
    is_new = passed.logits is None
    if is_new and kind in WRITTEN.get(torch.device(device).type, ()):
        passed = described(held) or passed
    if passed.numbers is None:
        return None
    refuse_incomplete(held.files[0].parent)
    with naming(spec):
        read = _tokenizer(spec, {"revision": spec.revision, "trust_remote_code": False})
    with STARTUP.waiting_for("network", spec.name):
        try:
            reading = take(spec, device)
            tensors = reading.tensors() if reading else mapped(held.files, kind) if device == "cpu" else {}
            build = partial(_whole, spec, held, device, stated)
            if {one.dtype for one in tensors.values()} != {kind}:
                return None
            network = KnownNetwork(tensors, passed, build)
            if is_new and not _begins_record(network, held, tensors):
                return None
        except Exception:  # short memory, a damaged file: the ordinary way says so
            return None
    return _served(spec, network, read)


def _begins_record(network: KnownNetwork, held: Held, tensors: Mapping[str, Tensor]) -> bool:
    """Note what a network's own logits are; return whether they are numbers."""
    with STARTUP.waiting_for("check", "plain"):
        logits = own_logits(tensors, network.passed)
    if not logits.isfinite().all():
        return False
    identify(network, held)
    remember(network, logits=logits)
    network.passed = recall(network)
    return True


def _whole(spec: ModelSpec, held: Held, device: str, dtype: str, tensors: Mapping[str, Tensor]) -> Any:
    """Build transformers' own network around weights that are there."""
    config = _config(spec.ref, {"revision": spec.revision, "local_files_only": True})
    made = around(spec, config, without_weights(config), tensors, held.files[0].parent, dtype)
    if made is None:
        made = filled(spec, config, None, held, device, dtype, {"revision": spec.revision}, ())
    identify(made, held)
    return made


def _config(ref: str, options: Mapping[str, Any]) -> Any:  # transformers'
    from flowinfer.backends.theirs import AutoConfig, quiet

    quiet()
    return AutoConfig.from_pretrained(ref, **options)


def _tokenizer(spec: ModelSpec, options: Mapping[str, Any]) -> _Read:
    return _begun.pop(_key(spec)).result() if _key(spec) in _begun else _read_tokenizer(spec, options)


def _served(spec: ModelSpec, network: Any, read: _Read) -> HfModel:
    """Return a model that has written its vocabulary and a prompt."""
    model = HfModel(spec, network, read.tokenizer, read.every)
    model.vocabulary()
    model.prompt("x")
    return model


def _without_hub(spec: ModelSpec) -> dict[str, Any]:
    """Return the options that load a model from the cache where the hub cannot be reached, none where it can.

    Raises:
        LoadError: neither the hub nor the cache has it.
    """
    problem = "HF_HUB_OFFLINE is set" if is_hub_offline() else hub_problem()
    if problem is None:
        return {}
    if hub_folder(spec.ref, revision=spec.revision) is None:
        raise LoadError(
            f"model '{spec.name}' is not on this machine and the hub cannot be reached: {problem}",
            help="go online once, set HF_ENDPOINT to a mirror, or give a local folder",
        )
    return {"local_files_only": True}


def _held(spec: ModelSpec) -> Held:
    """Return what a model's weight files hold, nothing where they are not on this machine yet.

    Raises:
        LoadError: a file is damaged.
    """
    folder = model_folder(spec.ref, spec.revision)
    return read_folder(folder) if folder else Held((), {})


def _refuse_unsuitable(spec: ModelSpec, config: Any) -> None:  # untyped in transformers
    from flowinfer.backends.theirs import GenerationConfig

    if getattr(config, "is_encoder_decoder", False):
        raise LoadError(
            f"model '{spec.name}' ({spec.ref}) is an encoder-decoder model",
            help="flowinfer runs decoder-only models",
        )
    folder = Path(spec.ref)
    if folder.is_dir():
        refuse_incomplete(folder)
    if (folder / "generation_config.json").is_file():
        GenerationConfig.from_pretrained(folder)  # transformers itself would pass over a damaged one and its end tokens


def _max_positions(config: Any) -> int:  # untyped in transformers
    inner = config.get_text_config() if hasattr(config, "get_text_config") else config
    stated = (getattr(inner, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len"))
    found = next((int(one) for one in stated if one and one > 0), 1 << 20)
    return most_positions(config, found)


def _num_columns(model: Any) -> int:  # untyped in transformers
    head = model.get_output_embeddings()
    return int(head.weight.shape[0] if head is not None else model.config.vocab_size)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).split("\n") if line.strip()), type(error).__name__)[:300]


def _cure(spec: ModelSpec, error: BaseException) -> str:
    text = str(error)
    if "ignore_mismatched_sizes" in text:
        return "the weights do not have the shapes that config.json says"
    if isinstance(error, ImportError):
        return f"install what it names: {_first_line(error)}"
    if Path(spec.ref).is_dir():
        return "the folder needs config.json, tokenizer.json and .safetensors of a decoder-only model"
    if "Unrecognized configuration class" in text:
        return "this architecture has no causal language model; flowinfer runs decoder-only models"
    if "trust_remote_code" in text:
        return "the checkpoint brings its own code; set trust_remote_code=true if you trust it"
    return "check the id, download it once (hf download ID), or give a local folder; gated models need `hf auth login`"
