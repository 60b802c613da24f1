"""The linear kernel for few tokens against torch: compiled on CUDA devices, else in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flowinfer.engine.network.gemm import SkinnyLinear, skinny_linear

CUDA = torch.cuda.is_available()


@pytest.mark.parametrize("bias", [True, False])
def test_a_replaced_layer_maps_as_before(bias: bool) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(12, 5, bias=bias), torch.randn(2, 3, 12)
    torch.testing.assert_close(SkinnyLinear(layer)(x), layer(x))


def test_the_operation_tells_the_compiler_the_truth() -> None:
    x, weight = torch.randn(3, 12), torch.randn(5, 12)
    torch.library.opcheck(skinny_linear, (x, weight, None), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="no CUDA device")
@pytest.mark.filterwarnings("default")  # the compiler's, such as TF32 being off
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("outputs", "inputs"), [(4608, 3584), (3584, 18944), (100, 72), (2048, 2000)])
def test_few_and_many_tokens_match_on_cuda(outputs: int, inputs: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()  # what other tests compiled counts against a limit
    layer = nn.Linear(inputs, outputs, device="cuda", dtype=dtype)
    compiled = torch.compile(SkinnyLinear(layer), fullgraph=True, dynamic=True)
    with torch.no_grad():
        for tokens in (1, 4, 16, 17):
            x = torch.randn(tokens, inputs, device="cuda", dtype=dtype)
            exact = F.linear(x.double(), layer.weight.double(), layer.bias.double())
            error = (compiled(x).double() - exact).norm() / exact.norm()
            assert error <= 1.1 * (layer(x).double() - exact).norm() / exact.norm() + 1e-6
