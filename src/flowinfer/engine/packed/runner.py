"""One head's network, run over packed tokens; and the question whether it can be."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from flowinfer.engine.packed.attention import (
    Attention,
    PackedCache,
    UnsupportedAttention,
    attending,
    number_layers,
)
from flowinfer.engine.packed.dense import DenseCache
from flowinfer.engine.packed.merging import merge_linears

_LAYERS = ("DynamicLayer", "DynamicSlidingWindowLayer")
_RESCALED_BY_LENGTH = ("dynamic", "longrope")
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6, torch.bfloat16: 0.1, torch.float16: 0.05}
"""Largest relative difference of logits from transformers' own in the check at load: rounding, not another function."""


class NotPackable(Exception):
    """The packed engine cannot run this model; the message is the reason, in one line."""


@dataclass(frozen=True)
class LayerShape:
    """What one layer keeps of each token."""

    num_heads: int
    num_kv_heads: int
    key_size: int
    value_size: int
    window: int
    softcap: float


_HALF = (torch.bfloat16, torch.float16)
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
"""What configs of mixtures of experts call their number."""
_WORTH_COMPILING = 500_000_000
"""Bytes of weights from which on a model's layers are compiled."""
_WIDEST_HEAD = 256
"""Largest head dimension that the attention kernels hold on chip."""


