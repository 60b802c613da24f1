"""Paged attention's Triton kernels against a dense softmax: compiled on CUDA devices, else in Triton's interpreter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.engine.interpreting import CUDA

# isort: split
from flowinfer.engine.caches import kernels, triton_attention, triton_prompts
from flowinfer.engine.caches.attention import Attention
from flowinfer.engine.caches.kernels import Paged
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
PLAIN = Attention(0, 0.3, 0, 0.0)


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
        kernels.naive_write(keys, values, Paged(cache, self.value_cache, *self._flat(tokens), self.table))

    def paged(self) -> Paged:
        """Return the rows' pages."""
        return Paged(self.key_cache, self.value_cache, self.rows, self.positions, self.table)


def check(case: Case, splits: int, tolerance: dict[str, float] = EXACT, **parameters: float) -> None:
    """Compare the kernels with the dense softmax."""
    attention = replace(PLAIN, **parameters)
    expected = kernels.naive_attention(case.query, case.paged(), attention)
    got = triton_attention.paged_attention(case.query, case.paged(), attention, splits)
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
    attention = Attention(0, dim**-0.5, window, softcap)
    expected = kernels.naive_attention(case.query, case.paged(), attention)
    got = triton_prompts.prompt_attention(case.query, case.paged(), attention)
    torch.testing.assert_close(got, expected, **tolerance)
    assert not got[case.rows < 0].any()


def test_half_precision_stays_near() -> None:
    check(Case(dtype=torch.float16), 2, HALF)


def test_writing_fills_exactly_the_tokens_slots() -> None:
    case = Case((5, 33), heads=3, dim=96)
    fused = torch.randn(len(case.rows), 9, 96, device=DEVICE)
    keys, values = fused[:, 3:6], fused[:, 6:]
    mine = [case.key_cache.clone(), case.value_cache.clone()]
    triton_attention.write_kv(keys, values, Paged(*mine, case.rows, case.positions, case.table))
    kernels.naive_write(keys, values, case.paged())
    torch.testing.assert_close(mine, [case.key_cache, case.value_cache], equal_nan=True, atol=0, rtol=0)


def test_no_tokens_are_no_launch() -> None:
    case = Case()
    paged = replace(case.paged(), rows=case.rows[:0], positions=case.positions[:0])
    got = triton_attention.paged_attention(case.query[:0], paged, PLAIN, 8)
    assert got.shape == case.query[:0].shape


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
def test_a_graph_writes_and_attends() -> None:
    case = Case((1, 64, 700), heads=4, group=7, dim=128, page=64, dtype=torch.bfloat16)
    keys, values = torch.randn(2, len(case.rows), 4, 128, dtype=torch.bfloat16, device="cuda")

    def step(query: Tensor) -> Tensor:
        kernels.write_kv(keys, values, case.paged())
        return kernels.paged_attention(query, case.paged(), PLAIN, 8)

    expected = step(case.query)
    graph, fed = torch.cuda.CUDAGraph(), torch.zeros_like(case.query)
    with torch.cuda.graph(graph):
        out = step(fed)
    fed.copy_(case.query)
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
