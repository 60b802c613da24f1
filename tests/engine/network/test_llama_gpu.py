"""The forward written out for GPUs against transformers' own: on CUDA devices, else in Triton's interpreter."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from tests.engine.interpreting import CUDA

# isort: split
from flowinfer.backends.row_session import RowSession
from flowinfer.engine.caches.attention import PackedCache
from flowinfer.engine.caches.pages import PagedCache, Pages
from flowinfer.engine.caches.tiles import flat_places
from flowinfer.engine.network import triton_int4
from flowinfer.engine.network.llama_gpu import GpuLlamaForward
from flowinfer.engine.network.llama_weights import weights_of
from flowinfer.engine.network.merging import merge_linears
from flowinfer.engine.network.runner import HeadRunner
from tests.engine.network.test_experts import CONFIGS as MIXTURES
from tests.engine.network.test_int4 import four_bit
from tests.engine.network.test_int4_step import numbers
from tests.engine.network.test_llama import WRITTEN as PLAIN
from tests.engine.network.test_runner import CONFIGS as OTHERS
from tests.engine.network.test_runner import network

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")  # Triton's interpreter
DEVICE = "cuda" if CUDA else "cpu"
NEAR = {torch.bfloat16: 0.06, torch.float16: 0.02 if CUDA else 0.01}
CONFIGS = OTHERS | MIXTURES | {"plain layer first": copy.deepcopy(MIXTURES["Qwen3-MoE"])}
CONFIGS["plain layer first"].mlp_only_layers = [0]
gpu = [pytest.mark.gpu, pytest.mark.skipif(not CUDA, reason="no CUDA device")]
WRITTEN = (*PLAIN, "Qwen3-MoE", *(pytest.param(name, marks=gpu) for name in ("Mixtral", "plain layer first")))
FEEDS = ((20, 3), (1, 2), (0, 3)) if not CUDA else ((20, 3), (1, 1), (2, 4), (1, 0), (0, 3), (60, 1), (1, 1))
"""Ids that each of two rows gets, one forward after the other."""


def _dtype(name: str) -> torch.dtype:
    """Return bfloat16 where it can be; its rounding sends tokens to other experts than float32 does."""
    return torch.bfloat16 if CUDA and name in PLAIN else torch.float16


class Rows:
    """Two rows in pages, fed through a written-out forward."""

    def __init__(self, name: str, *, is_packed: bool = False) -> None:
        model = four_bit(network(CONFIGS[name])) if is_packed else network(CONFIGS[name])
        layers, dtype = HeadRunner(copy.deepcopy(model)).layers, _dtype(name)
        merge_linears(model.to(DEVICE, dtype))
        weights = weights_of(model)
        assert weights is not None
        self.forward = GpuLlamaForward(weights, layers)
        pages = Pages(4, 2, 128)
        self._cache = PagedCache(layers, pages, dtype, torch.device(DEVICE))
        for row in (0, 1):
            pages.reserve(row, 128)
        self._cache.sync()
        self._lengths = [0, 0]

    @torch.inference_mode()
    def feed(self, chunks: list[list[int]]) -> Tensor:
        """Return the logits at the ends of what two rows got, and of a token of padding's row before."""
        ids, positions, cache = self._flat(chunks)
        wanted = torch.tensor([len(chunk) for chunk in chunks], device=DEVICE).cumsum(0) - 1
        return self.forward.logits(self.forward.states(ids, positions, wanted.clamp_min(0), cache)).float()

    @torch.inference_mode()
    def read(self, chunks: list[list[int]]) -> None:
        """Keep the keys and values of what two rows get."""
        self.forward.read(*self._flat(chunks))

    def _flat(self, chunks: list[list[int]]) -> tuple[Tensor, Tensor, PackedCache]:
        """Return ids and positions, and where they lie; the last one is padding."""
        counts = [len(chunk) for chunk in chunks]
        rows, positions = flat_places((0, 1), self._lengths, counts)
        self._lengths = [length + count for length, count in zip(self._lengths, counts, strict=True)]
        ids = torch.tensor([*chunks[0], *chunks[1], 0], device=DEVICE)
        rows, positions = (
            torch.cat((one, torch.tensor([end]))).to(DEVICE) for one, end in ((rows, -1), (positions, 0))
        )
        return ids, positions, self._cache.at(rows, positions, 2)


@pytest.mark.parametrize("most_step_tokens", [64, 0], ids=["step", "prompt"])
@pytest.mark.parametrize("name", WRITTEN)
def test_rows_give_transformers_own_logits(name: str, most_step_tokens: int) -> None:
    compare(Rows(name), RowSession(network(CONFIGS[name])), _dtype(name), most_step_tokens)


@pytest.mark.parametrize("most_step_tokens", [64, 0], ids=["step", "prompt"])
def test_rows_of_four_bits_give_those_of_unpacked_weights(
    most_step_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups of 32; prompts unpack a layer's weights, or read them as they are where they are short."""
    if not CUDA:
        monkeypatch.setattr(triton_int4, "_numbers", numbers)
    packed = Rows("Qwen2", is_packed=True)
    compare(packed, RowSession(four_bit(network(CONFIGS["Qwen2"]))), _dtype("Qwen2"), most_step_tokens)


def compare(rows: Rows, reference: RowSession, dtype: torch.dtype, most_step_tokens: int) -> None:
    """Feed both prompts, several tokens of a row at once, rows that get nothing, and a token of padding."""
    generator = torch.Generator().manual_seed(1)
    rows.forward.most_step_tokens = most_step_tokens
    for index, counts in enumerate(FEEDS):
        chunks = [torch.randint(0, 300, (count,), generator=generator).tolist() for count in counts]
        if index:
            reference.feed(dict(enumerate(chunks)))
        else:
            reference.add(chunks)
        got, expected = rows.feed(chunks).cpu(), reference.logits([0, 1])
        for row, count in enumerate(counts):
            if count:
                assert (got[row] - expected[row]).norm() <= NEAR[dtype] * expected[row].norm()


@pytest.mark.parametrize("name", WRITTEN[:1])
def test_ids_that_are_read_leave_what_ids_leave_whose_logits_are_wanted(name: str) -> None:
    """Of the last layer they need keys and values alone."""
    read, whole = Rows(name), Rows(name)
    read.forward.most_step_tokens = whole.forward.most_step_tokens = 0
    read.read([[5, 6, 7, 8, 9], [20, 21]])
    whole.feed([[5, 6, 7, 8, 9], [20, 21]])
    assert torch.equal(read.feed([[10], [22]])[:2], whole.feed([[10], [22]])[:2])


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="no CUDA device")
@pytest.mark.parametrize("name", [*PLAIN, "Mixtral", "Qwen3-MoE", "plain layer first"])
def test_bfloat16_on_a_gpu_is_written_out_and_float32_is_not(name: str) -> None:
    own = network(CONFIGS[name])
    assert isinstance(HeadRunner(copy.deepcopy(own).to("cuda", torch.bfloat16))._written, GpuLlamaForward)
    assert HeadRunner(own.to("cuda"))._written is None
