"""One context of llama.cpp: a fixed number of sequences, each with as many cells for keys and values.

Each sequence has cells of its own. In one cache for all (`kv_unified`) every row would look at the cells of all others.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from flowinfer.backends.gguf.library import last_problem, library
from flowinfer.errors import MemoryShort, RunError

_MOST_TOKENS = 512
"""Ids that one call of llama.cpp reads."""
_CELLS = 256
"""llama.cpp makes so many at a time."""
_LEAST_OUTPUTS = 32
"""Rows of logits that one call gives; room for them is kept."""


@dataclass(frozen=True)
class Settings:
    """How contexts of a model are made."""

    name: str
    """As in the flow; stands in messages."""
    model: Any
    """llama.cpp's: a pointer, or what holds one; see `load.Weights`."""
    num_columns: int
    kv_type: int
    """ggml's number of the type of keys and values."""
    has_flash: bool
    """Whether llama.cpp may compute attention in one kernel, where that serves."""
    is_on_gpu: bool
    """Whether layers are there. Else nothing is computed there, not even long prompts."""
    threads: int | None
    """None = as many as torch uses where it is asked."""
    max_positions: int
    """Most cells of a sequence: llama.cpp chooses some models' frequencies of positions by them."""
    can_forget: bool
    """Whether a row's last ids can be removed alone: not where layers keep one state of all."""


class Entry(NamedTuple):
    """One id that a sequence reads."""

    sequence: int
    position: int
    token_id: int
    is_wanted: bool
    """Whether the logits behind it are."""


class Context:
    """A context of llama.cpp, freed when nobody holds it.

    Args:
        settings: its model and how it computes.
        sequences: at least.
        cells: of each, at least.
    Raises:
        MemoryShort: there is no room for it.
    """

    def __init__(self, settings: Settings, sequences: int, cells: int) -> None:
        self._lib = lib = library()
        most = lib.llama_max_parallel_sequences()
        if sequences > most:
            raise MemoryShort(f"'{settings.name}' holds at most {most} rows at once", help="a smaller --batch")
        self._settings = settings
        self.num_sequences = sequences
        self.num_cells = -(-cells // _CELLS) * _CELLS
        self._num_outputs = max(_LEAST_OUTPUTS, self.num_sequences)
        self._threads = settings.threads or torch.get_num_threads()
        self._pointer = lib.llama_init_from_model(settings.model.pointer, self._parameters())
        if not self._pointer:
            raise MemoryShort(
                f"'{settings.name}' has no room for the keys and values of {sequences} x {self.num_cells} tokens:"
                f" {last_problem()}",
                help="a smaller --batch, kv_type=float16 or q8_0, or a smaller context_length",
            )
        weakref.finalize(self, lib.llama_free, self._pointer)
        self.memory = lib.llama_get_memory(self._pointer)
        self._batch = _Batch(lib)

    def read(self, entries: Sequence[Entry]) -> Tensor:
        """Let sequences read ids; return the logits behind those that want them, in order, (S, V_k)."""
        found = torch.empty(sum(one.is_wanted for one in entries), self._settings.num_columns)
        size = found.stride(0) * found.element_size()
        done = 0
        for part in self._parts(entries):
            self._decode(part)
            for index, one in enumerate(part):
                if one.is_wanted:
                    source = self._lib.llama_get_logits_ith(self._pointer, index)
                    ctypes.memmove(found.data_ptr() + done * size, source, size)
                    done += 1
        return found

    def forget(self, sequence: int, start: int) -> bool:
        """Remove the cells of a sequence from a position on; return whether that could be done."""
        return bool(self._lib.llama_memory_seq_rm(self.memory, sequence, start, -1))

    def share(self, source: int, target: int, length: int) -> None:
        """Give an empty sequence what another one keeps of its first ids."""
        self._lib.llama_memory_seq_cp(self.memory, source, target, -1, -1)
        self.forget(target, length)

    def move(self, sequence: int, other: Context) -> None:
        """Copy a sequence's keys and values into another context of as many sequences."""
        size = self._lib.llama_state_seq_get_size(self._pointer, sequence)
        buffer = (ctypes.c_uint8 * size)()
        taken = self._lib.llama_state_seq_get_data(self._pointer, buffer, size, sequence)
        if not taken or not self._lib.llama_state_seq_set_data(other._pointer, buffer, taken, sequence):
            raise RunError(f"'{self._settings.name}': keys and values cannot be moved: {last_problem()}")

    def _parameters(self) -> Any:  # a struct
        made = self._lib.llama_context_default_params()
        made.n_ctx, made.n_seq_max = self.num_cells * self.num_sequences, self.num_sequences
        made.kv_unified = False
        made.n_batch = made.n_ubatch = _MOST_TOKENS
        made.n_outputs_max = self._num_outputs
        made.n_threads = made.n_threads_batch = self._threads
        made.type_k = made.type_v = self._settings.kv_type
        auto, off = self._lib.LLAMA_FLASH_ATTN_TYPE_AUTO, self._lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        made.flash_attn_type = auto if self._settings.has_flash else off
        made.offload_kqv = made.op_offload = self._settings.is_on_gpu
        made.swa_full = True  # layers with a window keep what a row may roll back to
        made.no_perf = True
        return made

    def _parts(self, entries: Sequence[Entry]) -> list[Sequence[Entry]]:
        """Cut what is to be read where one call would be too long, or give too many logits."""
        parts, start, outputs = [], 0, 0
        for index, one in enumerate(entries):
            if index - start == _MOST_TOKENS or (one.is_wanted and outputs == self._num_outputs):
                parts.append(entries[start:index])
                start, outputs = index, 0
            outputs += one.is_wanted
        return [*parts, entries[start:]]

    def _decode(self, entries: Sequence[Entry]) -> None:
        threads = self._settings.threads or torch.get_num_threads()
        if threads != self._threads:
            self._lib.llama_set_n_threads(self._pointer, threads, threads)
            self._threads = threads
        status = self._lib.llama_decode(self._pointer, self._batch.filled(entries))
        if status:
            raise RunError(f"'{self._settings.name}': llama.cpp cannot go on (status {status}): {last_problem()}")


class _Batch:
    """What llama.cpp is handed, in memory that stays."""

    def __init__(self, lib: Any) -> None:
        self._ids, self._positions, self._sequences = (np.zeros(_MOST_TOKENS, np.int32) for _ in range(3))
        self._wanted = np.zeros(_MOST_TOKENS, np.int8)
        self._counts = np.ones(_MOST_TOKENS, np.int32)
        base, step = self._sequences.ctypes.data, self._sequences.itemsize
        self._pointers = np.array([base + step * index for index in range(_MOST_TOKENS)], np.uint64)
        self._struct = lib.llama_batch(
            n_tokens=0,
            token=_as(self._ids, ctypes.c_int32),
            pos=_as(self._positions, ctypes.c_int32),
            n_seq_id=_as(self._counts, ctypes.c_int32),
            seq_id=_as(self._pointers, ctypes.POINTER(ctypes.c_int32)),
            logits=_as(self._wanted, ctypes.c_int8),
        )

    def filled(self, entries: Sequence[Entry]) -> Any:  # a struct
        """Return the struct for some entries."""
        count = len(entries)
        columns: tuple[Any, ...] = (self._sequences, self._positions, self._ids, self._wanted)
        for column, values in zip(columns, zip(*entries, strict=True), strict=True):
            column[:count] = values
        self._struct.n_tokens = count
        return self._struct


def _as(array: Any, kind: Any) -> Any:  # a pointer
    return array.ctypes.data_as(ctypes.POINTER(kind))
