"""Prefill of the packed engine: many rows' prompts go through a head together, flat, a few thousand ids at a time.

Launching a forward kernel by kernel takes the host longer than a GPU needs for a thousand ids, and meanwhile no other
loop is looked after. So a loop that goes on admitting rows reads them in pieces of a few sizes, each of which is a CUDA
graph; rows may be cut between pieces, since a piece attends to what those before it have written. In between, where a
GPU takes longer than the host and padding would cost more than launching, a piece is launched as it is.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from flowinfer.engine.caches.kernels import splits_for
from flowinfer.engine.caches.pages import ChainedCache, PagedCache
from flowinfer.engine.caches.tiles import MOST_PROMPT_TOKENS, flat_places, tile_for
from flowinfer.engine.loops.graphs import Graphs
from flowinfer.engine.loops.states import sent
from flowinfer.engine.network.runner import HeadRunner
from flowinfer.startup import STARTUP

_PIECES = (MOST_PROMPT_TOKENS, 1024, 512, 256)
"""Ids that a graph reads; the last piece is padded."""
_FULL_ENOUGH = 7 / 8
"""Share of a piece that must be ids, where a smaller one would do too."""
_AHEAD = 2
"""Pieces that a device is given before it has read the first of them: with more, launching waits for the device, and
the host's other loops and devices wait with it."""
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

    @property
    def device(self) -> torch.device:
        """Return where the head is, or its first layers."""
        return self._runner.device

    def read(self, texts: Sequence[tuple[int, Sequence[int]]]) -> None:
        """Read rows' ids, without the last id of each and those that pages hold already.

        Args:
            texts: (index in the batch, ids) of each row; its pages are reserved.
        """
        for _ in self.reading(texts):
            pass

    @torch.inference_mode()
    def reading(self, texts: Sequence[tuple[int, Sequence[int]]]) -> Iterator[None]:
        """Read as `read` does, and pause between pieces."""
        self._cache.sync()
        waiting, pages, has_begun = list(texts), self._cache.pages, False
        while waiting:
            ready = [own for own in waiting if pages.can_be_read(own[0])]
            assert ready, "what a row shares stands before it"
            for read_piece in self._pieces_of(ready):
                if has_begun:
                    yield
                has_begun = True
                read_piece()
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

    def _pieces_of(self, texts: Sequence[tuple[int, Sequence[int]]]) -> Iterator[Callable[[], None]]:
        """Yield what reads the ids of rows that need nothing of one another, by graphs as far as can be."""
        stretches = []
        for index, ids in texts:
            start = self._cache.pages.num_read(index)
            if len(ids) - 1 > start:
                stretches.append(_Stretch(index, start, ids[start:-1]))
        if not stretches:
            return
        self._num_reads += 1
        flat, start = _flat(stretches), 0  # (3, N)
        if not self._records:
            for piece in torch.split(flat, MOST_PROMPT_TOKENS, dim=1):
                yield partial(self._launch, piece)
            return
        for size in pieces(flat.shape[1]):
            piece = flat[:, start : start + size]
            yield partial(self._replay, piece, size) if size in _PIECES else partial(self._launch, piece)
            start += size

    @property
    def _records(self) -> bool:
        is_whole = isinstance(self._cache, PagedCache)
        return self._runner.device.type == "cuda" and is_whole and self._num_reads > _FEW

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


class Reading:
    """Rows whose prompts all heads are reading; heads have turns, so that those of several devices read side by side.

    Args:
        readers: of the heads, K.
        names: of the heads, K.
        texts: K of what each reads, as `PromptReader.read` takes it.
    """

    def __init__(
        self,
        readers: Sequence[PromptReader],
        names: Sequence[str],
        texts: Sequence[Sequence[tuple[int, Sequence[int]]]],
    ) -> None:
        self._devices = [reader.device for reader in readers]
        self._left = {k: _noted(*own) for k, own in enumerate(zip(readers, names, texts, strict=True))}
        self._ahead: dict[torch.device, deque[torch.cuda.Event]] = {device: deque() for device in self._devices}
        """Pieces that each GPU was given and had not read when it was looked last."""
        self.seconds = [0.0] * len(readers)
        """What each head's pieces took the host, and until its device was ready for them."""
        self._since = dict.fromkeys(self._devices, time.perf_counter())
        """Until when the time of each device is counted."""

    @property
    def is_queued(self) -> bool:
        """Return whether the devices have been given everything."""
        return not self._left

    def go_on(self, *, at_once: bool = False) -> bool:
        """Give every device as much as it is ready for, or all there is; return whether that was anything."""
        was_given = False
        while (k := next((k for k in self._left if at_once or self._has_room(self._devices[k])), None)) is not None:
            was_given = True
            self._give(k)
        return was_given

    def wait(self) -> None:
        """Wait until the device of a head that has more to read has read a piece."""
        given = self._ahead[self._devices[next(iter(self._left))]]
        given[0].synchronize()

    def count_from(self, now: float) -> None:
        """Count nothing before now: devices were at work on something else."""
        self._since = dict.fromkeys(self._devices, now)

    def close(self) -> None:
        """Read nothing more."""
        for left in self._left.values():
            left.close()

    def _has_room(self, device: torch.device) -> bool:
        given = self._ahead[device]
        while given and given[0].query():  # type: ignore[no-untyped-call]  # untyped in torch
            given.popleft()
        return len(given) < _AHEAD

    def _give(self, k: int) -> None:
        """Let a head read one piece more; the others have their turns before it goes on."""
        device, left = self._devices[k], self._left.pop(k)
        if next(left, self) is not self:  # that was not the last one
            self._left[k] = left
        if device.type == "cuda":
            self._ahead[device].append(torch.cuda.current_stream(device).record_event())
        now = time.perf_counter()
        self.seconds[k] += now - self._since[device]
        self._since[device] = now


def _noted(reader: PromptReader, name: str, texts: Sequence[tuple[int, Sequence[int]]]) -> Generator[None, None, None]:
    with STARTUP.waiting_for("prompt", name):
        yield from reader.reading(texts)


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
