"""The decoding state of one head over packed tokens: rolling back is forgetting, and no row waits for another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from flowinfer.engine.caches.dense import DenseCache
from flowinfer.engine.caches.kernels import splits_for
from flowinfer.engine.caches.pages import PAGE, ChainedCache, PagedCache, Pages
from flowinfer.engine.caches.tiles import MOST_PROMPT_TOKENS, TILES, flat_places
from flowinfer.engine.network.runner import HeadRunner


class PackedSession:
    """A `Session` over packed tokens.

    Args:
        runner: the head.
        rows: most rows at once.
        max_length: most ids of a row.
        num_pages: on a GPU, pages to share among rows; enough for all rows in full if not given.
    """

    def __init__(self, runner: HeadRunner, rows: int, max_length: int, num_pages: int | None = None) -> None:
        self._runner = runner
        self._device = runner.device
        self._max_length = max_length
        self._handles: list[int | None] = [None] * rows
        """Who has which index in the cache."""
        self._index_of: dict[int, int] = {}
        self._lengths: dict[int, int] = {}
        self._logits: dict[int, Tensor] = {}
        self._batch: tuple[tuple[int, ...], Tensor] | None = None
        """The last forward's rows and their logits, kept whole because they are mostly asked for whole."""
        self._next_handle = 0
        self._dense: DenseCache | None = None
        self._paged: PagedCache | ChainedCache | None = None
        self._graphs: dict[int, _Graph] = {}
        self._met: set[int] = set()
        """Numbers of flat tokens; of one that is met only once no graph is recorded."""
        if self._device.type == "cuda":
            pages = Pages(num_pages or rows * -(-max_length // PAGE), rows, max_length)
            self._paged = runner.new_cache(pages)
        else:
            self._dense = DenseCache(rows)

    def add(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """Prefill new rows and return their handles."""
        handles = list(range(self._next_handle, self._next_handle + len(prompts)))
        self._next_handle += len(prompts)
        for handle in handles:
            index = self._handles.index(None)
            self._handles[index] = handle
            self._index_of[handle], self._lengths[handle] = index, 0
        self.feed(dict(zip(handles, prompts, strict=True)))
        return handles

    def feed(self, chunks: Mapping[int, Sequence[int]]) -> None:
        """Append ids to rows, any number each, also none."""
        named = {row: ids for row, ids in chunks.items() if ids}
        for part in _parts(named):
            ends = [len(part[row]) - 1 for row in part]
            self._keep(tuple(part), self._forward(part, [[end] for end in ends]))

    def verify(self, segments: Mapping[int, Sequence[Sequence[int]]]) -> Tensor:
        """Append each row's segments in one forward; return the logits after every segment, (S, V_k)."""
        chunks = {row: [i for segment in own for i in segment] for row, own in segments.items()}
        wanted = []
        for own in segments.values():
            ends, end = [], -1
            for segment in own:
                end += len(segment)
                ends.append(end)
            wanted.append(ends)
        logits = self._forward(chunks, wanted)
        lasts = torch.tensor([len(ends) for ends in wanted]).cumsum(0) - 1
        self._keep(tuple(chunks), logits[lasts.to(logits.device, non_blocking=True)])
        return logits

    def logits(self, rows: Sequence[int]) -> Tensor:
        """Return the last logits of rows: shape (R, V_k)."""
        if self._batch is not None and self._batch[0] == tuple(rows):
            return self._batch[1]
        self._scatter()
        return torch.stack([self._logits[row] for row in rows])

    def rollback(self, row: int, count: int) -> None:
        """Forget a row's last ids; what they left in the cache is written over."""
        self._lengths[row] -= count

    def remove(self, rows: Sequence[int]) -> None:
        """End rows; those that stay are moved together on a CPU."""
        self._scatter()
        for row in rows:
            index = self._index_of.pop(row)
            self._handles[index] = None
            self._logits.pop(row, None)
            del self._lengths[row]
            if self._paged:
                self._paged.pages.release(index)
        if self._dense:
            self._move_together(self._dense)

    def length(self, row: int) -> int:
        """Return the number of ids in a row, prompt included."""
        return self._lengths[row]

    def _move_together(self, cache: DenseCache) -> None:
        """Fill free indices from the end, so that rows in use are the first ones."""
        last = len(self._handles) - 1
        for index, handle in enumerate(self._handles):
            while last > index and self._handles[last] is None:
                last -= 1
            if handle is None and last > index:
                moved = self._handles[last]
                assert moved is not None, "an index in use has a row"
                cache.move(last, index)
                self._handles[index], self._handles[last], self._index_of[moved] = moved, None, index

    def _forward(self, chunks: Mapping[int, Sequence[int]], wanted: Sequence[Sequence[int]]) -> Tensor:
        """Run chunks, rows in the order of their indices; return logits at `wanted` offsets, in the mapping's order."""
        names = list(chunks)
        order = sorted(range(len(names)), key=lambda k: self._index_of[names[k]])
        rows = [names[k] for k in order]
        indices = [self._index_of[row] for row in rows]
        starts, lengths = [self._lengths[row] for row in rows], [len(chunks[row]) for row in rows]
        ids = torch.tensor([i for row in rows for i in chunks[row]])
        first = dict(zip(rows, torch.tensor([0, *lengths]).cumsum(0).tolist(), strict=False))
        places = torch.tensor([first[name] + end for name, own in zip(names, wanted, strict=True) for end in own])
        for row, length in zip(rows, lengths, strict=True):
            self._lengths[row] += length
        if self._dense:
            _, positions = self._dense.begin(indices, starts, lengths)
            return self._runner.logits(ids, positions, places, self._dense)
        return self._paged_forward(indices, starts, lengths, ids, places)

    def _paged_forward(
        self, indices: Sequence[int], starts: Sequence[int], lengths: Sequence[int], ids: Tensor, places: Tensor
    ) -> Tensor:
        cache = self._paged
        assert cache is not None, "a session on a GPU has pages"
        for index, start, length in zip(indices, starts, lengths, strict=True):
            cache.pages.reserve(index, start + length)
        cache.sync()
        num_tokens = len(ids)
        padded = next((tile for tile in TILES if tile >= num_tokens), num_tokens)
        padding = (0, padded - num_tokens)
        rows, positions = flat_places(indices, starts, lengths)
        rows = torch.nn.functional.pad(rows.int(), padding, value=-1)
        ids, positions = (torch.nn.functional.pad(states, padding) for states in (ids, positions))
        is_known = padded in self._met
        self._met.add(padded)
        if is_known and padded in TILES and isinstance(cache, PagedCache):  # a graph is one device's
            graph = self._graphs.get(padded) or self._graphs.setdefault(padded, _Graph(self._runner, cache, padded))
            return graph.run(ids, rows, positions)[places.to(self._device, non_blocking=True)]
        on_device = [states.to(self._device, non_blocking=True) for states in (ids, rows, positions, places)]
        ids, rows, positions, places = on_device
        return self._runner.logits(ids, positions, places, cache.at(rows, positions, splits_for(padded)))

    def _keep(self, rows: tuple[int, ...], logits: Tensor) -> None:
        self._scatter()
        self._batch = (rows, logits)

    def _scatter(self) -> None:
        """Hand the last forward's logits to their rows."""
        if self._batch is not None:
            for row, logits in zip(*self._batch, strict=True):
                if row in self._index_of:
                    self._logits[row] = logits
            self._batch = None


class _Graph:
    """A forward over T flat tokens as a CUDA graph.

    Args:
        runner: the head.
        cache: where its keys and values are.
        num_tokens: T.
    """

    def __init__(self, runner: HeadRunner, cache: PagedCache, num_tokens: int) -> None:
        self._device = runner.device
        self._ids, self._positions, all_tokens = (
            torch.zeros(num_tokens, dtype=torch.int64, device=self._device) for _ in range(3)
        )
        all_tokens += torch.arange(num_tokens, device=self._device)
        self._rows = torch.full((num_tokens,), -1, dtype=torch.int32, device=self._device)
        self._all_tokens = all_tokens

        def forward() -> Tensor:
            placed = cache.at(self._rows, self._positions, splits_for(num_tokens))
            return runner.logits(self._ids, self._positions, self._all_tokens, placed)

        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream), torch.inference_mode():
            for _ in range(2):
                forward()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.device(self._device),
            torch.inference_mode(),
            torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"),
        ):
            self._logits = forward()

    def run(self, ids: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        """Run it: three of (T,) -> logits of all tokens (T, V_k), which the next run overwrites."""
        for target, source in zip((self._ids, self._rows, self._positions), (ids, rows, positions), strict=True):
            target.copy_(source, non_blocking=True)
        self._graph.replay()
        return self._logits


def _parts(chunks: Mapping[int, Sequence[int]]) -> list[dict[int, Sequence[int]]]:
    """Cut a forward into several where it would hold too many tokens; a row stays whole."""
    parts: list[dict[int, Sequence[int]]] = [{}]
    size = 0
    for row, ids in chunks.items():
        if parts[-1] and size + len(ids) > MOST_PROMPT_TOKENS:
            parts.append({})
            size = 0
        parts[-1][row] = ids
        size += len(ids)
    return parts if parts[0] else []
