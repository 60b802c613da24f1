"""The kernels of a written-out decoding step against plain torch: on CUDA devices, else in Triton's interpreter."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.engine.interpreting import CUDA

# isort: split
from flowinfer.engine.caches import kernels
from flowinfer.engine.caches.attention import Attention
from flowinfer.engine.caches.kernels import Paged
from flowinfer.engine.caches.triton_step import HeadNorms, step_attention
from flowinfer.engine.network import triton_rows
from flowinfer.engine.network.triton_ends import Norm, Residual
from flowinfer.engine.network.triton_gemm import Tiles, added_linear, gated_linear, scaled_linear, skinny_linear

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")  # Triton's interpreter
DEVICE = "cuda" if CUDA else "cpu"
HALF = {"atol": 1e-2, "rtol": 1e-2}
EPS = 1e-5


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, device=DEVICE, dtype=torch.float16)


def normed(states: Tensor, weight: Tensor) -> Tensor:
    """Return transformers' RMS norm, in float32."""
    exact = states.float()
    return exact * (exact.square().mean(-1, keepdim=True) + EPS).rsqrt() * weight.float()


def half_normed(states: Tensor, weight: Tensor, parts: int) -> Norm:
    squares = states.float().square().unflatten(1, (parts, -1)).sum(-1)
    return Norm(states * weight, squares, EPS)


TILES = (Tiles(16, 32), Tiles(32, 64, splits=3), Tiles(16, 16, splits=2))
if CUDA:
    TILES = (*TILES, Tiles(32, 64, splits=2, is_early=True), Tiles(64, 64, is_early=True), Tiles(128, 64))


@pytest.mark.parametrize("tokens", [1, 20, 64])
@pytest.mark.parametrize("tiles", TILES, ids=str)
@pytest.mark.parametrize(("outputs", "inputs"), [(64, 192), (50, 100)])
class TestLinear:
    """Maps with what stands at their ends."""

    def test_after_a_norm(self, outputs: int, inputs: int, tiles: Tiles, tokens: int) -> None:
        torch.manual_seed(0)
        states, norm = randn(tokens, inputs), 1 + randn(inputs) / 4
        weight, bias = randn(outputs, inputs) / inputs**0.5, randn(outputs)
        got = scaled_linear(half_normed(states, norm, 4), weight, bias, tiles)
        expected = normed(states, norm) @ weight.float().T + bias.float()
        torch.testing.assert_close(got.float(), expected, **HALF)

    def test_gated(self, outputs: int, inputs: int, tiles: Tiles, tokens: int) -> None:
        torch.manual_seed(0)
        states, norm = randn(tokens, inputs), 1 + randn(inputs) / 4
        weight = randn(2 * outputs, inputs) / inputs**0.5
        got = gated_linear(half_normed(states, norm, 2), weight, tiles)
        gate, up = (normed(states, norm) @ weight.float().T).chunk(2, dim=1)
        torch.testing.assert_close(got.float(), torch.nn.functional.silu(gate) * up, **HALF)

    def test_added_to_the_residual(self, outputs: int, inputs: int, tiles: Tiles, tokens: int) -> None:
        torch.manual_seed(0)
        x, weight, total = randn(tokens, inputs), randn(outputs, inputs) / inputs**0.5, randn(tokens, outputs)
        norm = 1 + randn(outputs) / 4
        expected = total.float() + x.float() @ weight.float().T
        half = added_linear(x, weight, Residual(total, norm, EPS), tiles)
        torch.testing.assert_close(total.float(), expected, **HALF)
        wanted = torch.arange(tokens - 1, -1, -1, device=DEVICE)
        got = triton_rows.finish(half, wanted)
        torch.testing.assert_close(got.float(), normed(total, norm)[wanted], **HALF)

    def test_plain(self, outputs: int, inputs: int, tiles: Tiles, tokens: int) -> None:
        torch.manual_seed(0)
        x, weight = randn(tokens, 2 * inputs)[:, :inputs], randn(outputs, inputs) / inputs**0.5
        for bias in (None, weight[:, 0].contiguous()):
            expected = x.float() @ weight.float().T + (0 if bias is None else bias.float())
            torch.testing.assert_close(skinny_linear(x, weight, bias, tiles).float(), expected, **HALF)