class HeadRunner:
    """A transformers model over flat tokens.

    On a GPU its linear layers give way to ones that are fast at few tokens, and its layers are compiled, one of each
    kind for all.

    Args:
        model: a decoder-only transformers model; its linear layers are merged in place.
    Raises:
        NotPackable: with the reason.
    """

    def __init__(self, model: Any) -> None:  # transformers' models share no public type with these calls
        self.model = model
        self.device: torch.device = model.device
        _refuse(model)
        number_layers(model)
        expected = _probe_plain(model)
        merge_linears(model)
        self._keep: Callable[[Tensor], Tensor] | None = None
        self._compiled: list[Any] = []
        self.layers = _check(model, expected, self._active)
        if self.device.type == "cuda":
            _refuse_on_gpu(model, self.layers)
            self._speed_up(expected)
        model.get_output_embeddings().register_forward_pre_hook(self._before_last)
        self.kv_bytes_per_token = sum(
            shape.num_kv_heads * (shape.key_size + shape.value_size) * model.dtype.itemsize for shape in self.layers
        )

    @torch.inference_mode()
    def logits(
        self,
        ids: Tensor,
        positions: Tensor,
        wanted: Tensor,
        cache: PackedCache,
        keep: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Run the model over packed tokens.

        Args:
            ids: (T,) int64.
            positions: (T,) int64, each token's position in its row.
            wanted: (W,) int64, the flat tokens whose logits are asked for.
            cache: knows where each token's row is.
            keep: what to make of the wanted hidden states (W, D) before the last matrix.
        Returns:
            (W, V_k), in the model's own type.
        """
        self._keep = keep
        try:
            with self._active(cache):
                output = self.model(
                    input_ids=ids[None], position_ids=positions[None], use_cache=False, logits_to_keep=wanted
                )
        finally:
            self._keep = None  # it holds on to its loop's memory, which a loop that ran out of it must give back
        return output.logits[0]  # type: ignore[no-any-return]  # the model is untyped

    @torch.inference_mode()
    def read(self, ids: Tensor, positions: Tensor, cache: PackedCache) -> None:
        """Run the model for its keys and values alone (prefill): as `logits`, without the last matrix."""
        with self._active(cache):
            self.model.base_model(input_ids=ids[None], position_ids=positions[None], use_cache=False)

    @contextmanager
    def _active(self, cache: PackedCache) -> Iterator[None]:
        """Attend through a cache; on a GPU run the compiled layers, which other callers of the model do not see."""
        with attending(cache, self.model.config):
            for layer, call in self._compiled:
                layer._compiled_call_impl = call
            try:
                yield
            finally:
                for layer, _ in self._compiled:
                    layer._compiled_call_impl = None

    def _speed_up(self, expected: Tensor) -> None:
        """Install what is fast on a GPU, each part only if the check at load still holds with it."""
        replaced = _speed_up_linears(self.model) if self.model.dtype in _HALF else []
        try:
            _check(self.model, expected, self._active)
        except NotPackable:
            for parent, name, child in replaced:
                setattr(parent, name, child)
        self._compile()
        try:
            if self._compiled:
                _check(self.model, expected, self._active)
        except NotPackable:
            self._compiled = []

    def _compile(self) -> None:
        """Compile the decoder's layers for any number of tokens; equal layers share what is compiled.

        A small model is not worth it: compiling takes longer than it ever saves.
        """
        if sum(weight.nbytes for weight in self.model.parameters()) < _WORTH_COMPILING:
            return
        torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
        stacks = [module for module in self.model.modules() if isinstance(module, torch.nn.ModuleList)]
        layers = next((stack for stack in stacks if len(stack) == len(self.layers)), ())
        for layer in layers:
            layer.compile(fullgraph=True, dynamic=True)
            self._compiled.append((layer, layer._compiled_call_impl))
            layer._compiled_call_impl = None

    def _before_last(self, module: torch.nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        del module
        return None if self._keep is None else (self._keep(arguments[0][0])[None],)


def runner_of(model: Any) -> HeadRunner | str:  # a transformers model
    """Return the model's runner, made once and kept with it, or the reason why there is none."""
    known: HeadRunner | str | None = getattr(model, "flow_runner", None)
    if known is None:
        try:
            known = HeadRunner(model)
        except NotPackable as error:
            known = str(error)
        object.__setattr__(model, "flow_runner", known)
    return known


def _refuse(model: Any) -> None:
    """Refuse what is known not to work before anything is run."""
    config = model.config
    if not getattr(model, "_supports_attention_backend", False):
        raise NotPackable("its layers do not use transformers' attention interface")
    parameters = inspect.signature(model.forward).parameters
    if "position_ids" not in parameters or "logits_to_keep" not in parameters:
        raise NotPackable("its forward takes no position_ids or logits_to_keep")
    kinds = {type(layer).__name__ for layer in DynamicCache(config=config).layers} - set(_LAYERS)
    if kinds:
        raise NotPackable(f"it keeps more than keys and values ({', '.join(sorted(kinds))})")
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    flat = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    if any(part.get("rope_type", part.get("type")) in _RESCALED_BY_LENGTH for part in flat):
        raise NotPackable("its rotary embedding depends on the length of the longest row")
    if getattr(config, "alibi", False) or "local" in (getattr(config, "attention_layers", None) or ()):
        raise NotPackable("its attention depends on distances that only a mask carries")


def _refuse_on_gpu(model: Any, shapes: Sequence[LayerShape]) -> None:
    if any(getattr(model.config, name, None) for name in _EXPERTS):
        raise NotPackable("which of its experts run depends on the tokens, which a graph cannot follow")
    for shape in shapes:
        if shape.key_size != shape.value_size or shape.key_size > _WIDEST_HEAD:
            raise NotPackable(f"its heads have keys of {shape.key_size} and values of {shape.value_size} numbers")
    if find_spec("triton") is None:
        raise NotPackable("Triton is not installed")


def _speed_up_linears(model: Any) -> list[tuple[torch.nn.Module, str, torch.nn.Module]]:
    """Put layers that are fast at few tokens in place of plain linear ones; return where which stood."""
    from flowinfer.engine.packed.gemm import SkinnyLinear

    replaced: list[tuple[torch.nn.Module, str, torch.nn.Module]] = []
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is torch.nn.Linear:
                setattr(parent, name, SkinnyLinear(child))
                replaced.append((parent, name, child))
    return replaced


_PROBE_LENGTHS = (5, 3)
"""Rows of the check at load: two, so that rows that see one another are found out."""


def _probe_ids(model: Any) -> Tensor:
    size = model.get_input_embeddings().num_embeddings
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, size, (sum(_PROBE_LENGTHS),), generator=generator).to(model.device)


