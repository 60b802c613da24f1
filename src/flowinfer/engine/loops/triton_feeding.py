"""Triton kernels of what a step does with rows' states; see feeding.py, whose tensor operations do the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from flowinfer.engine.caches.launching import launch
from flowinfer.engine.loops.choosing import Choice
from flowinfer.engine.loops.outcome import RING, Ring
from flowinfer.engine.loops.states import HeadStates, RowStates
from flowinfer.engine.loops.tables import IdTables

if TYPE_CHECKING:
    from flowinfer.engine.loops.feeding import Ends

_CHUNK = 16
"""Flat tokens that are placed at once."""


def feed(states: HeadStates, table: Tensor, head: int, rows: int, tile: int) -> tuple[Tensor, ...]:
    """Place a head's tokens; return the fields of `Fed`, rows as int32."""
    device = states.length.device
    ids, positions = torch.empty(2, tile, dtype=torch.int64, device=device)
    row = torch.empty(tile, dtype=torch.int32, device=device)
    wanted = torch.empty(rows, dtype=torch.int64, device=device)
    is_fed = torch.empty(rows, dtype=torch.bool, device=device)
    with torch.cuda.device(states.length.get_device()):
        launch(_feed_kernel, (1,))(
            *(states.waiting[head], states.length[head], states.first[head], table),
            *(ids, row, positions, wanted, is_fed, rows, tile),
            CHUNK=_CHUNK,
            BLOCK=triton.next_power_of_2(rows),
        )
    return ids, row, positions, wanted, is_fed


def advance(states: HeadStates, rows: int, tile: int) -> None:
    """Let what was fed wait no more."""
    heads, most = states.length.shape
    with torch.cuda.device(states.length.get_device()):
        launch(_advance_kernel, (heads,))(
            *(states.waiting, states.length, states.first, rows, tile, most), BLOCK=triton.next_power_of_2(rows)
        )


def commit(
    choice: Choice,
    held: HeadStates,
    tables: IdTables,
    states: RowStates,
    next_utf8: Tensor,
    end: Ends,
    ring: Ring,
    outbox: Tensor,
) -> None:
    """Commit a choice."""
    rows, (heads, most) = len(choice.slots), held.length.shape
    with torch.cuda.device(held.length.get_device()):
        launch(_commit_kernel, (1,))(
            *(choice.slots, choice.leads, choice.favourites, choice.favourites.stride(0)),
            *(held.waiting, held.length, held.first),
            *(tables.firsts, tables.counts, next_utf8, end.max_positions),
            *(states.live, states.utf8, states.count, states.limit),
            *(ring.entry, ring.slots, ring.leads, ring.favourites, outbox),
            *(rows, most, tables.counts.shape[1], next_utf8.shape[1], end.eos_slot),
            HEADS=heads,
            RING=RING,
            BLOCK=triton.next_power_of_2(rows),
        )


@triton.jit
def _taken(waiting: tl.tensor, tile: tl.tensor) -> tl.tensor:
    """Return where each row's flat tokens begin and end."""
    ends = tl.cumsum(waiting, 0)
    return tl.minimum(ends - waiting, tile), tl.minimum(ends, tile)


