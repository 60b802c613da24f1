"""A device's loop of which every kernel runs in Triton's interpreter writes the oracle's texts, in float32.

Kernels have tests of their own; here they are launched as a loop launches them: one after another, over the same rows,
pages and states, with padding, rows of unequal lengths and heads of all kinds.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.engine.interpreting import CUDA

# isort: split
from flowinfer.backends.hf import HfModel
from flowinfer.engine.base import Observer, decode
from flowinfer.engine.caches import pages, triton_attention, triton_prompts
from flowinfer.engine.caches.attention import Attention
from flowinfer.engine.caches.kernels import Paged
from flowinfer.engine.loops import lockstep, place, triton_feeding, triton_fusing
from flowinfer.engine.loops.decoder import PackedDecoder
from flowinfer.engine.loops.feeding import Fed
from flowinfer.engine.loops.fusing import FusedChoice
from flowinfer.engine.loops.heads import Heads
from flowinfer.engine.loops.outcome import Ring
from flowinfer.engine.loops.states import HeadStates
from flowinfer.engine.loops.tables import IdTables
from flowinfer.engine.network import llama_gpu
from flowinfer.engine.network.llama_gpu import GpuLlamaForward
from flowinfer.engine.network.llama_weights import weights_of
from flowinfer.engine.network.runner import HeadRunner
from flowinfer.planning.plan import Plan, members
from flowinfer.spec import ModelSpec
from tests.backends import tiny
from tests.engine.loops.test_decoder import Models, results, rows_of, told
from tests.engine.network.test_experts import CONFIGS
from tests.engine.oracle import decode_plainly
from tests.engine.plans import Listener, member, mix, one_step
from tests.fusion import toys

pytestmark = [
    pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),  # Triton's interpreter
    pytest.mark.skipif(CUDA, reason="test_cuda.py tests loops on CUDA devices"),
]
TEXTS = ("hello", "小明有3个苹果, she said, and then there was a little girl", "x + 1")
DRAWN = ({}, {"temperature": 0.9, "seed": 3}, {"temperature": 1.1, "top_p": 0.8})


def mixture() -> HfModel:
    """Return a mixture of eight experts, of which a token passes three."""
    own, config = toys.byte_level(), copy.deepcopy(CONFIGS["Qwen3-MoE"])
    config.vocab_size = max(own.get_vocab().values()) + 4
    torch.manual_seed(5)
    network = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    return HfModel(ModelSpec(name="M", ref="tiny/M"), network, tiny.wrapped(own))


@pytest.fixture(scope="module")
def models() -> Models:
    """Return models of all kinds; W's layers see the last 8 tokens, C keeps its modules, M is a mixture."""
    made = [tiny.model("qwen2", "A"), tiny.model("llama", "B", seed=1), tiny.model("mistral", "W", seed=3), mixture()]
    made.append(tiny.model("gpt2", "C", seed=2, tokenizer=toys.byte_level(330)))
    return {model.name: model for model in made}


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what is asked of a CPU's tensors be done as it is for a GPU's."""

    def feed(states: HeadStates, tables: IdTables, head: int, rows: int, tile: int) -> Fed:
        return Fed(*triton_feeding.feed(states, tables.ids[head], head, rows, tile))

    def commit(*given: Any) -> None:
        (ring,) = (one for one in given if isinstance(one, Ring))
        ring.tell(given[0])
        triton_feeding.commit(*given)

    def attend(query: Tensor, paged: Paged, attention: Attention, splits: int) -> Tensor:
        if not splits:
            return triton_prompts.prompt_attention(query, paged, attention)
        return triton_attention.paged_attention(query, paged, attention, splits)

    for module in (place, lockstep):
        monkeypatch.setattr(module, "feed", feed)
        monkeypatch.setattr(module, "advance", triton_feeding.advance)
    monkeypatch.setattr(lockstep, "commit", commit)
    monkeypatch.setattr(pages, "write_kv", triton_attention.write_kv)
    for attending in (pages, llama_gpu):
        monkeypatch.setattr(attending, "paged_attention", attend)
    monkeypatch.setattr(place, "splits_for", lambda tokens: 2)  # each is a program, which takes milliseconds here
    monkeypatch.setattr(triton_prompts, "_QUERIES", 32)
    monkeypatch.setattr(triton_fusing, "BLOCK", 256)
    monkeypatch.setattr(triton_fusing, "PART", 256)


def interpreted(
    plan: Plan, models: Models, batch: int, observer: Observer, placement: Sequence[int] | None = None
) -> PackedDecoder:
    """Return a decoder over forwards and a choice that are a GPU's."""
    own = [models[one.model] for one in members(plan.steps[0].source)]
    heads = Heads(plan.steps[0], own, observer=observer)
    runners = [HeadRunner(copy.deepcopy(model.transformers_model)) for model in own]
    for runner in runners:
        weights = weights_of(runner.model)
        runner._written = GpuLlamaForward(weights, runner.layers) if weights else None
    flat = heads.mixer.flat_mean
    assert flat is not None, "kernels are for weighted means"
    choose = FusedChoice(heads.vocabulary, flat.weights, flat.heads, batch, torch.float32)
    return PackedDecoder(heads, runners, choose, batch=batch, num_pages=[8] * len(own), placement=placement)


@pytest.mark.parametrize(
    ("source", "max_tokens", "placement"),
    [
        (member("A"), 2, None),
        pytest.param(mix("A", "B", "C"), 4, None, marks=pytest.mark.slow),
        pytest.param(mix("W", "M"), 4, None, marks=pytest.mark.slow),
        pytest.param(mix("A", "W"), 4, (0, 1), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_loop_of_kernels_writes_the_oracles_texts(
    models: Models, source: Any, max_tokens: int, placement: Sequence[int] | None
) -> None:
    """Greedy and drawn rows side by side, of which a listener hears every token."""
    plan = one_step(source, max_tokens=max_tokens)
    step, texts = plan.steps[0], TEXTS if placement is None and max_tokens > 2 else TEXTS[:2]
    rows = [
        replace(row, decoding=step.decoding.model_copy(update=options))
        for row, options in zip(rows_of(plan, texts), DRAWN, strict=False)
    ]
    own = [models[one.model] for one in members(step.source)]
    expected = decode_plainly(step, own, rows)
    heard = Listener()
    found = results(decode(interpreted(plan, models, 2, heard, placement), rows))
    assert {key: told(one) for key, one in found.items()} == {f"q{k}": told(one) for k, one in enumerate(expected)}
    for key, one in found.items():
        assert len([event for event in heard.events[key] if event.piece is not None]) == one.tokens
