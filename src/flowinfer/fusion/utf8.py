"""The guard that keeps emitted bytes valid UTF-8: an automaton over bytes, tabulated over a shared vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BOUNDARY = 0
"""State at the end of a whole character; the only one in which a text may end."""
_DEAD = 8


def _transitions() -> NDArray[np.int8]:
    """Return next state by (state, byte). States by what must follow: see RFC 3629, section 4."""
    table = np.full((9, 256), _DEAD, dtype=np.int8)
    table[0, 0x00:0x80] = 0
    table[0, 0xC2:0xE0] = 1  # one continuation byte
    table[0, 0xE1:0xF0] = 2  # two
    table[0, 0xE0] = 3  # two, no overlong form
    table[0, 0xED] = 4  # two, no surrogate
    table[0, 0xF1:0xF4] = 5  # three
    table[0, 0xF0] = 6  # three, no overlong form
    table[0, 0xF4] = 7  # three, not above U+10FFFF
    table[1, 0x80:0xC0] = 0
    table[2, 0x80:0xC0] = 1
    table[3, 0xA0:0xC0] = 1
    table[4, 0x80:0xA0] = 1
    table[5, 0x80:0xC0] = 2
    table[6, 0x90:0xC0] = 2
    table[7, 0x80:0x90] = 2
    return table


_TRANSITIONS = _transitions()


class Utf8Guard:
    """Which slots may follow in which state.

    Args:
        keys: the V - 1 keys of a shared vocabulary; the last slot is the end slot.
        device: where masks are made.
        is_strict: False allows everything.
    """

    def __init__(self, keys: Sequence[bytes], device: torch.device | str, *, is_strict: bool = True) -> None:
        self.is_strict = is_strict
        self._next = _next_states(keys)  # (8, V), int8
        allowed = self._next != _DEAD if is_strict else np.ones_like(self._next, dtype=bool)
        self._allowed = torch.from_numpy(allowed).to(device)  # (8, V), bool

    def mask(self, states: Tensor, among: Tensor | None = None) -> Tensor:
        """Return which slots are allowed: shape (B,) of states -> (B, V) of bool; or (B, S) of S slots."""
        return self._allowed[states] if among is None else self._allowed[states[:, None], among]

    def table(self, device: torch.device) -> Tensor:
        """Return the state after each slot, by state: shape (8, V), int8; without strictness always the boundary."""
        states = self._next if self.is_strict else np.zeros_like(self._next)
        return torch.from_numpy(states).to(device)

    def allows(self, state: int, slot: int) -> bool:
        """Return whether a slot may follow in a state."""
        return not self.is_strict or int(self._next[state, slot]) != _DEAD

    def advance(self, state: int, slot: int) -> int:
        """Return the state after a slot; without strictness always the boundary."""
        return int(self._next[state, slot]) if self.is_strict else BOUNDARY


def _next_states(keys: Sequence[bytes]) -> NDArray[np.int8]:
    size = len(keys) + 1
    states = np.repeat(np.arange(8, dtype=np.int8)[:, None], size, axis=1)
    lengths = np.array([*(len(key) for key in keys), 0])
    starts = np.concatenate([[0], np.cumsum(lengths)])[:-1]
    blob = np.frombuffer(b"".join(keys) or b"\0", dtype=np.uint8)
    for position in range(int(lengths.max(initial=0))):
        live = np.nonzero(lengths > position)[0]
        states[:, live] = _TRANSITIONS[states[:, live], blob[starts[live] + position]]
    states[1:8, size - 1] = _DEAD  # the end slot only at a boundary
    return states


def state_after(data: bytes, state: int = BOUNDARY) -> int:
    """Return the automaton's state after bytes that are valid so far.

    Raises:
        ValueError: they are not.
    """
    for byte in data:
        state = int(_TRANSITIONS[state, byte])
        if state == _DEAD:
            raise ValueError(f"invalid UTF-8 in {data!r}")
    return state


def trim(data: bytes) -> bytes:
    """Cut an incomplete character of at most three bytes off the end."""
    for back in range(1, min(3, len(data)) + 1):
        byte = data[-back]
        if byte >= 0xC0:  # a character starts here: is all of it there?
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return data[:-back] if length > back else data
        if byte < 0x80:
            break
    return data
