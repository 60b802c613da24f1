"""Prefill of the packed engine: many rows' prompts go through a head together, flat, a few thousand ids at a time.

Launching a forward kernel by kernel takes the host longer than a GPU needs for a thousand ids, and meanwhile no other
loop is looked after. So a loop that goes on admitting rows reads them in pieces of a few sizes, each of which is a CUDA
graph; rows may be cut between pieces, since a piece attends to what those before it have written. In between, where a
GPU takes longer than the host and padding would cost more than launching, a piece is launched as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowinfer.engine.caches.kernels import splits_for
from flowinfer.engine.caches.pages import ChainedCache, PagedCache
from flowinfer.engine.caches.tiles import MOST_PROMPT_TOKENS, flat_places, tile_for
from flowinfer.engine.loops.graphs import Graphs
from flowinfer.engine.loops.states import sent
from flowinfer.engine.network.runner import HeadRunner

_PIECES = (MOST_PROMPT_TOKENS, 1024, 512, 256)
"""Ids that a graph reads; the last piece is padded."""
_FULL_ENOUGH = 7 / 8
"""Share of a piece that must be ids, where a smaller one would do too."""
_FEW = 4
"""Times that prompts are read until graphs are recorded: a question alone shall not wait for any."""


@dataclass(frozen=True)
class _Stretch:
    """Ids of one row that follow one another."""

    index: int
    """Of the row in the batch."""
    start: int
    """Position of the first."""
    ids: Sequence[int]


class PromptReader:
    """Fills one head's pages with the keys and values of new rows.

    Args:
        runner: the head.
        cache: its keys and values.
    """

    def __init__(self, runner: HeadRunner, cache: PagedCache | ChainedCache) -> None:
        self._runner, self._cache = runner, cache
        self._num_reads = 0
        self._graphs = Graphs(runner.device, (), lambda: None)
        self._places: dict[int, Tensor] = {}
        """By size of a piece, (3, T): ids, rows and positions, on the device."""

    @torch.inference_mode()
    def read(self, texts: Sequence[tuple[int, Sequence[int]]]) -> None:
        """Read rows' ids, without the last id of each and those that pages hold already.

        Args:
            texts: (index in the batch, ids) of each row; its pages are reserved.
        """
        self._cache.sync()
        waiting, pages = list(texts), self._cache.pages
        while waiting:
            ready = [own for own in waiting if pages.can_be_read(own[0])]
            assert ready, "what a row shares stands before it"
            self._read_together(ready)
            for index, ids in ready:
                pages.name(index, ids)
                pages.note_read(index, len(ids) - 1)
            rows = {index for index, _ in ready}
            waiting = [own for own in waiting if own[0] not in rows]

    @torch.inference_mode()
    def logits(self, texts: Sequence[tuple[int, Sequence[int]]]) -> Tensor:
        """Read the last id of rows too: (R, V_k), the logits behind it.

        Launched as a step's forward is, but kernel by kernel: a row asks once.

        Args:
            texts: (index in the batch, ids) of each row; all but the last id was read.
        """
        self._cache.sync()
        lasts = torch.tensor([(ids[-1], index, len(ids) - 1) for index, ids in texts]).T  # (3, R)
        padding = tile_for(len(texts)) - len(texts)
        flat = torch.nn.functional.pad(lasts, (0, padding))  # (3, T)
        flat[1, len(texts) :] = -1  # padding is of no row
        ids, rows, positions = sent(flat, self._runner.device)
        wanted = torch.arange(len(texts), device=ids.device)
        placed = self._cache.at(rows, positions, splits_for(len(ids)))
        found = self._runner.logits(ids, positions, wanted, placed)
        for index, own in texts:
            self._cache.pages.note_read(index, len(own))
        return found

    def _read_together(self, texts: Sequence[tuple[int, Sequence[int]]]) -> None:
        """Read rows' ids that need nothing of one another."""
        stretches = []
        for index, ids in texts:
            start = self._cache.pages.num_read(index)
            if len(ids) - 1 > start:
                stretches.append(_Stretch(index, start, ids[start:-1]))
        if stretches:
            self._num_reads += 1
            flat = _flat(stretches)  # (3, N)
            if self._records:
                self._read_pieces(flat)
            else:
                for start in range(0, flat.shape[1], MOST_PROMPT_TOKENS):
                    self._launch(flat[:, start : start + MOST_PROMPT_TOKENS])

    @property
    def _records(self) -> bool:
        is_whole = isinstance(self._cache, PagedCache)
        return self._runner.device.type == "cuda" and is_whole and self._num_reads > _FEW

    def _read_pieces(self, flat: Tensor) -> None:
        """Read flat tokens (3, N), by graphs as far as can be."""
        start = 0
        for size in pieces(flat.shape[1]):
            piece = flat[:, start : start + size]
            if size in _PIECES:
                self._replay(piece, size)
            else:
                self._launch(piece)
            start += size

    def _replay(self, piece: Tensor, size: int) -> None:
        """Read flat tokens, padded to so many, by the graph of that size."""
        if size not in self._places:
            self._places[size] = torch.zeros(3, size, dtype=torch.int64, device=self._runner.device)
        places = self._places[size]
        filled = torch.zeros(3, size, dtype=torch.int64, pin_memory=True)
        filled[1] = -1  # padding is of no row
        filled[:, : piece.shape[1]] = piece
        places.copy_(filled, non_blocking=True)
        self._graphs.run(size, lambda: self._forward(places))

    def _launch(self, flat: Tensor) -> None:
        """Read flat tokens kernel by kernel."""
        self._forward(sent(flat.contiguous(), self._runner.device))

    def _forward(self, flat: Tensor) -> None:
        ids, rows, positions = flat
        self._runner.read(ids, positions, self._cache.at(rows, positions, 0))


