"""What a step does with rows' states: place what is fed, let it wait no more, let the ids of chosen slots wait.

One Triton kernel each on a CUDA device, where twenty small launches would take as long as a layer; tensor operations
elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowinfer.engine.loops.choosing import Choice
from flowinfer.engine.loops.outcome import Ring
from flowinfer.engine.loops.states import HeadStates, RowStates
from flowinfer.engine.loops.tables import IdTables


@dataclass(frozen=True)
class Fed:
    """The flat tokens that a head is fed in a step."""

    ids: Tensor
    """(T,) int64."""
    rows: Tensor
    """(T,) integers, -1 = padding."""
    positions: Tensor
    """(T,) int64."""
    wanted: Tensor
    """(rows,) int64: each row's last token, any where it has none."""
    is_fed: Tensor
    """(rows,) bool."""


@dataclass(frozen=True)
class Ends:
    """What ends a row."""

    eos_slot: int
    """A slot."""
    max_positions: Tensor
    """(K, 1): most ids of a row, by head."""


def feed(states: HeadStates, tables: IdTables, head: int, rows: int, tile: int) -> Fed:
    """Place as many waiting ids of a head's first rows as T allows, in the order of rows."""
    if states.length.is_cuda:
        from flowinfer.engine.loops import triton_feeding

        return Fed(*triton_feeding.feed(states, tables.ids[head], head, rows, tile))
    starts, ends = _taken(states.waiting[head, :rows], tile)
    flat = torch.arange(tile)  # (T,)
    row = torch.searchsorted(ends, flat, right=True)  # (rows,), (T,) -> (T,): `rows` where there is nothing to feed
    is_real = row < rows
    row = row.clamp_max(rows - 1)
    offset = flat - starts[row]
    positions = (states.length[head][row] + offset) * is_real
    ids = tables.ids[head][(states.first[head][row] + offset) * is_real] * is_real
    return Fed(ids, torch.where(is_real, row, -1), positions, (ends - 1).clamp_min(0), ends > starts)


def advance(states: HeadStates, rows: int, tile: int) -> None:
    """Let what was fed of the first rows wait no more, for all heads."""
    if states.length.is_cuda:
        from flowinfer.engine.loops import triton_feeding

        return triton_feeding.advance(states, rows, tile)
    starts, ends = _taken(states.waiting[:, :rows], tile)  # (K, rows)
    taken = ends - starts
    states.length[:, :rows] += taken
    states.first[:, :rows] += taken
    states.waiting[:, :rows] -= taken
    return None


def take(states: HeadStates, tables: IdTables, slots: Tensor, is_new: Tensor) -> None:
    """Let every head's own ids of slots wait.

    Args:
        states: of the heads.
        tables: of their ids.
        slots: (rows,), the slots of the first rows.
        is_new: (rows,), in which rows there is one.
    """
    first, waiting = states.first[:, : len(slots)], states.waiting[:, : len(slots)]
    first.copy_(torch.where(is_new, tables.firsts[:, slots], first))  # (rows,) -> (K, rows)
    waiting += tables.counts[:, slots] * is_new


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
    """Take a choice in the first rows into their texts, where they have nothing waiting, and let its ids wait.

    Args:
        choice: of these rows.
        held: by their heads.
        tables: of all heads' ids.
        states: of the rows.
        next_utf8: (8, V), state after a slot.
        end: of rows.
        ring: keeps what is emitted.
        outbox: (R,), takes the slots that rows go on with; -1 = none.
    """
    ring.tell(choice)
    if held.length.is_cuda:
        from flowinfer.engine.loops import triton_feeding

        return triton_feeding.commit(choice, held, tables, states, next_utf8, end, ring, outbox)
    rows, slots = len(choice.slots), choice.slots
    live, utf8, count = states.live[:rows], states.utf8[:rows], states.count[:rows]
    # 1. the choice counts for rows that are ready
    is_ready = live & (held.waiting[:, :rows] == 0).all(0)  # (K, rows) -> (rows,)
    # 2. take the slot into the text, where it is not the end
    goes_on = is_ready & (slots != end.eos_slot)
    utf8.copy_(torch.where(goes_on, next_utf8[utf8, slots].long(), utf8))
    count += goes_on
    # 3. let each head's own ids for it wait, where tokens and positions are left
    length = held.length[:, :rows] + tables.counts[:, slots]  # (K, rows)
    goes_on &= (count < states.limit[:rows]) & (length <= end.max_positions).all(0)
    take(held, tables, slots, goes_on)
    outbox[:rows] = torch.where(goes_on, slots, -1)
    live &= ~is_ready | goes_on
    ring.write(torch.where(is_ready, slots, -1), choice)
    return None


def _taken(waiting: Tensor, tile: int) -> tuple[Tensor, Tensor]:
    """Return where each row's flat tokens begin and end: (..., rows) -> twice (..., rows)."""
    ends = waiting.cumsum(-1).clamp_max(tile)
    return torch.nn.functional.pad(ends[..., :-1], (1, 0)), ends
