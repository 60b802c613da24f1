"""One decoding step of K heads and R rows, whole on the device: feed, fuse, choose, commit; a CUDA graph of it.

Nothing in a step is decided on the host. A row's state is a handful of numbers: for each head, how many ids are in its
keys and values, and which ids are waiting to be fed. A chosen slot becomes, by a table, each head's own ids for it, and
these wait; a row is ready to choose again when no head has ids of it waiting. All shapes are fixed: T flat tokens per
head, whichever rows they belong to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from flowinfer.engine.caches.kernels import splits_for
from flowinfer.engine.caches.pages import PagedCache
from flowinfer.engine.loops.fusing import FusedChoice, TorchChoice
from flowinfer.engine.loops.outcome import Outcome, Ring
from flowinfer.engine.loops.states import RowStates
from flowinfer.engine.network.runner import HeadRunner
from flowinfer.fusion.shared import SharedVocabulary
from flowinfer.fusion.utf8 import BOUNDARY
from flowinfer.spec import Decoding
from flowinfer.startup import STARTUP


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


@dataclass(frozen=True)
class StepForm:
    """What a step has to do; a graph is recorded of every form that is met."""

    rows: int
    """Of the batch, the first so many."""
    tile: int
    """T, flat tokens per head."""
    draws: Literal["none", "plain", "nucleus"] = "none"
    """Whether some row draws, and whether some row has a top_p below 1; greedy rows choose alike in every form."""
    is_told: bool = False
    """Whether what each head gave is kept for those who listen."""


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
        self._counts = torch.stack([table.count for table in self.tables])  # (K, V)
        self._eos_slot = vocabulary.eos_slot
        self._next_utf8 = vocabulary.guard.table(self.device)  # (8, V)
        self._max_positions = torch.tensor(max_positions, device=self.device)[:, None]  # (K, 1)
        self.states = RowStates(heads, rows, self.device)
        self._ring = Ring(heads, rows, self.device)
        self._hidden: list[Tensor | None] = [None] * heads
        """K of (R, D): each row's last hidden state, for steps in which it feeds nothing."""
        self.num_steps = 0
        """Steps that were given to the device."""
        self.host_wait_seconds = 0.0
        """Time that the host has waited for them."""
        self.num_waits = 0
        self._streams = self._make_streams()
        self._side = self._side_stream()
        self._graphs: dict[StepForm, torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None

    def start(
        self,
        index: int,
        lengths: Sequence[int],
        last_ids: Sequence[int],
        decoding: Decoding,
        *,
        key: int,
        count: int = 0,
        utf8: int = BOUNDARY,
    ) -> None:
        """Make a row live whose ids are read except for the last.

        Args:
            index: its index in the batch.
            lengths: ids in keys and values, by head.
            last_ids: the id that waits, by head.
            decoding: its own options.
            key: of its noise.
            count: tokens emitted before.
            utf8: state of its text.
        """
        firsts = [table.singles + last for table, last in zip(self.tables, last_ids, strict=True)]
        self.states.start(index, lengths, firsts, decoding, key=key, count=count, utf8=utf8)

    def stop(self, index: int) -> None:
        """End a row from the host."""
        self.states.stop(index)

    @torch.inference_mode()
    def exchange(self, one: int, other: int) -> None:
        """Exchange two rows."""
        self.states.exchange(one, other)
        both = torch.tensor([one, other], device=self.device)
        for hidden in self._hidden:
            if hidden is not None:
                hidden[both] = hidden[both.flip(0)]

    def run(self, form: StepForm) -> None:
        """Run one step, as a graph on a GPU."""
        self.num_steps += 1
        if self.device.type != "cuda":
            return self.step(form)
        if form not in self._graphs:
            with STARTUP.waiting_for("graph", f"of {form.rows} rows"):
                self._graphs[form] = self._capture(form)
        return self._graphs[form].replay()

    def last_outcome(self, count: int, *, is_told: bool) -> Outcome:
        """Queue the way to the host of what the last steps emitted."""
        return self._ring.last(self.num_steps, count, is_told=is_told)

    @torch.inference_mode()
    def step(self, form: StepForm) -> None:
        """Run one step, kernel by kernel."""
        logits = []
        for k in range(len(self._runners)):
            with self._on_stream(k):
                logits.append(self._feed(k, form.rows, form.tile))  # (rows, V_k)
        self._join()
        self._commit(form, logits)

    def _feed(self, k: int, rows: int, tile: int) -> Tensor:
        """Feed a head as many waiting ids as T allows; return the logits of each row's last id, (rows, V_k)."""
        table, runner, cache, states = self.tables[k], self._runners[k], self._caches[k], self.states
        length, first, waiting = states.length[k, :rows], states.first[k, :rows], states.waiting[k, :rows]
        # 1. how many ids of each row are taken, in the order of rows until T are
        ends = waiting.cumsum(0).clamp_max(tile)  # (rows,)
        starts = torch.nn.functional.pad(ends[:-1], (1, 0))
        taken = ends - starts
        # 2. which row and which of its ids every flat token is
        flat = torch.arange(tile, device=self.device)  # (T,)
        row = torch.searchsorted(ends, flat, right=True)  # (rows,), (T,) -> (T,): `rows` where there is nothing to feed
        is_real = row < rows
        row = row.clamp_max(rows - 1)
        offset = flat - starts[row]
        ids = table.ids[(first[row] + offset) * is_real] * is_real
        positions = (length[row] + offset) * is_real
        # 3. the forward, up to each row's last token
        placed = cache.at(torch.where(is_real, row, -1), positions, splits_for(tile))
        keep = partial(self._keep_hidden, k, fed=taken > 0)
        logits = runner.logits(ids, positions, (ends - 1).clamp_min(0), placed, keep)  # (T,) -> (rows, V_k)
        # 4. what was taken waits no more
        length += taken
        first += taken
        waiting -= taken
        return logits

    def _commit(self, form: StepForm, logits: Sequence[Tensor]) -> None:
        """Choose a slot for every row that has nothing waiting, and let its ids wait."""
        states, rows = self.states, form.rows
        length, first, waiting = states.length[:, :rows], states.first[:, :rows], states.waiting[:, :rows]
        live, utf8, count = states.live[:rows], states.utf8[:rows], states.count[:rows]
        # 1. choose for all rows; it counts for those that are ready
        draws = None if form.draws == "none" else states.draws(rows, has_nucleus=form.draws == "nucleus")
        choice = self._choose(logits, utf8, draws, is_told=form.is_told)  # K of (rows, V_k) -> (rows,)
        is_ready = live & (waiting == 0).all(0)  # (K, rows) -> (rows,)
        slots = choice.slots
        # 2. take the slot into the text, where it is not the end
        goes_on = is_ready & (slots != self._eos_slot)
        utf8.copy_(torch.where(goes_on, self._next_utf8[utf8, slots].long(), utf8))
        count += goes_on
        # 3. let each head's own ids for it wait, where tokens and positions are left
        own = self._counts[:, slots]  # (rows,) -> (K, rows)
        goes_on &= (count < states.limit[:rows]) & (length + own <= self._max_positions).all(0)
        first.copy_(torch.where(goes_on, self._firsts[:, slots], first))
        waiting += own * goes_on
        live &= ~is_ready | goes_on
        self._ring.write(torch.where(is_ready, slots, -1), choice)

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
    def _capture(self, form: StepForm) -> torch.cuda.CUDAGraph:
        """Record a step as a graph; state that the rehearsal changes is put back."""
        changed = [*self.states.tensors, *self._ring.tensors]
        saved = [states.clone() for states in changed]
        self.states.live.zero_()  # a rehearsal feeds nothing
        self.states.waiting.zero_()
        stream = self._side
        assert stream is not None, "graphs are for GPUs"
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):  # compiles, and makes what is made once
                self.step(form)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=stream):
            self.step(form)
        for states, before in zip(changed, saved, strict=True):
            states.copy_(before)
        return graph