class PromptLogits:
    """What a head would write behind prompts that a loop's pages hold: as much of a session as first tokens ask for.

    Args:
        reader: of the head.
        texts: by index in the batch, a row's ids, which were read but for the last; pages have room for more.
    """

    def __init__(self, reader: PromptReader, texts: Mapping[int, Sequence[int]]) -> None:
        self._reader, self._texts = reader, dict(texts)
        self._logits: dict[int, Tensor] = {}

    def feed(self, chunks: Mapping[int, Sequence[int]]) -> None:
        """Append ids to rows."""
        for row, ids in chunks.items():
            self._texts[row] = [*self._texts[row], *ids]
            self._logits.pop(row, None)
        self._reader.read([(row, self._texts[row]) for row in chunks])

    def logits(self, rows: Sequence[int]) -> Tensor:
        """Return the last logits of rows: shape (R, V_k)."""
        missing = [row for row in rows if row not in self._logits]
        if missing:
            found = self._reader.logits([(row, self._texts[row]) for row in missing])
            self._logits.update(zip(missing, found, strict=True))
        return torch.stack([self._logits[row] for row in rows])


def pieces(count: int) -> Iterator[int]:
    """Yield the sizes of the pieces that so many ids are read in. Examples: 4700 -> 4096, 512, 256; 2700 -> 2700."""
    while count > 0:
        size = next((size for size in _PIECES if count >= size * _FULL_ENOUGH), _PIECES[-1])
        if _PIECES[1] < count < _PIECES[0] * _FULL_ENOUGH:
            size = count
        yield size
        count -= size


def _flat(stretches: Sequence[_Stretch]) -> Tensor:
    """Return ids, rows and positions of stretches one behind the other, (3, N) int64."""
    indices, starts, lengths = zip(*((own.index, own.start, len(own.ids)) for own in stretches), strict=True)
    rows, positions = flat_places(indices, starts, lengths)
    return torch.stack([torch.tensor([i for own in stretches for i in own.ids]), rows, positions])
