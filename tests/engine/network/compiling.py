"""Compile what a GPU launches for one that is not here; print each kernel, whether it waits, and a hash of its PTX.

    python -m tests.engine.network.compiling 9 0

Forwards are run over tensors without memory, as llama_ahead.py runs them: of four bits, of experts and plain ones.
"""

from __future__ import annotations

import copy
import hashlib
import sys
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from flowinfer.engine.caches import triton_attention, triton_prompts
from flowinfer.engine.caches.attention import Attention, LayerShape
from flowinfer.engine.caches.launching import Ahead, compile_for_absent
from flowinfer.engine.loops import triton_feeding
from flowinfer.engine.loops.choosing import Choice
from flowinfer.engine.loops.feeding import Ends
from flowinfer.engine.loops.fusing import FusedChoice
from flowinfer.engine.loops.outcome import Ring
from flowinfer.engine.loops.sampling import Draws
from flowinfer.engine.loops.states import HeadStates, RowStates
from flowinfer.engine.loops.tables import IdTables
from flowinfer.engine.network import triton_experts, triton_int4
from flowinfer.engine.network.llama_ahead import _asked, _Network
from flowinfer.engine.network.llama_gpu import GpuLlamaForward
from flowinfer.engine.network.llama_weights import weights_of
from flowinfer.engine.network.merging import merge_linears
from flowinfer.fusion.shared import SharedVocabulary
from flowinfer.fusion.vocab import from_json
from tests.engine.network.test_experts import CONFIGS as MIXTURES
from tests.engine.network.test_int4 import four_bit, layer
from tests.engine.network.test_runner import CONFIGS as PLAIN
from tests.fusion import toys

CPU, META = torch.device("cpu"), torch.device("meta")
STEPS = ((4, 8), (64, 1))
"""Flat tokens, and splits of keys."""


class Collecting(Ahead):
    """Keeps what is to be compiled."""

    def __init__(self, capability: tuple[int, int]) -> None:
        super().__init__(CPU)
        self.jobs: list[tuple[Any, tuple[object, ...], dict[str, object]]] = []
        self._capability = capability

    @property
    def capability(self) -> tuple[int, int]:
        """Return what the absent GPU can do."""
        return self._capability

    def _begin(self, kernel: Any, arguments: tuple[object, ...], options: dict[str, object]) -> Future[None]:
        self.jobs.append((kernel, arguments, options))
        return Future()


def main() -> None:
    """Compile for the GPU that the arguments name."""
    major, minor = map(int, sys.argv[1:])
    compile_for_absent((major, minor))
    collecting = Collecting((major, minor))
    with collecting.compiling(), torch.inference_mode():
        for name in ("Qwen3", "Qwen3-MoE", "four bits"):
            _forward(name)
        _caches()
        _others()
        _loop()
    for kernel, arguments, options in collecting.jobs:
        ptx = kernel.warmup(*arguments, grid=(1,), **options).asm["ptx"]
        told = hashlib.sha256(ptx.encode()).hexdigest()[:16]
        print(kernel.__name__, "waits" if "griddepcontrol.wait" in ptx else "-", told)


def _forward(name: str) -> None:
    """Run the steps of a model, and a prompt of a plain one."""
    config = copy.deepcopy(MIXTURES[name] if name in MIXTURES else PLAIN["Qwen2" if name == "four bits" else name])
    config.num_hidden_layers = 1
    with META:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    model = four_bit(model) if name == "four bits" else model
    merge_linears(model)
    weights = weights_of(model)
    assert weights is not None
    shape = LayerShape(config.num_attention_heads, config.num_key_value_heads, 16, 16, 0, 0.0)
    forward = GpuLlamaForward(weights, [shape])
    forward.tables.append(torch.empty(4096, 2, 8, dtype=torch.bfloat16, device=META))
    network = _Network(weights, shape)
    for tokens, splits in STEPS:
        forward.logits(forward.states(*_asked(network, tokens, splits)))
    if name == "Qwen3":
        forward.states(*_asked(network, 65, 1))


def _caches() -> None:
    """Write keys and values, and attend as compiled modules and prompts do."""
    keys = torch.empty(4, 2, 64, 64, dtype=torch.bfloat16, device=META)
    flat = torch.empty(128, dtype=torch.int32, device=META)
    paged = triton_attention.Paged(keys, keys, flat, flat, torch.empty(1, 4, dtype=torch.int32, device=META))
    query = torch.empty(128, 8, 64, dtype=torch.bfloat16, device=META)
    triton_attention.write_kv(query[:, :2], query[:, 2:4], paged)
    for attention in (Attention(0, 0.1, 0, 0.0), Attention(0, 0.1, 33, 2.0)):
        triton_attention.paged_attention(query, paged, attention, 2)
        triton_prompts.prompt_attention(query, paged, attention)


def _others() -> None:
    """Unpack four bits, and multiply pairs of token and expert."""
    own = layer(64, 256, 64).to(META)
    triton_int4.unpacked(own.words, own.scales, own.zeros, 256, 64, torch.bfloat16)
    weight = torch.empty(4, 48, 64, dtype=torch.bfloat16, device=META)
    x = torch.empty(4, 64, dtype=torch.bfloat16, device=META)
    triton_experts.expert_linear(x, weight, torch.empty(4, 2, dtype=torch.int64, device=META))


def _loop() -> None:
    """Feed, choose, tell and commit."""
    heads, rows = 2, 4
    vocabulary = SharedVocabulary([toys.head(from_json(toys.byte_level().to_str()), [0])] * heads)
    choose = FusedChoice(vocabulary, [0.5, 0.5], [0, 1], rows, torch.bfloat16)
    states = RowStates(rows, CPU)
    choice: Choice | None = None
    draws: tuple[Draws | None, ...] = (None, states.draws(rows, has_nucleus=False))
    for one in draws:
        logits = [choose.buffer(k, states.utf8) for k in range(heads)]
        choice = choose(logits, states.utf8, one, is_told=True, num_tops=0)
    held, tables, ring = HeadStates(heads, rows, CPU), IdTables.of(vocabulary), Ring(heads, rows, CPU)
    triton_feeding.feed(held, tables.ids[0], 0, rows, 8)
    triton_feeding.advance(held, rows, 8)
    ends = Ends(vocabulary.eos_slot, torch.full((heads, 1), 99))
    assert choice is not None
    commit: Callable[..., None] = triton_feeding.commit
    commit(choice, held, tables, states, vocabulary.guard.table(CPU), ends, ring, torch.zeros(rows, dtype=torch.int64))


if __name__ == "__main__":
    main()
