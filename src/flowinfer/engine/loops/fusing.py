"""From all heads' logits to the choice: three kernels for a weighted mean of heads on one CUDA device, else torch.

Both give what `SharedVocabulary.lift`, the fuser, the UTF-8 guard and `choose_slots` give.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from importlib.util import find_spec

import torch
from torch import Tensor

from flowinfer.engine.loops.choosing import Choice, choose
from flowinfer.engine.loops.mixing import Mixer
from flowinfer.engine.loops.sampling import Draws
from flowinfer.fusion.shared import Lift, SharedVocabulary
from flowinfer.spec import Decoding

_ALIGNMENT = 64
"""Rows of logits begin at multiples of so many numbers, which keeps matrix products fast at odd widths."""


class FusedChoice:
    """Lift, fuse, guard and choose in three kernels; nothing waits for the device and all memory is taken once.

    Args:
        vocabulary: shared vocabulary of K heads, on a CUDA device.
        weights: each source's weight, in the order of `heads`.
        heads: the heads in the order in which they are summed.
        rows: most rows of a call.
        dtype: of the logits.
        temperature: 0 = greedy; above, `sample` without top_p.
    """

    def __init__(
        self,
        vocabulary: SharedVocabulary,
        weights: Sequence[float],
        heads: Sequence[int],
        rows: int,
        dtype: torch.dtype,
        *,
        temperature: float = 0.0,
    ) -> None:
        from flowinfer.engine.loops.triton_fusing import BLOCK, PART  # Triton is absent on many machines

        self._vocabulary, self._rows, self._samples = vocabulary, rows, temperature > 0
        self._part, self._block = PART, BLOCK
        device = vocabulary.device
        widths = [vocabulary.heads[head].num_columns for head in heads]
        strides = [-(-width // _ALIGNMENT) * _ALIGNMENT for width in widths]
        offsets = [rows * sum(strides[:k]) for k in range(len(heads))]
        self._flat = torch.zeros(rows * sum(strides), dtype=dtype, device=device)
        views = [
            self._flat[offset : offset + rows * stride].view(rows, stride)[:, :width]
            for offset, stride, width in zip(offsets, strides, widths, strict=True)
        ]
        self.logits = [views[list(heads).index(head)] for head in range(len(heads))]
        """K tensors of shape (rows, V_k), in the vocabulary's order of heads: write a call's logits here."""
        lifts = [vocabulary.lifts[head] for head in heads]
        self._parts = -(-max(widths) // PART)
        self._blocks = -(-vocabulary.size // BLOCK)
        self._columns, self._more, self._more_begins = _tables(vocabulary, lifts, self._blocks, BLOCK)
        self._banned = torch.cat([lift.banned for lift in lifts]).to(torch.int8)
        starts = [sum(widths[:k]) for k in range(len(heads))]
        self._shapes = [torch.tensor(shape, device=device) for shape in (offsets, strides, widths, starts)]
        self._order = torch.tensor(list(heads), device=device)
        self._weights = torch.tensor(weights, dtype=torch.float64).float().to(device)
        self._temperature = torch.tensor([temperature], dtype=torch.float64, device=device)
        self._allowed = vocabulary.guard.mask(torch.arange(8, device=device)).to(torch.int8)
        self._parted = torch.empty(2, len(heads), rows, self._parts, device=device)
        self._best = torch.empty(2, rows, self._blocks, dtype=torch.int64, device=device)
        self._own_best = torch.empty(len(heads), rows, self._blocks, dtype=torch.int64, device=device)
        self._scores = torch.empty(rows, self._blocks, dtype=torch.float64, device=device)
        self._choice = Choice(
            torch.empty(rows, dtype=torch.int64, device=device),
            torch.empty(rows, device=device),
            torch.empty(rows, device=device),
            torch.empty(len(heads), rows, dtype=torch.int64, device=device),
        )

    def __call__(self, states: Tensor, keys: Tensor, indices: Tensor) -> Choice:
        """Choose in the first B rows of `logits`.

        Args:
            states: shape (B,), int64, UTF-8 states; B is at most `rows`.
            keys: shape (B,), int64, `row_key` of each row; read where slots are drawn.
            indices: shape (B,), int64, how many tokens each row has; read where slots are drawn.
        """
        device = self._flat.device
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            self._launch(states.contiguous(), keys.contiguous(), indices.contiguous())
        rows, choice = states.shape[0], self._choice
        return Choice(choice.slots[:rows], choice.values[:rows], choice.leads[:rows], choice.favourites[:, :rows])

    def _launch(self, states: Tensor, keys: Tensor, indices: Tensor) -> None:
        from flowinfer.engine.loops import triton_fusing as kernels

        rows, heads, choice = states.shape[0], len(self.logits), self._choice
        offsets, strides, widths, starts = self._shapes
        tops, sums = self._parted
        best, second = self._best
        kernels.sum_parts[(self._parts, rows, heads)](
            self._flat,
            offsets,
            strides,
            widths,
            self._banned,
            starts,
            tops,
            sums,
            self._rows,
            PARTS=self._parts,
            PART=self._part,
            num_warps=kernels.PART_WARPS,
        )
        kernels.fuse_block[(self._blocks, rows)](
            self._flat,
            offsets,
            strides,
            tops,
            sums,
            self._columns,
            self._more,
            self._more_begins,
            self._weights,
            self._allowed,
            states,
            keys,
            indices,
            self._temperature,
            best,
            second,
            self._scores,
            self._own_best,
            self._rows,
            SIZE=self._vocabulary.size,
            HEADS=heads,
            HEADS_WIDE=_power_of_two(heads),
            PARTS=self._parts,
            PARTS_WIDE=_power_of_two(self._parts),
            BLOCKS=self._blocks,
            BLOCK=self._block,
            POOLS_BY_MAX=self._vocabulary.eos == "max",
            SAMPLES=self._samples,
            num_warps=kernels.BLOCK_WARPS,
            enable_fp_fusion=False,  # products rounded before they are summed, so that equal sums stay ties
        )
        kernels.join_blocks[(rows,)](
            best,
            second,
            self._scores,
            self._own_best,
            self._order,
            choice.slots,
            choice.values,
            choice.leads,
            choice.favourites,
            self._rows,
            SIZE=self._vocabulary.size,
            HEADS=heads,
            BLOCKS=self._blocks,
            BLOCKS_WIDE=_power_of_two(self._blocks),
            SAMPLES=self._samples,
            num_warps=kernels.JOIN_WARPS,
        )


class TorchChoice:
    """The same by the mixer's own tensor operations: for every device, fuser and top_p.

    Args:
        mixer: its heads are on one device.
        decoding: temperature and top_p.
        rows: most rows of a call.
        dtype: of the logits.
    """

    def __init__(self, mixer: Mixer, decoding: Decoding, rows: int, dtype: torch.dtype) -> None:
        self._mixer, self._decoding = mixer, decoding
        widths = [head.num_columns for head in mixer.vocabulary.heads]
        self.logits = [torch.zeros(rows, width, dtype=dtype, device=mixer.device) for width in widths]
        """K tensors of shape (rows, V_k), in the vocabulary's order of heads: write a call's logits here."""

    def __call__(self, states: Tensor, keys: Tensor, indices: Tensor) -> Choice:
        """Choose in the first B rows of `logits`; arguments as those of `FusedChoice`."""
        rows = states.shape[0]
        logits = [own[:rows] for own in self.logits]
        return fused_choice_torch(self._mixer, self._decoding, logits, states, keys, indices)


def fused_choice_torch(
    mixer: Mixer, decoding: Decoding, logits: Sequence[Tensor], states: Tensor, keys: Tensor, indices: Tensor
) -> Choice:
    """Choose from logits of heads on one device by tensor operations.

    Args:
        mixer: how the heads are fused.
        decoding: temperature and top_p.
        logits: K tensors of shape (B, V_k), in the vocabulary's order of heads.
        states: shape (B,), int64, UTF-8 states.
        keys: shape (B,), int64, `row_key` of each row.
        indices: shape (B,), int64, how many tokens each row has.
    """
    draws = None
    if decoding.temperature > 0:
        draws = Draws(
            torch.full(keys.shape, decoding.temperature, dtype=torch.float64, device=keys.device),
            torch.full(keys.shape, decoding.top_p, dtype=torch.float64, device=keys.device),
            keys,
            indices,
            has_nucleus=decoding.top_p < 1,
        )
    return choose(mixer, logits, states, indices == 0, draws)


def fused_choice(mixer: Mixer, decoding: Decoding, rows: int, dtype: torch.dtype) -> FusedChoice | TorchChoice:
    """Return the kernels where they can serve a step, else tensor operations."""
    flat = mixer.flat_mean
    is_plain = decoding.temperature == 0 or decoding.top_p == 1
    on_gpu = mixer.device.type == "cuda" and dtype is not torch.float64 and find_spec("triton") is not None
    if flat is None or not is_plain or mixer.joins_first or not on_gpu:
        return TorchChoice(mixer, decoding, rows, dtype)
    temperature = decoding.temperature
    return FusedChoice(mixer.vocabulary, flat.weights, flat.heads, rows, dtype, temperature=temperature)


def _tables(
    vocabulary: SharedVocabulary, lifts: Sequence[Lift], num_blocks: int, block: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return which columns make up each slot.

    Returns:
        shape (K, blocks * block), int32: the first column of a slot, or -1.
        shape (N, K, block), int32: further columns of a block's slots, or -1; only blocks that have some.
        shape (blocks + 1,), int32: where each block begins in the second.
    """
    num_turns = max(1 + len(lift.extras) for lift in lifts)
    num_turns = max(num_turns, *(lift.eos_ids.numel() for lift in lifts))
    columns = torch.full((num_turns, len(lifts), num_blocks * block), -1, dtype=torch.int32)
    for k, lift in enumerate(lifts):
        own = lift.primary_slots.cpu()
        columns[0, k, own] = lift.source.cpu()[own].int()
        for turn, (slots, ids) in enumerate(lift.extras, 1):
            columns[turn, k, slots.cpu()] = ids.cpu().int()
        for turn, column in enumerate(lift.eos_ids.tolist()):
            columns[turn, k, vocabulary.eos_slot] = column
    further = columns[1:].view(-1, len(lifts), num_blocks, block).permute(2, 0, 1, 3)  # (blocks, turns, K, block)
    is_used = (further >= 0).any(-1).any(-1)  # (blocks, turns)
    begins = torch.cat([torch.zeros(1, dtype=torch.int64), is_used.sum(-1).cumsum(0)]).int()
    more = further[is_used] if is_used.any() else torch.full((1, len(lifts), block), -1, dtype=torch.int32)
    device = vocabulary.device
    return columns[0].contiguous().to(device), more.contiguous().to(device), begins.to(device)


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
