"""One head's network, run over packed tokens; and the question whether it can be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import astuple
from functools import partial
from importlib.util import find_spec
from threading import RLock
from typing import Any

import torch
from torch import Tensor

from flowinfer.backends.caches import FOREIGN
from flowinfer.backends.int4 import Int4Linear
from flowinfer.backends.known import KnownNetwork
from flowinfer.backends.remembered import recall, remember
from flowinfer.engine.caches.attention import LayerShape, PackedCache, attending, number_layers
from flowinfer.engine.caches.pages import ChainedCache, ChainedForward, PagedCache, Pages, page_bytes
from flowinfer.engine.network.experts import has_experts, routing, unroutable
from flowinfer.engine.network.llama import Written, llama_forward
from flowinfer.engine.network.llama_ahead import settle
from flowinfer.engine.network.merging import merge_linears, split_linears
from flowinfer.engine.network.probing import NotPackable, check, gives, plain_logits, refuse
from flowinfer.engine.network.segments import Segment, run_segment, segments_of
from flowinfer.startup import STARTUP

_HALF = (torch.bfloat16, torch.float16)
_WORTH_COMPILING = 500_000_000
"""Bytes of weights from which on a model's layers are compiled."""
_WIDEST_HEAD = 256
"""Largest head dimension that the attention kernels hold on chip."""


class _Turn:
    """A lock that its holder may take again; what is copied whole has one of its own."""

    def __init__(self) -> None:
        self._lock = RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __deepcopy__(self, _: object) -> _Turn:
        return _Turn()


