"""Layers of four bits in the packed engine: merged like plain ones, and the kernels against their unpacked weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from flowinfer.backends.int4 import Int4Linear, packed
from flowinfer.backends.row_session import RowSession
from flowinfer.engine.loops.session import PackedSession
from flowinfer.engine.network.gemm import MOST_STEP_TOKENS, SkinnyInt4, int4_linear
from flowinfer.engine.network.merging import Lead, merge_linears, split_linears
from flowinfer.engine.network.runner import HeadRunner
from tests.engine.network.test_runner import CONFIGS, network

CUDA = torch.cuda.is_available()
gpu = [pytest.mark.gpu, pytest.mark.skipif(not CUDA, reason="no CUDA device")]


def layer(outputs: int, inputs: int, group: int = 32, *, bias: bool = False, seed: int = 0) -> Int4Linear:
    """Return a random layer; a group of -1 is the whole input."""
    generator = torch.Generator().manual_seed(seed)
    num_groups = 1 if group < 0 else -(-inputs // group)
    numbers = torch.randint(0, 16, (outputs, inputs), generator=generator, dtype=torch.int8)
    zeros = torch.randint(0, 16, (outputs, num_groups), generator=generator)
    scales = (torch.rand(outputs, num_groups, generator=generator) + 0.5) / (6 * inputs**0.5)
    offset = torch.randn(outputs, generator=generator) if bias else None
    return packed(numbers, zeros, scales.half(), offset, group if group > 0 else 1 << 30)


def four_bit(model: Any) -> Any:
    """Put random layers of four bits in place of a model's, all but the last."""
    for parent in list(model.model.layers.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                own = layer(child.out_features, child.in_features, bias=child.bias is not None, seed=child.out_features)
                if own.bias is not None:
                    own.bias.data = own.bias.data.to(child.bias.dtype)
                setattr(parent, name, own.to(child.weight.device))
    return model


@pytest.mark.parametrize("name", ["Qwen2", "Llama", "Qwen3", "Gemma3"])
def test_a_head_of_four_bits_is_packed_with_its_layers_merged(name: str) -> None:
    own = four_bit(network(CONFIGS[name]))
    reference, session = RowSession(own), PackedSession(HeadRunner(copy.deepcopy(own)), 2, 128)
    assert any(
        isinstance(part, Lead) and isinstance(part.linear, Int4Linear) for part in session._runner.model.modules()
    )
    rows, others = session.add([[1, 2, 3, 4], [5]]), reference.add([[1, 2, 3, 4], [5]])
    for chunk in ([7, 8], [9]):
        session.feed({rows[0]: chunk, rows[1]: [6]})
        reference.feed({others[0]: chunk, others[1]: [6]})
        torch.testing.assert_close(session.logits(rows), reference.logits(others), atol=2e-4, rtol=1e-3)


def test_merged_layers_are_split_into_what_they_were() -> None:
    model = four_bit(network(CONFIGS["Qwen2"]))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert merge_linears(model) == 4
    split_linears(model)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_layers_of_other_groups_are_not_merged() -> None:
    model = four_bit(network(CONFIGS["Llama"]))
    model.model.layers[0].self_attn.k_proj = layer(32, 64, 64)
    assert merge_linears(model) == 3


def test_the_operation_tells_the_compiler_the_truth() -> None:
    own = layer(5, 300, bias=True)
    made = torch.empty(3, 300, device="meta")
    out = int4_linear(made, *(part.to("meta") for part in (own.words, own.scales, own.zeros)), None, own.group)
    assert out.shape == own(torch.randn(3, 300)).shape


@pytest.mark.filterwarnings("default")  # the compiler's, such as TF32 being off
@pytest.mark.parametrize(
    ("outputs", "inputs", "group", "bias", "dtype"),
    [
        pytest.param(4608, 3584, 128, True, torch.bfloat16, marks=gpu),
        pytest.param(3584, 18944, 128, False, torch.bfloat16, marks=gpu),
        pytest.param(100, 320, 32, True, torch.float16, marks=gpu),
        pytest.param(272, 896, 64, False, torch.bfloat16, marks=gpu),
        pytest.param(64, 1280, -1, False, torch.float16, marks=gpu),
    ],
)
def test_few_and_many_tokens_match_unpacked_weights_on_cuda(
    outputs: int, inputs: int, group: int, bias: bool, dtype: torch.dtype
) -> None:
    torch._dynamo.reset()  # what other tests compiled counts against a limit
    own = layer(outputs, inputs, group, bias=bias).cuda()
    if own.bias is not None:
        own.bias.data = own.bias.data.to(dtype)
    weight = own.unpacked(torch.float32).double()
    compiled = torch.compile(SkinnyInt4(own), fullgraph=True, dynamic=True)
    for tokens in (1, 3, 16, 33, MOST_STEP_TOKENS, MOST_STEP_TOKENS + 1):
        x = torch.randn(tokens, inputs, device="cuda", dtype=dtype)
        exact = x.double() @ weight.T + (0 if own.bias is None else own.bias.double())
        error = (compiled(x).double() - exact).norm() / exact.norm()
        assert error <= 1.1 * (own(x).double() - exact).norm() / exact.norm() + 1e-6


@pytest.mark.parametrize("dtype", [pytest.param(torch.bfloat16, marks=gpu), pytest.param(torch.float32, marks=gpu)])
def test_graphs_of_a_head_of_four_bits_give_its_own_logits(dtype: torch.dtype) -> None:
    own = four_bit(network(CONFIGS["Qwen2"]).to("cuda", dtype))
    reference, runner = RowSession(copy.deepcopy(own)), HeadRunner(own)
    assert (runner._written is not None) == (dtype is torch.bfloat16)
    session = PackedSession(runner, 2, 128)
    rows, others = session.add([[1, 2, 3, 4], [5]]), reference.add([[1, 2, 3, 4], [5]])
    tolerance = {"atol": 2e-3, "rtol": 1e-3} if dtype is torch.float32 else {"atol": 0.5, "rtol": 0.1}
    for step in range(8):
        session.feed({rows[0]: [step], rows[1]: [6 + step]})
        reference.feed({others[0]: [step], others[1]: [6 + step]})
        torch.testing.assert_close(session.logits(rows), reference.logits(others), **tolerance)
