"""Mixtures of experts: our way of computing them against transformers' own, and in a graph on a GPU."""

from __future__ import annotations

import copy
import statistics
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GptOssConfig, MixtralConfig, Qwen2MoeConfig, Qwen3MoeConfig

from flowinfer.backends.row_session import RowSession
from flowinfer.engine.loops.session import PackedSession
from flowinfer.engine.network.experts import expert_linear, mixed, routing, unroutable
from flowinfer.engine.network.llama_weights import Experts, Mlp, weights_of
from flowinfer.engine.network.merging import merge_linears
from flowinfer.engine.network.probing import NotPackable
from flowinfer.engine.network.runner import HeadRunner, _refuse_on_gpu
from tests.engine.network.test_runner import _COMMON, network

CONFIGS: dict[str, Any] = {
    "Mixtral": MixtralConfig(**_COMMON, num_local_experts=4),
    "Qwen3-MoE": Qwen3MoeConfig(
        **_COMMON, num_experts=8, num_experts_per_tok=3, moe_intermediate_size=40, head_dim=16, norm_topk_prob=True
    ),
    "Qwen2-MoE": Qwen2MoeConfig(
        **_COMMON,
        num_experts=6,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=48,
        norm_topk_prob=False,
    ),
}
"""The last one also has an expert that all tokens pass, and shares that do not sum to 1."""
CUDA = torch.cuda.is_available()
gpu = [pytest.mark.gpu, pytest.mark.skipif(not CUDA, reason="no CUDA device")]


@pytest.mark.parametrize("own", ["eager", "grouped_mm"])
@pytest.mark.parametrize("name", CONFIGS)
def test_routed_experts_give_transformers_own_logits(name: str, own: str) -> None:
    model = network(CONFIGS[name])
    model.set_experts_implementation(own)
    ids = torch.randint(0, 300, (2, 30), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model(input_ids=ids).logits
        with routing(model.config):
            torch.testing.assert_close(model(input_ids=ids).logits, expected, atol=2e-4, rtol=1e-3)
        assert model.config._experts_implementation == own


@settings(max_examples=30, deadline=None)
@given(tokens=st.integers(1, 5), share=st.integers(1, 3), num_experts=st.integers(1, 4), seed=st.integers(0, 99))
def test_every_pair_is_multiplied_with_its_expert(tokens: int, share: int, num_experts: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(tokens, 6, generator=generator), torch.randn(num_experts, 5, 6, generator=generator)
    chosen = torch.randint(0, num_experts, (tokens, share), generator=generator)
    pairs = [(token, expert) for token, own in enumerate(chosen.tolist()) for expert in own]
    expected = torch.stack([weight[expert] @ x[token] for token, expert in pairs])
    torch.testing.assert_close(expert_linear(x, weight, chosen), expected)


def test_the_operation_tells_the_compiler_the_truth() -> None:
    arguments = (torch.randn(3, 12), torch.randn(4, 5, 12), torch.tensor([[0, 3], [1, 2], [2, 0]]))
    torch.library.opcheck(expert_linear, arguments, test_utils=("test_schema", "test_faketensor"))


def test_a_gpu_keeps_its_graphs_from_layers_of_other_libraries() -> None:
    model = network(CONFIGS["Mixtral"])
    model.hf_quantizer, model.quantization_method = object(), "bitsandbytes"
    with pytest.raises(NotPackable, match="of bitsandbytes, which was never tried in a graph"):
        _refuse_on_gpu(model)


def test_experts_of_another_kind_say_why_they_cannot_be_routed() -> None:
    odd = network(GptOssConfig(**_COMMON, head_dim=16, num_local_experts=4))
    assert unroutable(odd) == "its experts are not gated matrices without bias"
    assert all(unroutable(network(config)) is None for config in CONFIGS.values())


def test_layers_of_experts_are_found_beside_plain_ones() -> None:
    config = copy.deepcopy(CONFIGS["Qwen3-MoE"])
    config.mlp_only_layers, config.norm_topk_prob = [0], False
    model = network(config)
    merge_linears(model)
    weights = weights_of(model)
    assert weights is not None and weights.is_mixture
    plain, experts = (layer.mlp for layer in weights.layers)
    assert isinstance(plain, Mlp) and isinstance(experts, Experts)
    assert (experts.num_chosen, experts.is_normed, len(experts.router)) == (3, False, 8)
    states = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(mixed(experts.block, states), model.model.layers[1].mlp(states[None])[0])


def test_experts_that_all_tokens_share_keep_their_modules() -> None:
    model = network(CONFIGS["Qwen2-MoE"])
    merge_linears(model)
    assert weights_of(model) is None


@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=gpu), pytest.param(torch.bfloat16, marks=gpu)])
@pytest.mark.parametrize("name", CONFIGS)
def test_graphs_follow_the_router(name: str, dtype: torch.dtype) -> None:
    """Each step of a session is a recorded graph: other tokens go to other experts in the same one.

    In bfloat16 rounding sends a token to another expert now and then.
    """
    own = network(CONFIGS[name]).to("cuda", dtype)
    reference, session = RowSession(copy.deepcopy(own)), PackedSession(HeadRunner(own), 3, 128)
    prompts = [[1, 2, 3, 4, 5], [9], [7, 8]]
    rows, others = session.add(prompts), reference.add(prompts)
    differences = []
    for step in range(12):
        chunks = [[(17 * step + row) % 300] for row in range(3)]
        session.feed(dict(zip(rows, chunks, strict=True)))
        reference.feed(dict(zip(others, chunks, strict=True)))
        found, expected = session.logits(rows).float(), reference.logits(others).float()
        differences += ((found - expected).norm(dim=1) / expected.norm(dim=1)).tolist()
    assert statistics.median(differences) <= (0.05 if dtype is torch.bfloat16 else 1e-4)