@torch.inference_mode()
def _probe_plain(model: Any) -> Tensor:
    """Return transformers' own logits at the ends of the probe's rows: (2, V_k)."""
    rows = torch.split(_probe_ids(model), list(_PROBE_LENGTHS))
    return torch.cat([model(input_ids=row[None], use_cache=False).logits[:, -1] for row in rows])


def _check(
    model: Any, expected: Tensor, active: Callable[[PackedCache], AbstractContextManager[None]]
) -> tuple[LayerShape, ...]:
    """Run the probe packed, in two chunks, and compare; return the shapes of the layers.

    Raises:
        NotPackable: it fails or differs.
    """
    cache = _ProbeCache(len(_PROBE_LENGTHS))
    ids, firsts = _probe_ids(model), (3, 1)
    rows = torch.split(ids, list(_PROBE_LENGTHS))
    chunks = (
        (torch.cat([row[:n] for row, n in zip(rows, firsts, strict=True)]), (0, 0), firsts),
        (
            torch.cat([row[n:] for row, n in zip(rows, firsts, strict=True)]),
            firsts,
            tuple(length - n for length, n in zip(_PROBE_LENGTHS, firsts, strict=True)),
        ),
    )
    logits = expected
    try:
        for tokens, starts, lengths in chunks:
            _, positions = cache.begin((0, 1), starts, lengths)
            wanted = torch.tensor(lengths, device=model.device).cumsum(0) - 1
            with torch.inference_mode(), active(cache):
                output = model(
                    input_ids=tokens[None],
                    position_ids=positions.to(model.device)[None],
                    use_cache=False,
                    logits_to_keep=wanted,
                )
            logits = output.logits[0]
    except UnsupportedAttention as error:
        raise NotPackable(str(error)) from error
    except (TypeError, ValueError, RuntimeError, KeyError, AttributeError, NotImplementedError) as error:
        raise NotPackable(f"a packed forward fails: {type(error).__name__}: {str(error)[:120]}") from error
    difference = float((logits.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-30))
    if not difference <= _TOLERANCE[model.dtype]:
        raise NotPackable(f"a packed forward differs from transformers' own by {difference:.1e}")
    _check_windows(model, cache.shapes)
    return cache.shapes


def _check_windows(model: Any, shapes: Sequence[LayerShape]) -> None:
    """Refuse a model whose layers have windows that its attention is not told of."""
    layers = DynamicCache(config=model.config).layers
    if len(layers) != len(shapes):
        raise NotPackable(f"{len(shapes)} layers attend where {len(layers)} are expected")
    for index, (layer, shape) in enumerate(zip(layers, shapes, strict=True)):
        window = int(getattr(layer, "sliding_window", 0) or 0)
        if window != shape.window:
            raise NotPackable(f"layer {index} sees {shape.window or 'all'} tokens where {window or 'all'} are expected")


class _ProbeCache:
    """A dense cache, on the model's device or not, that notes each layer's shape."""

    def __init__(self, rows: int) -> None:
        self._dense = DenseCache(rows)
        self._shapes: dict[int, LayerShape] = {}

    @property
    def shapes(self) -> tuple[LayerShape, ...]:
        """Return what the layers keep, in order."""
        return tuple(self._shapes[index] for index in sorted(self._shapes))

    def begin(self, rows: Sequence[int], starts: Sequence[int], lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Pass on."""
        return self._dense.begin(rows, starts, lengths)

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, attention: Attention) -> Tensor:
        """Note the shape and attend on the CPU."""
        self._shapes[attention.layer] = LayerShape(
            query.shape[1], keys.shape[1], keys.shape[2], values.shape[2], attention.window, attention.softcap
        )
        moved = [states.to("cpu") for states in (query, keys, values)]
        return self._dense.attend(moved[0], moved[1], moved[2], attention).to(query.device)
