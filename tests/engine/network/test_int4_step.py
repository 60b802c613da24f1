"""Maps of four bits with what stands around them: on CUDA devices, one token's also in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from tests.engine.interpreting import CUDA

# isort: split
from flowinfer.engine.network.triton_gemm import Norm, Residual
from flowinfer.engine.network.triton_int4 import Tiles, added_linear, gated_linear, scaled_linear
from tests.engine.network.test_int4 import layer

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")  # Triton's interpreter
DEVICE = "cuda" if CUDA else "cpu"
gpu = [pytest.mark.gpu, pytest.mark.skipif(not CUDA, reason="no CUDA device")]


@pytest.mark.parametrize(
    ("outputs", "inputs", "group", "tokens", "early"),
    [
        (40, 1280, -1, 1, 0),
        (48, 512, 128, 1, 0),
        *(
            pytest.param(*shape, tokens, early, marks=gpu)
            for shape in ((3584, 3584, 128), (200, 320, 32), (264, 640, 256))
            for tokens in (1, 5, 16)
            for early in (0, 64)
        ),
    ],
)
def test_a_steps_maps_do_what_stands_around_them(
    outputs: int, inputs: int, group: int, tokens: int, early: int
) -> None:
    """The scale of a norm, a bias, the gate, the residual and half the next norm; launches that begin early too."""
    generator = torch.Generator().manual_seed(1)
    own = layer(outputs, inputs, group).to(DEVICE)
    weight = own.unpacked(torch.float64)
    x, total, bias, norm = (
        torch.randn(shape, generator=generator).to(DEVICE, torch.bfloat16)
        for shape in ((tokens, inputs), (tokens, outputs), (outputs,), (outputs,))
    )
    squares = x.float().square().sum(1, keepdim=True)
    half, tiles = Norm(x, squares, 1e-6), Tiles(16, num_warps=8, is_few=True, early=early)
    plain = x.double() @ weight.T
    normed = plain * (squares.double() / inputs + 1e-6).rsqrt()

    def near(found: torch.Tensor, exact: torch.Tensor) -> bool:
        return bool((found.double() - exact).norm() <= 0.012 * exact.norm())

    assert near(scaled_linear(half, own.packed(), bias, tiles), normed + bias.double())
    gate, up = normed.chunk(2, dim=1)
    assert near(gated_linear(half, own.packed(), tiles), functional.silu(gate) * up)
    expected = total.double() + plain
    then = added_linear(x, own.packed(), Residual(total, norm, 1e-6), tiles)
    assert near(total, expected) and near(then.states, expected * norm.double())
    assert near(then.squares.sum(1), expected.square().sum(1))