@triton.jit(do_not_specialize=["rows", "tile"])
def _feed_kernel(
    waiting: tl.tensor,
    length: tl.tensor,
    first: tl.tensor,
    table: tl.tensor,
    ids: tl.tensor,
    row: tl.tensor,
    positions: tl.tensor,
    wanted: tl.tensor,
    is_fed: tl.tensor,
    rows: tl.tensor,
    tile: tl.tensor,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Place one head's tokens."""
    index = tl.arange(0, BLOCK)
    inside = index < rows
    starts, ends = _taken(tl.load(waiting + index, mask=inside, other=0), tile)
    tl.store(wanted + index, tl.maximum(ends - 1, 0), mask=inside)
    tl.store(is_fed + index, ends > starts, mask=inside)
    lengths = tl.load(length + index, mask=inside, other=0)
    firsts = tl.load(first + index, mask=inside, other=0)
    for begin in range(0, tile, CHUNK):
        flat = begin + tl.arange(0, CHUNK)
        is_own = (starts[None, :] <= flat[:, None]) & (flat[:, None] < ends[None, :])  # (CHUNK, rows), one of them
        is_real = tl.sum(is_own.to(tl.int32), 1) > 0
        own = tl.sum(tl.where(is_own, index[None, :], 0), 1)
        offset = flat - tl.sum(tl.where(is_own, starts[None, :], 0), 1)
        position = tl.sum(tl.where(is_own, lengths[None, :], 0), 1) + offset
        at = tl.sum(tl.where(is_own, firsts[None, :], 0), 1) + offset
        here = flat < tile
        tl.store(row + flat, tl.where(is_real, own, -1), mask=here)
        tl.store(positions + flat, tl.where(is_real, position, 0), mask=here)
        tl.store(ids + flat, tl.load(table + at, mask=is_real & here, other=0), mask=here)


@triton.jit(do_not_specialize=["rows", "tile", "most"])
def _advance_kernel(
    waiting: tl.tensor,
    length: tl.tensor,
    first: tl.tensor,
    rows: tl.tensor,
    tile: tl.tensor,
    most: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Advance one head."""
    index = tl.arange(0, BLOCK)
    inside = index < rows
    at = tl.program_id(0) * most + index
    before = tl.load(waiting + at, mask=inside, other=0)
    starts, ends = _taken(before, tile)
    taken = ends - starts
    tl.store(length + at, tl.load(length + at, mask=inside, other=0) + taken, mask=inside)
    tl.store(first + at, tl.load(first + at, mask=inside, other=0) + taken, mask=inside)
    tl.store(waiting + at, before - taken, mask=inside)


@triton.jit(do_not_specialize=["rows", "most", "size", "utf8_size", "eos_slot", "favourites_stride"])
def _commit_kernel(
    slots: tl.tensor,
    leads: tl.tensor,
    favourites: tl.tensor,
    favourites_stride: tl.tensor,
    waiting: tl.tensor,
    length: tl.tensor,
    first: tl.tensor,
    firsts: tl.tensor,
    counts: tl.tensor,
    next_utf8: tl.tensor,
    max_positions: tl.tensor,
    live: tl.tensor,
    utf8: tl.tensor,
    count: tl.tensor,
    limit: tl.tensor,
    entry: tl.tensor,
    ring_slots: tl.tensor,
    ring_leads: tl.tensor,
    ring_favourites: tl.tensor,
    outbox: tl.tensor,
    rows: tl.tensor,
    most: tl.tensor,
    size: tl.tensor,
    utf8_size: tl.tensor,
    eos_slot: tl.tensor,
    HEADS: tl.constexpr,
    RING: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Commit all rows."""
    index = tl.arange(0, BLOCK)
    inside = index < rows
    # 1. which rows have nothing waiting, and what is chosen for them
    is_live = tl.load(live + index, mask=inside, other=0) != 0
    is_ready = is_live
    for k in tl.static_range(HEADS):
        is_ready = is_ready & (tl.load(waiting + k * most + index, mask=inside, other=0) == 0)
    slot = tl.load(slots + index, mask=inside, other=0)
    turn = tl.load(entry)
    at = (turn % RING) * most + index
    tl.store(ring_slots + at, tl.where(is_ready, slot, -1), mask=inside)
    tl.store(ring_leads + at, tl.load(leads + index, mask=inside, other=0.0), mask=inside)
    for k in tl.static_range(HEADS):
        own = tl.load(favourites + k * favourites_stride + index, mask=inside, other=-1)
        tl.store(ring_favourites + (turn % RING * HEADS + k) * most + index, own, mask=inside)
    # 2. into the text, where it is not the end
    goes_on = is_ready & (slot != eos_slot)
    state = tl.load(utf8 + index, mask=inside, other=0)
    then = tl.load(next_utf8 + state * utf8_size + slot, mask=goes_on & inside, other=0)
    tl.store(utf8 + index, tl.where(goes_on, then.to(tl.int64), state), mask=inside)
    emitted = tl.load(count + index, mask=inside, other=0) + goes_on.to(tl.int64)
    tl.store(count + index, emitted, mask=inside)
    # 3. each head's own ids for it wait, where tokens and positions are left
    goes_on = goes_on & (emitted < tl.load(limit + index, mask=inside, other=0))
    for k in tl.static_range(HEADS):
        own = tl.load(counts + k * size + slot, mask=inside, other=0)
        held = tl.load(length + k * most + index, mask=inside, other=0)
        goes_on = goes_on & (held + own <= tl.load(max_positions + k))
    for k in tl.static_range(HEADS):
        begin = tl.load(firsts + k * size + slot, mask=inside & goes_on, other=0)
        tl.store(first + k * most + index, begin, mask=inside & goes_on)
        own = tl.load(counts + k * size + slot, mask=inside, other=0)
        tl.store(waiting + k * most + index, own, mask=inside & goes_on)  # nothing waited
    tl.store(live + index, is_live & ((is_ready == 0) | goes_on), mask=inside)
    tl.store(outbox + index, tl.where(goes_on, slot, -1), mask=inside)
    tl.debug_barrier()
    tl.store(entry, turn + 1)
