"""From all heads' logits to the choice: three kernels for a weighted mean of heads on one CUDA device, else torch.

Both give what `SharedVocabulary.lift`, the fuser, the UTF-8 guard and `choose_slots` give.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from importlib.util import find_spec

import torch
from torch import Tensor

from flowinfer.engine.caches.launching import launch
from flowinfer.engine.loops.choosing import Choice, Told, choose, tops_of
from flowinfer.engine.loops.mixing import Mixer
from flowinfer.engine.loops.sampling import Draws, sample
from flowinfer.fusion.shared import Lift, SharedVocabulary

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
    """

    def __init__(
        self,
        vocabulary: SharedVocabulary,
        weights: Sequence[float],
        heads: Sequence[int],
        rows: int,
        dtype: torch.dtype,
    ) -> None:
        from flowinfer.engine.loops.triton_fusing import BLOCK, PART  # Triton is absent on many machines

        self._vocabulary, self._rows, self._heads = vocabulary, rows, len(heads)
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
        self._views = [views[list(heads).index(head)] for head in range(len(heads))]
        """K tensors of shape (rows, V_k), in the vocabulary's order of heads, in one stretch of memory."""
        lifts = [vocabulary.lifts[head] for head in heads]
        self._parts = -(-max(widths) // PART)
        self._blocks = -(-vocabulary.size // BLOCK)
        self._columns = _tables(vocabulary, lifts, self._blocks, BLOCK)
        self._banned = torch.cat([lift.banned for lift in lifts]).to(torch.int8)
        starts = [sum(widths[:k]) for k in range(len(heads))]
        self._logits = (self._flat, torch.tensor(offsets, device=device), torch.tensor(strides, device=device))
        self._widths, self._starts = torch.tensor(widths, device=device), torch.tensor(starts, device=device)
        self._sizes = {
            "SIZE": vocabulary.size,
            "HEADS": len(heads),
            "PARTS": self._parts,
            "PARTS_WIDE": _power_of_two(self._parts),
            "BLOCKS": self._blocks,
            "POOLS_BY_MAX": vocabulary.eos == "max",
        }
        self._order = torch.tensor(list(heads), device=device)
        self._weights = torch.tensor(weights, dtype=torch.float64).float().to(device)
        self._allowed = vocabulary.guard.mask(torch.arange(8, device=device)).to(torch.int8)
        self._parted = torch.empty(2, len(heads), rows, self._parts, device=device)
        self._best = torch.empty(2, rows, self._blocks, dtype=torch.int64, device=device)
        self._own_best = torch.empty(len(heads), rows, self._blocks, dtype=torch.int64, device=device)
        self._scores = torch.empty(rows, self._blocks, dtype=torch.float64, device=device)
        self._slots = torch.empty(rows, dtype=torch.int64, device=device)
        self._favourites = torch.empty(len(heads), rows, dtype=torch.int64, device=device)
        self._values, self._leads = torch.empty(2, rows, device=device)
        self._told = torch.empty(2, len(heads), rows, device=device)

    def buffer(self, head: int, logits: Tensor) -> Tensor:
        """Return where a head's logits (B, V_k) can be put that are elsewhere; the next call takes them there."""
        return self._views[head][: len(logits)]

    def __call__(
        self,
        logits: Sequence[Tensor],
        states: Tensor,
        draws: Draws | None,
        *,
        is_told: bool = False,
        num_tops: int = 0,
    ) -> Choice:
        """Choose in B rows, at most `rows`.

        Args:
            logits: K tensors of shape (B, V_k), in the vocabulary's order of heads.
            states: shape (B,), int64, UTF-8 states.
            draws: how the rows draw; None = all are greedy.
            is_told: whether somebody wants to know what each head gave.
            num_tops: how many of the most probable slots somebody wants to know.
        """
        device, rows = self._flat.device, states.shape[0]
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            for view, own in zip(self._views, logits, strict=True):
                if own.data_ptr() != view.data_ptr():  # else it came into its buffer
                    view[:rows].copy_(own)
            mixed = self._choose(states.contiguous(), draws, keeps=num_tops > 0)
            slots, values = self._slots[:rows], self._values[:rows]
            if draws is not None and draws.has_nucleus:  # a sort, and so torch's; the kernels' sums
                drawn = sample(mixed, self._vocabulary.guard.mask(states), draws)
                is_cut = (draws.temperatures > 0) & (draws.top_ps < 1)
                slots = torch.where(is_cut, drawn, slots)
                values = torch.where(is_cut, mixed.gather(-1, drawn[:, None])[:, 0], values)
            told = self._tell(slots) if is_told else None
            tops = tops_of(mixed, self._vocabulary.guard.mask(states), num_tops) if num_tops else None
        return Choice(slots, values, self._leads[:rows], self._favourites[:, :rows], told, tops)

    def _choose(self, states: Tensor, draws: Draws | None, *, keeps: bool) -> Tensor:
        """Choose, without top_p; return the mixed distribution, (B, V), where top_p or somebody else needs it."""
        from flowinfer.engine.loops import triton_fusing as kernels

        rows, samples = states.shape[0], draws is not None
        keeps = keeps or (draws is not None and draws.has_nucleus)
        mixed = torch.empty(rows if keeps else 0, self._vocabulary.size, device=self._flat.device)
        of_rows = [states] * 3  # which the kernels do not read where all rows are greedy
        if draws is not None:
            of_rows = [own.contiguous() for own in (draws.keys, draws.indices, draws.temperatures)]
        best, second = self._best
        launch(kernels.sum_parts, (self._parts, rows, self._heads))(
            *self._logits,
            self._widths,
            self._banned,
            self._starts,
            *self._parted,
            self._rows,
            PARTS=self._parts,
            PART=self._part,
            num_warps=kernels.PART_WARPS,
        )
        launch(kernels.fuse_block, (self._blocks, rows))(
            *self._logits,
            *self._parted,
            *self._columns,
            self._weights,
            self._allowed,
            states,
            *of_rows,
            best,
            second,
            self._scores,
            self._own_best,
            mixed,
            self._rows,
            **self._sizes,
            HEADS_WIDE=_power_of_two(self._heads),
            BLOCK=self._block,
            SAMPLES=samples,
            KEEPS=keeps,
            num_warps=kernels.BLOCK_WARPS,
            enable_fp_fusion=False,  # products rounded before they are summed, so that equal sums stay ties
        )
        launch(kernels.join_blocks, (rows,))(
            best,
            second,
            self._scores,
            self._own_best,
            of_rows[-1],
            self._order,
            self._slots,
            self._values,
            self._leads,
            self._favourites,
            self._rows,
            SIZE=self._vocabulary.size,
            HEADS=self._heads,
            BLOCKS=self._blocks,
            BLOCKS_WIDE=_power_of_two(self._blocks),
            SAMPLES=samples,
            num_warps=kernels.JOIN_WARPS,
        )
        return mixed

    def _tell(self, slots: Tensor) -> Told:
        """Return what each head gave to its favourite and to a slot of each row: (B,) -> twice (K, B)."""
        from flowinfer.engine.loops import triton_fusing as kernels

        rows = slots.shape[0]
        launch(kernels.tell_heads, (rows, self._heads))(
            *self._logits,
            *self._parted,
            *self._columns,
            self._own_best,
            self._order,
            slots,
            *self._told,
            self._rows,
            **self._sizes,
            BLOCKS_WIDE=_power_of_two(self._blocks),
            BLOCK=self._block,
            num_warps=kernels.JOIN_WARPS,
            enable_fp_fusion=False,
        )
        of_favourites, of_slots = self._told
        return Told(of_favourites[:, :rows], of_slots[:, :rows])


class TorchChoice:
    """The same by tensor operations: for every device and fuser.

    Args:
        mixer: none of its heads joins its first token to a space.
    """

    def __init__(self, mixer: Mixer) -> None:
        self._mixer = mixer
        self._buffers: dict[tuple[int, int], Tensor] = {}

    def buffer(self, head: int, logits: Tensor) -> Tensor:
        """Return where a head's logits (B, V_k) can be put that are elsewhere."""
        key = (head, len(logits))
        if key not in self._buffers:
            self._buffers[key] = torch.empty_like(logits, device=self._mixer.device)
        return self._buffers[key]

    def __call__(
        self,
        logits: Sequence[Tensor],
        states: Tensor,
        draws: Draws | None,
        *,
        is_told: bool = False,
        num_tops: int = 0,
    ) -> Choice:
        """Choose in B rows; arguments as those of `FusedChoice`."""
        return choose(self._mixer, logits, states, (), draws, is_told=is_told, num_tops=num_tops)


def fused_choice(mixer: Mixer, rows: int, dtype: torch.dtype) -> FusedChoice | TorchChoice:
    """Return the kernels where they can serve a step, else tensor operations.

    Args:
        mixer: how the heads are fused.
        rows: most rows of a call.
        dtype: of the logits.
    """
    flat = mixer.flat_mean
    on_gpu = mixer.device.type == "cuda" and dtype is not torch.float64 and find_spec("triton") is not None
    if flat is None or not on_gpu:
        return TorchChoice(mixer)
    return FusedChoice(mixer.vocabulary, flat.weights, flat.heads, rows, dtype)


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