class HeadRunner:
    """A transformers model over flat tokens.

    On a GPU its linear layers give way to ones that are fast at few tokens, and its layers are compiled, one of each
    kind for all. On a CPU a forward that is written out takes the place of its modules where there is one.

    Args:
        model: a decoder-only transformers model, whose linear layers are merged in place, or a KnownNetwork.
        cuts: the first layer of each further link where it is to be a chain; see `segments_of`.
    Raises:
        NotPackable: with the reason.
    """

    def __init__(self, model: Any, cuts: Sequence[int] = ()) -> None:  # transformers' models share no public type
        self.model = model
        self.device: torch.device = model.device
        self._busy = _Turn()
        """Of the one thread that runs the modules, whose attention and hooks are its cache's meanwhile."""
        self._keep: Callable[[Tensor], Tensor] | None = None
        self._routing: Callable[[], AbstractContextManager[None]] = nullcontext
        self._compiled: list[Any] = []
        self._written: Written | None = None
        self._cuts = tuple(cuts)
        self.segments: Sequence[Segment] = ()
        """Links of the chain that it is; none where it is whole."""
        with STARTUP.waiting_for("compile", "kernels"):
            settle()
        if isinstance(model, KnownNetwork):
            self._take_known(model)
        else:
            self._take(model)
        self.kv_bytes_per_token = sum(
            shape.num_kv_heads * (shape.key_size + shape.value_size) * model.dtype.itemsize for shape in self.layers
        )

    def _take_known(self, model: KnownNetwork) -> None:
        """Take a network that is written out; it gives the logits that were kept."""
        passed = model.passed
        assert passed.logits is not None, "they are known"
        self.layers = tuple(LayerShape(*layer) for layer in passed.layers)
        if self.device.type == "cuda":
            _refuse_without_triton()
            _refuse_heads(self.layers)
        try:
            model.merged()
        except KeyError as error:
            raise NotPackable(f"its files lack {error}") from error
        self._write_out(passed.logits.to(self.device))
        if not self._written:
            raise NotPackable("its logits are not those that it has")

    def _take(self, model: Any) -> None:  # a transformers model
        """Take transformers' network, with what can be made quicker in it."""
        refuse(model)
        if self.device.type == "cuda":
            _refuse_on_gpu(model)
            if has_experts(model):
                self._routing = partial(routing, model.config)
        number_layers(model)
        passed = recall(model)
        with STARTUP.waiting_for("check", "plain"):
            expected = plain_logits(model) if passed.logits is None else passed.logits.to(self.device)
        merge_linears(model)
        self._cut()
        try:
            with STARTUP.waiting_for("check", "packed"):
                known = tuple(LayerShape(*layer) for layer in passed.layers)
                self.layers = known or check(model, expected, self.logits)
        except NotPackable:
            split_linears(model)  # other engines will run it
            raise
        if self.device.type == "cuda":
            _refuse_heads(self.layers)
        if not self.segments:
            self._write_out(expected)
        if self.device.type == "cuda" and not self._written:
            self._speed_up(expected)
        if not passed.layers:
            is_plain = self._written and not has_experts(model)  # whose files lay experts out in another way
            numbers = self._written.numbers if self._written and is_plain else None
            is_tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
            found = {"layers": tuple(map(astuple, self.layers)), "logits": expected}
            remember(model, **found, numbers=numbers, is_tied=is_tied)
        model.get_output_embeddings().register_forward_pre_hook(self._before_last)

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
        if self._written:
            states = self._written.states(ids, positions, wanted, cache)
            return self._written.logits(keep(states) if keep else states)
        if self.segments:
            return self._chain(ids, positions, wanted, cache, keep)
        with self._keeping(keep), self._active(cache, self.device):
            output = self.model(
                input_ids=ids[None], position_ids=positions[None], use_cache=False, logits_to_keep=wanted
            )
        return output.logits[0]  # type: ignore[no-any-return]  # the model is untyped

    @torch.inference_mode()
    def link(
        self,
        index: int,
        states: Tensor,
        positions: Tensor,
        wanted: Tensor,
        cache: PackedCache,
        keep: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Run one link of the chain, the whole model where it is no chain.

        Args:
            index: of the link.
            states: ids (T,) for the first one, hidden states (T, D) for the others; all tensors are on its device.
            positions: as of `logits`.
            wanted: as of `logits`.
            cache: keys and values of its layers.
            keep: as of `logits`, for the last one.
        Returns:
            (T, D) hidden states, or (W, V_k) logits from the last one.
        """
        if not self.segments:
            return self.logits(states, positions, wanted, cache, keep)
        segment = self.segments[index]
        with self._keeping(keep), self._active(cache, segment.device):
            return run_segment(segment, states, positions, wanted)

    def new_cache(self, pages: Pages) -> PagedCache | ChainedCache:
        """Return keys and values in pages, on the devices where its layers are."""
        if not self.segments:
            return PagedCache(self.layers, pages, self.model.dtype, self.device)
        return ChainedCache(
            [
                PagedCache(self._shapes(segment), pages, self.model.dtype, segment.device, first=segment.first)
                for segment in self.segments
            ]
        )

    def page_bytes(self) -> dict[torch.device, int]:
        """Return the bytes of one page of keys and values on each of its devices."""
        if not self.segments:
            return {self.device: page_bytes(self.layers, self.model.dtype)}
        sizes: dict[torch.device, int] = {}
        for segment in self.segments:
            size = page_bytes(self._shapes(segment), self.model.dtype)
            sizes[segment.device] = sizes.get(segment.device, 0) + size
        return sizes

    def _shapes(self, segment: Segment) -> Sequence[LayerShape]:
        return self.layers[segment.first : segment.first + len(segment.layers)]

    @torch.inference_mode()
    def read(self, ids: Tensor, positions: Tensor, cache: PackedCache) -> None:
        """Run the model for its keys and values alone (prefill): as `logits`, without the last matrix."""
        if self._written:
            self._written.read(ids, positions, cache)
            return
        if self.segments:
            self._chain(ids, positions, torch.zeros_like(positions[:1]), cache)
            return
        with self._active(cache, self.device):
            self.model.base_model(input_ids=ids[None], position_ids=positions[None], use_cache=False)

    def _chain(
        self,
        ids: Tensor,
        positions: Tensor,
        wanted: Tensor,
        cache: PackedCache,
        keep: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Run all links one after another, as `logits` runs a whole model."""
        states = ids
        for index, segment in enumerate(self.segments):
            own = cache.parts[index] if isinstance(cache, ChainedForward) else cache
            here = [given.to(segment.device, non_blocking=True) for given in (states, positions, wanted)]
            states = self.link(index, here[0], here[1], here[2], own, keep if segment.is_last else None)
        return states

    @contextmanager
    def _keeping(self, keep: Callable[[Tensor], Tensor] | None) -> Iterator[None]:
        """Let the last hidden states go through a function before the last matrix."""
        with self._busy:
            self._keep = keep
            try:
                yield
            finally:
                self._keep = None  # it holds on to its loop's memory, which a loop that ran out of it must give back

    @contextmanager
    def _active(self, cache: PackedCache, device: torch.device) -> Iterator[None]:
        """Attend through a cache; on a GPU run the compiled layers, which other callers of the model do not see.

        Kernels go to the current device, whichever it was before.
        """
        is_gpu = device.type == "cuda"
        with (
            self._busy,
            torch.cuda.device(device) if is_gpu else nullcontext(),
            attending(cache, self.model.config),
            self._routing(),
        ):
            for layer, call in self._compiled:
                layer._compiled_call_impl = call
            try:
                yield
            finally:
                for layer, _ in self._compiled:
                    layer._compiled_call_impl = None

    def _cut(self) -> None:
        """Make the views that a chain consists of, anew where modules of the model have been replaced."""
        self.segments = segments_of(self.model, self._cuts)

    def _write_out(self, expected: Tensor) -> None:
        """Install the written-out forward where there is one and it gives the model's own logits."""
        try:
            self._written = llama_forward(self.model, self.layers)
            is_right = not self._written or self._is_right(expected)
        except torch.OutOfMemoryError:
            raise
        except FOREIGN:  # a release of transformers whose modules have other parts: they serve as they are
            is_right = False
        if not is_right:
            self._written = None

    def _is_right(self, expected: Tensor) -> bool:
        """Return whether the written-out forward gives the model's own logits, for steps and for prompts."""
        assert self._written
        most = self._written.most_step_tokens
        try:
            for self._written.most_step_tokens in (most, 0):
                if not gives(self.model, self.layers, expected, self.logits):
                    return False
        finally:
            self._written.most_step_tokens = most
        return True

    def _speed_up(self, expected: Tensor) -> None:
        """Install what is fast on a GPU, each part only if the check at load still holds with it."""
        replaced = _speed_up_linears(self.model) if self.model.dtype in _HALF else []
        self._cut()
        try:
            with STARTUP.waiting_for("check", "linear layers"):
                check(self.model, expected, self.logits)
        except NotPackable:
            for parent, name, child in replaced:
                setattr(parent, name, child)
            self._cut()
        self._compile()
        try:
            if self._compiled:
                with STARTUP.waiting_for("compile", ""):
                    check(self.model, expected, self.logits)
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
        layers: Any = next((stack for stack in stacks if len(stack) == len(self.layers)), ())
        if self.segments:
            layers = [layer for segment in self.segments for layer in segment.layers]
        for layer in layers:
            layer.compile(fullgraph=True, dynamic=True)
            self._compiled.append((layer, layer._compiled_call_impl))
            layer._compiled_call_impl = None

    def _before_last(self, module: torch.nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        del module
        return None if self._keep is None else (self._keep(arguments[0][0])[None],)


def runner_of(model: Any) -> HeadRunner | str:  # a transformers model, or a KnownNetwork
    """Return the model's runner, made once and kept with it, or the reason why there is none."""
    known: HeadRunner | str | None = getattr(model, "flow_runner", None)
    if known is None:
        try:
            known = HeadRunner(model)
        except NotPackable as error:
            known = runner_of(model.whole()) if isinstance(model, KnownNetwork) else str(error)
        object.__setattr__(model, "flow_runner", known)
    return known


def _refuse_on_gpu(model: Any) -> None:
    if getattr(model, "hf_quantizer", None) is not None:
        method = getattr(model, "quantization_method", "another library")
        raise NotPackable(f"its layers are of {getattr(method, 'value', method)}, which was never tried in a graph")
    if has_experts(model) and (reason := unroutable(model)):
        raise NotPackable(reason)
    _refuse_without_triton()


def _refuse_without_triton() -> None:
    if find_spec("triton") is None:
        raise NotPackable("Triton is not installed")


def _refuse_heads(shapes: Sequence[LayerShape]) -> None:
    for shape in shapes:
        if shape.key_size != shape.value_size or shape.key_size > _WIDEST_HEAD:
            raise NotPackable(f"its heads have keys of {shape.key_size} and values of {shape.value_size} numbers")


def _speed_up_linears(model: Any) -> list[tuple[torch.nn.Module, str, torch.nn.Module]]:
    """Put layers that are fast at few tokens in place of plain linear ones; return where which stood."""
    from flowinfer.engine.network.gemm import SkinnyInt4, SkinnyLinear

    fast: dict[type, Callable[[Any], torch.nn.Module]] = {torch.nn.Linear: SkinnyLinear, Int4Linear: SkinnyInt4}
    replaced: list[tuple[torch.nn.Module, str, torch.nn.Module]] = []
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) in fast:
                setattr(parent, name, fast[type(child)](child))
                replaced.append((parent, name, child))
    return replaced
