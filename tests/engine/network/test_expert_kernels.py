"""The kernels of mixtures of experts against plain torch: on CUDA devices, else in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.engine.interpreting import CUDA

# isort: split
from flowinfer.engine.network.triton_ends import Norm, Residual
from flowinfer.engine.network.triton_experts import Chosen, Tiles, added_experts, expert_linear, gated_experts, route

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")  # Triton's interpreter
DEVICE, HALF = ("cuda", torch.bfloat16) if CUDA else ("cpu", torch.float16)  # the interpreter cannot multiply bfloat16
EPS = 1e-5
gpu = [pytest.mark.gpu, pytest.mark.skipif(not CUDA, reason="no CUDA device")]


def randn(*shape: int, dtype: torch.dtype = HALF) -> Tensor:
    return torch.randn(*shape).to(DEVICE, dtype)


def near(found: Tensor, exact: Tensor) -> bool:
    return bool((found.double() - exact).norm() <= 0.012 * exact.norm())


def choices(tokens: int, experts: int, share: int) -> Tensor:
    """Return experts of each token, all different; the last token's are the first ones."""
    drawn = [torch.randperm(experts)[:share] for _ in range(tokens - 1)]
    return torch.stack([*drawn, torch.arange(share)]).to(DEVICE)


@pytest.mark.parametrize("is_normed", [True, False])
@pytest.mark.parametrize(("experts", "share"), [(8, 2), (60, 4)])
def test_the_largest_shares_are_chosen_and_padding_chooses_nobody(experts: int, share: int, is_normed: bool) -> None:
    torch.manual_seed(0)
    logits = randn(5, experts)
    found = route(logits, share, torch.tensor([0, 1, -1, 2, -1], device=DEVICE).int(), is_normed=is_normed)
    shares, expected = logits.float().softmax(-1).topk(share)
    real = torch.tensor([0, 1, 3], device=DEVICE)
    if is_normed:
        shares /= shares.sum(-1, keepdim=True)
    assert found.experts[[2, 4]].eq(-1).all()
    torch.testing.assert_close(found.experts[real].long(), expected[real])
    torch.testing.assert_close(found.shares[real], shares[real])


def test_of_equal_experts_the_first_is_chosen() -> None:
    found = route(torch.ones(1, 6, device=DEVICE, dtype=HALF), 3, None, is_normed=False)
    assert found.experts.tolist() == [[0, 1, 2]]
    torch.testing.assert_close(found.shares, torch.full((1, 3), 1 / 6, device=DEVICE))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, where a GPU is silent
def test_logits_that_are_no_numbers_choose_experts_that_exist() -> None:
    found = route(torch.full((2, 5), float("nan"), device=DEVICE, dtype=HALF), 3, None, is_normed=True)
    assert found.experts.ge(0).all() and found.experts.lt(5).all()


@pytest.mark.parametrize(
    ("tokens", "experts", "share", "inputs", "hidden", "tiles"),
    [
        (4, 16, 3, 64, 48, None),  # a program for each pair
        (5, 4, 2, 100, 40, Tiles(16, 32)),  # one for each expert
        (40, 3, 2, 64, 32, Tiles(32, 32)),  # more tokens of one than are multiplied at once
        *(
            pytest.param(tokens, experts, share, *sizes, None, marks=gpu)
            for tokens in (1, 4, 16, 33, 64)
            for experts, share, *sizes in ((128, 8, 2048, 768), (8, 2, 1024, 3584))
        ),
    ],
)
def test_a_step_passes_its_experts(
    tokens: int, experts: int, share: int, inputs: int, hidden: int, tiles: Tiles | None
) -> None:
    """Norm, gate and up, silu, down, shares, the residual and half the next norm; padding adds nothing."""
    torch.manual_seed(0)
    x, total, norm = randn(tokens, inputs), randn(tokens, inputs), randn(inputs)
    gate_up, down = randn(experts, 2 * hidden, inputs) / inputs**0.5, randn(experts, inputs, hidden) / hidden**0.5
    picked, shares = choices(tokens, experts, share), torch.rand(tokens, share).to(DEVICE)
    if tokens > 1:
        picked[1] = -1
    chosen = Chosen(picked.int(), shares, experts)
    squares = x.float().square().unflatten(1, (2, -1)).sum(-1)
    normed = x.double() * (x.double().square().mean(-1, keepdim=True) + EPS).rsqrt()
    expected = total.double()
    for token, own in enumerate(picked.tolist()):
        for expert, part in zip(own, shares[token], strict=True):
            if expert >= 0:
                gate, up = (gate_up[expert].double() @ normed[token]).chunk(2)
                expected[token] += part * (down[expert].double() @ (torch.nn.functional.silu(gate) * up))
    gated = gated_experts(Norm(x, squares, EPS), gate_up, chosen, tiles)
    counters = torch.zeros(inputs, dtype=torch.int32, device=DEVICE)
    then = added_experts(gated, down, chosen, Residual(total, norm, EPS), counters, tiles)
    assert near(total, expected) and near(then.states, expected * norm.double())
    assert near(then.squares.sum(1), expected.square().sum(1))


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("tokens", [3, 70])
def test_pairs_are_multiplied_with_their_experts(tokens: int, dtype: torch.dtype) -> None:
    """Of tokens that all of their experts read, and of pairs that have their own; of more than a step's too."""
    torch.manual_seed(0)
    x, weight, chosen = randn(tokens, 40, dtype=dtype), randn(5, 24, 40, dtype=dtype), choices(tokens, 5, 2)
    first = expert_linear(x, weight, chosen)
    expected = torch.einsum("tk,tcnk->tcn", x.double(), weight.double()[chosen]).flatten(0, 1)
    assert near(first, expected)
    back = weight.transpose(1, 2)  # (E, N, K) of other sizes, not contiguous
    second = expert_linear(first, back, chosen)
    assert near(second, torch.einsum("pn,pkn->pk", first.double(), back.double()[chosen.reshape(-1)]))
