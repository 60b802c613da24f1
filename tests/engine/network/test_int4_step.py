"""Maps of four bits with what stands around them: on CUDA devices, else in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from tests.engine.interpreting import CUDA, tl

# isort: split
import triton

from flowinfer.engine.network import triton_int4
from flowinfer.engine.network.triton_ends import Norm, Residual
from flowinfer.engine.network.triton_gemm import Tiles, added_linear, gated_linear, scaled_linear
from tests.engine.network.test_int4 import layer

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")  # Triton's interpreter
DEVICE, HALF = ("cuda", torch.bfloat16) if CUDA else ("cpu", torch.float16)  # the interpreter cannot multiply bfloat16
gpu = [pytest.mark.gpu, pytest.mark.skipif(not CUDA, reason="no CUDA device")]


@triton.jit
def numbers(packed: tl.tensor, PLANE: tl.constexpr, IS_BF16: tl.constexpr) -> tl.tensor:
    """Do what the kernel's own does in PTX, which the interpreter cannot read."""
    numbers = ((packed.to(tl.int32) >> (4 * PLANE)) & 15) + (128 if IS_BF16 else 0)
    return numbers.to(tl.float32).to(tl.bfloat16 if IS_BF16 else tl.float16)


@pytest.mark.parametrize(
    ("outputs", "inputs", "group", "tokens", "tiles"),
    [
        (40, 1280, -1, 1, Tiles(16, 256)),
        (48, 512, 128, 3, Tiles(32, 128, splits=2)),
        (24, 320, 32, 9, Tiles(16, 512)),
        (40, 320, 64, 20, Tiles(32, 128, splits=2)),
        *(
            pytest.param(*shape, tokens, tiles, marks=gpu)
            for shape in ((3584, 3584, 128), (200, 320, 32), (264, 640, 256))
            for tokens, tiles in (
                (1, Tiles(16, 1024, num_warps=8, num_stages=3, is_early=True)),
                (5, Tiles(32, 256, splits=2, num_warps=2, is_early=True)),
                (16, Tiles(32, 512)),
                (40, Tiles(64, 128, splits=2, num_stages=3)),
            )
        ),
    ],
)
def test_a_steps_maps_do_what_stands_around_them(
    outputs: int, inputs: int, group: int, tokens: int, tiles: Tiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scale of a norm, a bias, the gate, the residual and half the next norm; launches that begin early too."""
    if not CUDA:
        monkeypatch.setattr(triton_int4, "_numbers", numbers)
    generator = torch.Generator().manual_seed(1)
    own = layer(outputs, inputs, group).to(DEVICE)
    weight = own.unpacked(torch.float64)
    x, total, bias, norm = (
        torch.randn(shape, generator=generator).to(DEVICE, HALF)
        for shape in ((tokens, inputs), (tokens, outputs), (outputs,), (outputs,))
    )
    squares = x.float().square().sum(1, keepdim=True)
    half = Norm(x, squares, 1e-6)
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


@pytest.mark.parametrize("tokens", [3, 20, pytest.param(4, marks=gpu)])
@pytest.mark.parametrize("is_packed", [True, False])
def test_padding_at_the_end_is_not_read(is_packed: bool, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if not CUDA:
        monkeypatch.setattr(triton_int4, "_numbers", numbers)
    own = layer(32, 256, 128).to(DEVICE)
    weight = own.unpacked(HALF)
    x = torch.randn(tokens, 256, generator=torch.Generator().manual_seed(1)).to(DEVICE, HALF)
    x[-1] = torch.nan
    squares = torch.full((tokens, 1), 256.0, device=DEVICE)  # of states whose norm is they themselves
    rows = torch.arange(tokens, dtype=torch.int32, device=DEVICE)
    rows[-1] = -1
    tiles = Tiles(16, 256 if tokens <= 8 else 128, is_early=tokens == 4)
    found = scaled_linear(Norm(x, squares, 1e-6, rows), own.packed() if is_packed else weight, None, tiles)
    torch.testing.assert_close(found[:-1], x[:-1] @ weight.T, atol=2e-2, rtol=2e-2)
    assert found[-1].isfinite().all()
