"""One decoding step of K heads and R rows, whole on the device: feed, fuse, choose, commit; a CUDA graph of it.

Nothing in a step is decided on the host. A row's state is a handful of integers per head: how many ids are in its
keys and values, and which ids are waiting to be fed. A chosen slot becomes, by a table, each head's own ids for it, and
these wait; a row is ready to choose again when no head has ids of it waiting. All shapes are fixed: T flat tokens per
head, whichever rows they belong to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor

from flowinfer.engine.caches.kernels import splits_for
from flowinfer.engine.caches.pages import PagedCache
from flowinfer.engine.loops.fusing import FusedChoice, TorchChoice
from flowinfer.engine.network.runner import HeadRunner
from flowinfer.fusion.shared import SharedVocabulary

RING = 8
"""Steps whose outcome the device keeps until the host reads them."""


class IdTable:
    """Each head's own ids for every slot, on the device: slot -> a stretch of one flat list.

    The list goes on with every id by itself, so that a prompt's last id can wait like a slot's.
    """

    def __init__(self, vocabulary: SharedVocabulary, head: int, num_columns: int, device: torch.device) -> None:
        counts, ids = vocabulary.all_ids(head)
        firsts = np.concatenate([[0], counts.cumsum()])
        self.first = torch.from_numpy(firsts).to(device)
        self.count = torch.from_numpy(np.append(counts, 0)).to(device)  # the end slot feeds nothing
        self.ids = torch.from_numpy(np.concatenate([ids, np.arange(num_columns)])).to(device)
        self.singles = len(ids)
        """Where the list of single ids begins."""
        self.most = max(1, int(counts.max(initial=1)))


class LockStep:
    """The device's side of one decoding loop.

    Args:
        runners: the heads, all on one device.
        caches: their keys and values.
        vocabulary: shared by them.
        max_positions: most ids of a row, by head.
        choose: from logits to slots; runs inside the graph.
        rows: R.
    """

    def __init__(
        self,
        runners: Sequence[HeadRunner],
        caches: Sequence[PagedCache],
        vocabulary: SharedVocabulary,
        max_positions: Sequence[int],
        choose: FusedChoice | TorchChoice,
        rows: int,
    ) -> None:
        self._runners, self._caches, self._choose = tuple(runners), tuple(caches), choose
        self.device = runners[0].device
        self.rows = rows
        heads = len(runners)
        self.tables = [IdTable(vocabulary, k, vocabulary.heads[k].num_columns, self.device) for k in range(heads)]
        self._firsts = torch.stack([table.first for table in self.tables])  # (K, V)
        self._counts = torch.stack([table.count for table in self.tables])
        self._eos_slot = vocabulary.eos_slot
        self._next_state = vocabulary.guard.table(self.device)  # (8, V)
        self._max_positions = torch.tensor(max_positions, device=self.device)[:, None]
        self.length = self._zeros(heads, rows)
        """(K, R): ids in keys and values."""
        self.first = self._zeros(heads, rows)
        """(K, R): where the waiting ids begin in the table's list."""
        self.waiting = self._zeros(heads, rows)
        """(K, R): how many ids wait."""
        self.live = torch.zeros(rows, dtype=torch.bool, device=self.device)
        self.state = self._zeros(rows)
        self.count = self._zeros(rows)
        """(R,): tokens emitted."""
        self.limit = self._zeros(rows)
        self.key = self._zeros(rows)
        self._hidden: list[Tensor | None] = [None] * heads
        self._tick = self._zeros(1)
        self.num_steps = 0
        """Steps that were given to the device."""
        self.host_wait_seconds = 0.0
        """Time that the host has waited for them."""
        self.num_waits = 0
        self.ring_slots = torch.full((RING, rows), -1, dtype=torch.int64, device=self.device)
        self.ring_leads = torch.zeros(RING, rows, device=self.device)
        self.ring_favourites = torch.full((RING, heads, rows), -1, dtype=torch.int64, device=self.device)
        self._streams = self._make_streams()
        self._side = self._side_stream()
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None

    def start(
        self,
        row: int,
        lengths: Sequence[int],
        last_ids: Sequence[int],
        *,
        count: int,
        limit: int,
        key: int,
        state: int,
    ) -> None:
        """Make a row live whose ids are read except for the last.

        Args:
            row: its index.
            lengths: ids in keys and values, by head.
            last_ids: the id that waits, by head.
            count: tokens emitted before.
            limit: most tokens.
            key: of its random numbers.
            state: of its text as UTF-8.
        """
        firsts = [table.singles + last for table, last in zip(self.tables, last_ids, strict=True)]
        heads = len(self._runners)
        values = torch.tensor([*lengths, *firsts, count, limit, key, state]).to(self.device, non_blocking=True)
        self.length[:, row], self.first[:, row] = values[:heads], values[heads : 2 * heads]
        self.waiting[:, row] = 1
        self.count[row], self.limit[row], self.key[row], self.state[row] = values[-4:]
        self.live[row] = True

    def stop(self, row: int) -> None:
        """End a row from the host."""
        self.live[row] = False
        self.waiting[:, row] = 0

    @torch.inference_mode()
    def exchange(self, one: int, other: int) -> None:
        """Exchange two rows."""
        order = torch.tensor([other, one], device=self.device)
        places = torch.tensor([one, other], device=self.device)
        for states in (self.length, self.first, self.waiting):
            states[:, places] = states[:, order]
        for states in (self.live, self.state, self.count, self.limit, self.key):
            states[places] = states[order]
        for hidden in self._hidden:
            if hidden is not None:
                hidden[places] = hidden[order]

    @torch.inference_mode()
    def step(self, rows: int, tile: int) -> None:
        """Run one step of the first rows, kernel by kernel.

        Args:
            rows: how many of them.
            tile: T, flat tokens per head.
        """
        for k in range(len(self._runners)):
            with self._on_stream(k):
                self._choose.logits[k][:rows].copy_(self._feed(k, rows, tile))
        self._join()
        self._commit(rows)

    def run(self, rows: int, tile: int) -> None:
        """Run one step of the first rows, as a graph on a GPU."""
        self.num_steps += 1
        if self.device.type != "cuda":
            return self.step(rows, tile)
        if rows not in self._graphs:
            self._graphs[rows] = self._capture(rows, tile)
        return self._graphs[rows].replay()

    def _feed(self, k: int, rows: int, tile: int) -> Tensor:
        """Feed a head as many waiting ids as T allows; return the logits of each row's last id, (rows, V_k)."""
        table, runner, cache = self.tables[k], self._runners[k], self._caches[k]
        length, first, waiting = self.length[k, :rows], self.first[k, :rows], self.waiting[k, :rows]
        ends = waiting.cumsum(0).clamp_max(tile)
        starts = torch.nn.functional.pad(ends[:-1], (1, 0))
        taken = ends - starts  # (rows,)
        flat = torch.arange(tile, device=self.device)
        row = torch.searchsorted(ends, flat, right=True)  # (T,), `rows` where there is nothing to feed
        is_real = row < rows
        row = row.clamp_max(rows - 1)
        offset = flat - starts[row]
        ids = table.ids[(first[row] + offset) * is_real] * is_real
        positions = (length[row] + offset) * is_real
        cache.place(torch.where(is_real, row, -1).int(), positions.int(), splits_for(tile))
        keep = partial(self._keep_hidden, k, fed=taken > 0)
        logits = runner.logits(ids, positions, (ends - 1).clamp_min(0), cache, keep)
        length += taken
        first += taken
        waiting -= taken
        return logits

    def _commit(self, rows: int) -> None:
        """Choose a slot for every row that has nothing waiting, and let its ids wait."""
        length, first, waiting = self.length[:, :rows], self.first[:, :rows], self.waiting[:, :rows]
        live, state, count = self.live[:rows], self.state[:rows], self.count[:rows]
        choice = self._choose(state, self.key[:rows], count)
        is_ready = live & (waiting == 0).all(0)
        slots = choice.slots
        goes_on = is_ready & (slots != self._eos_slot)
        own = self._counts[:, slots]  # (K, rows)
        state.copy_(torch.where(goes_on, self._next_state[state, slots].long(), state))
        count += goes_on
        goes_on &= (count < self.limit[:rows]) & (length + own <= self._max_positions).all(0)
        first.copy_(torch.where(goes_on, self._firsts[:, slots], first))
        waiting += own * goes_on
        live &= ~is_ready | goes_on
        tick = self._tick % RING
        self.ring_slots[:, :rows].index_copy_(0, tick, torch.where(is_ready, slots, -1)[None])
        self.ring_leads[:, :rows].index_copy_(0, tick, choice.leads[None].float())
        self.ring_favourites[:, :, :rows].index_copy_(0, tick, choice.favourites[None])
        self._tick += 1

    def _keep_hidden(self, k: int, states: Tensor, fed: Tensor) -> Tensor:
        """Let a row that fed nothing keep the last hidden state that it had: (rows, D) -> (rows, D)."""
        hidden = self._hidden[k]
        if hidden is None:
            hidden = self._hidden[k] = states.new_zeros(self.rows, states.shape[-1])
        kept = torch.where(fed[:, None], states, hidden[: len(fed)])
        hidden[: len(fed)] = kept
        return kept

    @contextmanager
    def _on_stream(self, k: int) -> Iterator[None]:
        """Run a head beside the others, on a stream of its own that begins where the current one stands."""
        if not self._streams:
            yield
            return
        stream = self._streams[k]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            yield

    def _join(self) -> None:
        for stream in self._streams:
            torch.cuda.current_stream().wait_stream(stream)

    def _make_streams(self) -> list[torch.cuda.Stream]:
        """Return a stream per head; that of the longest goes first where both could run."""
        if self.device.type != "cuda" or len(self._runners) == 1:
            return []
        sizes = [sum(weight.nbytes for weight in runner.model.parameters()) for runner in self._runners]
        return [
            torch.cuda.Stream(self.device, priority=-1 if size == max(sizes) else 0)  # type: ignore[no-untyped-call]
            for size in sizes
        ]

    def _side_stream(self) -> torch.cuda.Stream | None:
        """Return what graphs are recorded on: the current stream, or one beside it if that is the default one.

        One for all graphs: the work space of cuBLAS goes by streams, and graphs of two loops that run at once must not
        share any.
        """
        if self.device.type != "cuda":
            return None
        current = torch.cuda.current_stream(self.device)
        if current != torch.cuda.default_stream(self.device):
            return current
        return torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]  # untyped in torch

    @torch.inference_mode()
    def _capture(self, rows: int, tile: int) -> torch.cuda.CUDAGraph:
        """Record a step as a graph; state that the rehearsal changes is put back."""
        saved = [states.clone() for states in self._all_state()]
        self.live.zero_()  # a rehearsal feeds nothing
        self.waiting.zero_()
        stream = self._side
        assert stream is not None, "graphs are for GPUs"
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):  # compiles, and makes what is made once
                self.step(rows, tile)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=stream):
            self.step(rows, tile)
        for states, before in zip(self._all_state(), saved, strict=True):
            states.copy_(before)
        return graph

    def _all_state(self) -> list[Tensor]:
        own = [self.length, self.first, self.waiting, self.live, self.state, self.count, self._tick]
        return [*own, self.ring_slots, self.ring_leads, self.ring_favourites]

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=torch.int64, device=self.device)
