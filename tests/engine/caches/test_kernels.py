"""Paged attention's Triton kernels against a dense softmax: compiled on CUDA devices, else in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.engine.interpreting import CUDA

# isort: split
from flowinfer.engine.caches import kernels, triton_attention, triton_prompts
from flowinfer.engine.network import triton_gemm

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")  # Triton's interpreter
DEVICE = "cuda" if CUDA else "cpu"
EXACT = {"atol": 1e-5, "rtol": 1e-4}
HALF = {"atol": 2e-2, "rtol": 2e-2}
gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not CUDA, reason="no CUDA device"),
    pytest.mark.filterwarnings("default"),  # the compiler's, such as TF32 being off
]
PLAIN = {"scaling": 0.3, "window": 0, "softcap": 0.0}


class Case:
    """Rows of given lengths in shuffled pages, unwritten slots NaN, and the flat tokens that end each row."""

    def __init__(
        self,
        lengths: tuple[int, ...] = (1, 16, 37, 100),
        new: int = 2,
        *,
        heads: int = 2,
        group: int = 3,
        dim: int = 64,
        page: int = 16,
        dtype: torch.dtype = torch.float32,
        device: str = DEVICE,
    ) -> None:
        torch.manual_seed(len(lengths) + dim)
        most = -(-max(lengths) // page)
        pages = len(lengths) * most + 1
        self.table = torch.randperm(pages - 1)[: len(lengths) * most].view(-1, most).int().to(device) + 1
        shape = (pages, heads, page, dim)
        self.key_cache = torch.full(shape, float("nan"), dtype=dtype, device=device)
        self.value_cache = self.key_cache.clone()
        every = [(row, p) for row, length in enumerate(lengths) for p in range(length)]
        self._write(every, heads, dim)
        last = [(row, p) for row, length in enumerate(lengths) for p in range(max(0, length - new), length)]
        last = [*last[:2], (-1, 0), *last[2:], (-1, 5)]
        self.rows, self.positions = self._flat(last)
        self.query = torch.randn(len(last), 2 * heads * group, dim, dtype=dtype, device=device)[:, ::2]

    def _flat(self, tokens: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        rows, positions = torch.tensor(tokens, dtype=torch.int32, device=self.table.device).unbind(1)
        return rows.contiguous(), positions.contiguous()

    def _write(self, tokens: list[tuple[int, int]], heads: int, dim: int) -> None:
        cache = self.key_cache
        keys, values = torch.randn(2, len(tokens), heads, dim, dtype=cache.dtype, device=cache.device)
        kernels._naive_write(keys, values, cache, self.value_cache, *self._flat(tokens), self.table)

    def state(self) -> tuple[Tensor, ...]:
        """Return the arguments of both attentions."""
        return self.query, self.key_cache, self.value_cache, self.rows, self.positions, self.table


def check(case: Case, splits: int, tolerance: dict[str, float] = EXACT, **parameters: float) -> None:
    """Compare the kernels with the dense softmax."""
    options = {**PLAIN, **parameters}
    expected = kernels.naive_attention(*case.state(), **options)
    got = triton_attention.paged_attention(*case.state(), **options, splits=splits)
    torch.testing.assert_close(got, expected, **tolerance)
    assert not got[case.rows < 0].any()


@pytest.mark.parametrize("splits", [1, 2, 3, 8])
def test_splits_change_nothing(splits: int) -> None:
    check(Case(), splits)


@pytest.mark.parametrize(("heads", "group", "dim"), [(1, 1, 32), (2, 7, 64), (1, 2, 96), (3, 1, 128), (1, 20, 256)])
def test_any_heads_groups_and_dimensions(heads: int, group: int, dim: int) -> None:
    check(Case((5, 40), heads=heads, group=group, dim=dim), 2, scaling=dim**-0.5)


@pytest.mark.parametrize("page", [16, 64, 128])
def test_any_page(page: int) -> None:
    check(Case((3, 130), page=page), 2)


@pytest.mark.parametrize("window", [1, 16, 33, 1000])
def test_a_window_counts_the_token_itself(window: int) -> None:
    check(Case(), 2, window=window)


def test_softcap_comes_before_the_mask() -> None:
    check(Case(), 2, softcap=1.5, window=20)


def test_a_chunk_of_a_prompt_is_causal() -> None:
    check(Case((19, 4), new=19), 1)


@pytest.mark.parametrize(
    ("lengths", "new", "heads", "group", "dim", "window", "softcap"),
    [
        ((19, 4, 70), 70, 1, 7, 32, 0, 0.0),  # rows end and begin within a program
        ((100, 3, 3, 3), 60, 2, 1, 64, 33, 0.0),  # what was read before; keys before the window are not loaded
        ((37, 20), 16, 1, 20, 48, 0, 1.5),
    ],
)
def test_neighbours_of_a_prompt_share_keys(
    lengths: tuple[int, ...], new: int, heads: int, group: int, dim: int, window: int, softcap: float
) -> None:
    dtype, tolerance = (torch.float16, HALF) if CUDA else (torch.float32, EXACT)
    case = Case(lengths, new, heads=heads, group=group, dim=dim, dtype=dtype)
    options = {"scaling": dim**-0.5, "window": window, "softcap": softcap}
    expected = kernels.naive_attention(*case.state(), **options)
    got = triton_prompts.prompt_attention(*case.state(), **options)
    torch.testing.assert_close(got, expected, **tolerance)
    assert not got[case.rows < 0].any()


def test_half_precision_stays_near() -> None:
    check(Case(dtype=torch.float16), 2, HALF)


def test_writing_fills_exactly_the_tokens_slots() -> None:
    case = Case((5, 33), heads=3, dim=96)
    fused = torch.randn(len(case.rows), 9, 96, device=DEVICE)
    keys, values = fused[:, 3:6], fused[:, 6:]
    mine = [case.key_cache.clone(), case.value_cache.clone()]
    flat = (case.rows, case.positions, case.table)
    triton_attention.write_kv(keys, values, *mine, *flat)
    kernels._naive_write(keys, values, case.key_cache, case.value_cache, *flat)
    torch.testing.assert_close(mine, [case.key_cache, case.value_cache], equal_nan=True, atol=0, rtol=0)


@pytest.mark.parametrize("tokens", [1, 5, 16])
@pytest.mark.parametrize(
    "tiles", [triton_gemm.Tiles(16, 32), triton_gemm.Tiles(32, 64, splits=3), triton_gemm.Tiles(16, 16, splits=2)]
)
@pytest.mark.parametrize(("outputs", "inputs"), [(64, 192), (50, 100)])
def test_few_tokens_linear(outputs: int, inputs: int, tiles: triton_gemm.Tiles, tokens: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(tokens, 2 * inputs, device=DEVICE, dtype=torch.float16)[:, :inputs]
    weight = torch.randn(outputs, inputs, device=DEVICE, dtype=torch.float16)
    for bias in (None, weight[:, 0].contiguous()):
        got = triton_gemm.skinny_linear(x, weight, bias, tiles)
        exact = x.float() @ weight.float().T + (0 if bias is None else bias.float())
        torch.testing.assert_close(got.float(), exact, atol=0.02, rtol=2e-3)


def test_no_tokens_are_no_launch() -> None:
    case = Case()
    none = [t[:0] for t in (case.query, case.rows, case.positions)]
    caches = (case.key_cache, case.value_cache)
    got = triton_attention.paged_attention(none[0], *caches, none[1], none[2], case.table, **PLAIN, splits=8)
    assert got.shape == none[0].shape


def test_the_operation_tells_the_compiler_the_truth() -> None:
    """Schema, mutation and fake shapes, as torch checks them; on the CPU the plain torch path runs."""
    case = Case((3, 20))
    case.key_cache.nan_to_num_()
    case.value_cache.nan_to_num_()
    keys, values = torch.randn(2, len(case.rows), 2, 64, device=DEVICE)
    query, *rest = case.state()
    torch.library.opcheck(
        kernels.write_and_attend,
        (query, keys, values, *rest, 0.3, 0, 0.0, 2),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.parametrize("splits", [1, 8])
@pytest.mark.parametrize("dim", [64, 96, 128, 256])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
class TestOnCuda:
    """The compiled kernels with the paper's page and groups."""

    pytestmark = gpu

    def test_same_as_the_dense_softmax(self, dtype: torch.dtype, dim: int, splits: int) -> None:
        case = Case((1, 64, 700, 2049), heads=4, group=7, dim=dim, page=64, dtype=dtype)
        check(case, splits, EXACT if dtype == torch.float32 else HALF, scaling=dim**-0.5)


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="no CUDA device")
@pytest.mark.filterwarnings("default")
def test_a_graph_replays_and_a_compiled_function_matches() -> None:
    case = Case((1, 64, 700), heads=4, group=7, dim=128, page=64, dtype=torch.bfloat16)
    keys, values = torch.randn(2, len(case.rows), 4, 128, dtype=torch.bfloat16, device="cuda")
    query, *rest = case.state()

    def step(scaled: Tensor) -> Tensor:
        return kernels.write_and_attend(scaled * 2, keys, values, *rest, 0.1, 0, 0.0, 8) + 1

    expected = step(query)
    torch.testing.assert_close(torch.compile(step, fullgraph=True)(query), expected, **HALF)
    graph, fed = torch.cuda.CUDAGraph(), torch.zeros_like(query)
    with torch.cuda.graph(graph):
        out = step(fed)
    fed.copy_(query)
    graph.replay()
    torch.testing.assert_close(out, expected, **HALF)


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="no CUDA device")
def test_early_launches_wait_for_their_inputs() -> None:
    torch.manual_seed(0)
    weights = torch.randn(12, 1024, 1024, dtype=torch.bfloat16, device="cuda").div_(32).unbind(0)
    fed = torch.randn(4, 1024, dtype=torch.bfloat16, device="cuda")

    def chain(tiles: triton_gemm.Tiles) -> Tensor:
        x = fed
        for weight in weights:
            x = triton_gemm.skinny_linear(x, weight, None, tiles)
        return x

    early = triton_gemm.Tiles(16, 256, is_early=True)
    expected = chain(triton_gemm.Tiles(16, 256))
    torch.testing.assert_close(chain(early), expected, atol=0, rtol=0)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = chain(early)
    for _ in range(20):
        graph.replay()
        torch.testing.assert_close(out, expected, atol=0, rtol=0)