def test_embedding_leaves_half_a_norm() -> None:
    torch.manual_seed(0)
    table, weight = randn(7, 24), randn(24)
    ids = torch.tensor([3, 3, 6], device=DEVICE)
    states, half = triton_rows.embed(ids, table, weight, EPS, 5)
    torch.testing.assert_close(states, table[ids], atol=0, rtol=0)
    got = triton_rows.finish(half, torch.arange(3, device=DEVICE))
    torch.testing.assert_close(got.float(), normed(states, weight), **HALF)


def test_rows_of_a_prompt_are_normed_added_and_gated() -> None:
    torch.manual_seed(0)
    states, added, weight = randn(5, 40), randn(5, 40), randn(40)
    total = states + added
    torch.testing.assert_close(triton_rows.norm(states, weight, EPS).float(), normed(states, weight), **HALF)
    got = triton_rows.norm(states, weight, EPS, added=added)
    torch.testing.assert_close(states, total, **HALF)
    torch.testing.assert_close(got.float(), normed(total, weight), **HALF)
    gate, up = total.float().chunk(2, dim=1)
    torch.testing.assert_close(triton_rows.gate(total).float(), torch.nn.functional.silu(gate) * up, **HALF)


class Step:
    """Rows with keys in shuffled pages, and some new tokens of each; slots that nobody wrote are NaN."""

    def __init__(
        self,
        *,
        heads: int = 2,
        group: int = 3,
        dim: int = 32,
        page: int = 16,
        is_normed: bool = False,
        cached: tuple[int, ...] = (0, 16, 37, 100),
        new: tuple[int, ...] = (3, 1, 2, 1),
    ) -> None:
        torch.manual_seed(0)
        self.heads, self.group, self.dim = heads, group, dim
        most = max(before + now for before, now in zip(cached, new, strict=True))
        width = -(-most // page)
        self.table = (torch.randperm(len(cached) * width).view(-1, width) + 1).int().to(DEVICE)
        shape = (len(cached) * width + 1, heads, page, dim)
        self.key_cache = torch.full(shape, float("nan"), dtype=torch.float16, device=DEVICE)
        self.value_cache = self.key_cache.clone()
        old = [(row, p) for row, length in enumerate(cached) for p in range(length)]
        paged = Paged(self.key_cache, self.value_cache, *self._flat(old), self.table)
        kernels.naive_write(randn(len(old), heads, dim), randn(len(old), heads, dim), paged)
        flat = [(r, b + p) for r, (b, now) in enumerate(zip(cached, new, strict=True)) for p in range(now)]
        self.rows, self.positions = self._flat([*flat, (-1, 0), (-1, 3)])
        self.qkv = randn(len(self.rows), (heads * group + 2 * heads) * dim)
        angles = torch.arange(most, device=DEVICE)[:, None] / 100 ** (torch.arange(dim // 2, device=DEVICE) * 2 / dim)
        self.turns = torch.stack((angles.cos(), angles.sin()), dim=1).half()
        self.norms = HeadNorms(randn(dim), randn(dim), EPS) if is_normed else None
        self.paged = Paged(self.key_cache, self.value_cache, self.rows, self.positions, self.table)

    def _flat(self, tokens: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        rows, positions = torch.tensor(tokens, dtype=torch.int32, device=DEVICE).unbind(1)
        return rows.contiguous(), positions.contiguous()

    def turned(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values as transformers makes them, in float32."""
        parts = self.qkv.float().view(len(self.qkv), -1, self.dim)
        query, keys, values = parts.split((self.heads * self.group, self.heads, self.heads), dim=1)
        if self.norms:
            query, keys = normed(query, self.norms.query), normed(keys, self.norms.key)
        cos, sin = (self.turns[self.positions.long()].float().repeat(1, 1, 2)[:, None]).unbind(2)

        def turn(x: Tensor) -> Tensor:
            low, high = x.chunk(2, dim=-1)
            return x * cos + torch.cat((-high, low), dim=-1) * sin

        return turn(query).half(), turn(keys).half(), values.half()

    def expected(self, window: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return what is attended, and both caches."""
        query, keys, values = self.turned()
        paged = replace(self.paged, keys=self.key_cache.clone(), values=self.value_cache.clone())
        kernels.naive_write(keys, values, paged)
        out = kernels.naive_attention(query, paged, Attention(0, 0.3, window, 0.0))
        return out.flatten(1), paged.keys, paged.values

    def check(self, splits: int, window: int = 0, *, is_early: bool = False) -> None:
        """Compare one launch with turning, writing and attending one after the other."""
        expected = self.expected(window)
        out = step_attention(
            self.qkv,
            self.paged,
            self.turns,
            self.norms,
            num_heads=self.heads * self.group,
            scaling=0.3,
            window=window,
            splits=splits,
            is_early=is_early,
        )
        for got, wanted in zip((out, self.key_cache, self.value_cache), expected, strict=True):
            torch.testing.assert_close(got, wanted, equal_nan=True, **HALF)


@pytest.mark.parametrize("splits", [1, 2, 8])
@pytest.mark.parametrize("is_normed", [True, False])
def test_a_step_turns_writes_and_attends(splits: int, is_normed: bool) -> None:
    Step(is_normed=is_normed).check(splits)


@pytest.mark.parametrize("window", [1, 2, 16, 33, 1000])
def test_a_steps_window_counts_the_token_itself(window: int) -> None:
    Step().check(2, window)


@pytest.mark.parametrize(("heads", "group", "dim", "page"), [(1, 1, 32, 16), (4, 7, 64, 64), (1, 2, 96, 64)])
def test_a_step_of_any_heads_and_dimensions(heads: int, group: int, dim: int, page: int) -> None:
    Step(heads=heads, group=group, dim=dim, page=page).check(2)


def test_a_step_keeps_nothing_that_it_was_given() -> None:
    """A loop that is made anew needs the memory of its pages back."""
    step = Step(cached=(3,), new=(1,))
    given = [weakref.ref(states) for states in (step.key_cache, step.qkv, step.turns)]
    step.check(1)
    del step
    gc.collect()
    assert [states() for states in given] == [None] * 3


def test_a_step_may_bring_many_tokens_of_one_row() -> None:
    Step(cached=(20, 3), new=(19, 21)).check(2, window=9)


@pytest.mark.parametrize("is_normed", [True, False])
def test_a_prompts_heads_are_turned_and_written(is_normed: bool) -> None:
    step = Step(is_normed=is_normed)
    query, _, _ = step.turned()
    _, keys, values = step.expected(0)
    num_heads = step.heads * step.group
    triton_rows.turn_and_write(step.qkv, step.paged, step.turns, step.norms, num_heads)
    torch.testing.assert_close(step.key_cache, keys, equal_nan=True, **HALF)
    torch.testing.assert_close(step.value_cache, values, equal_nan=True, **HALF)
    got = step.qkv.view(len(query), -1, step.dim)[:, :num_heads]
    torch.testing.assert_close(got[step.rows >= 0], query[step.rows >= 0], **HALF)


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="no CUDA device")
@pytest.mark.parametrize("splits", [1, 8])
@pytest.mark.parametrize("is_early", [True, False])
def test_a_step_of_the_papers_shape_on_cuda(splits: int, is_early: bool) -> None:
    Step(heads=4, group=7, dim=128, page=64, cached=(511, 64, 2000), new=(1, 4, 1)).check(splits, is_early=is_early)
