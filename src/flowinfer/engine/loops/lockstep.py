"""One decoding step of K heads and R rows, whole on the devices: feed, fuse, choose, commit; as CUDA graphs.

Nothing in a step is decided on the host. A row's state is a handful of numbers: for each head, how many ids are in its
keys and values, and which ids are waiting to be fed. A chosen slot becomes, by a table, each head's own ids for it, and
these wait; a row is ready to choose again when no head has ids of it waiting. All shapes are fixed: T flat tokens per
head, whichever rows they belong to.

On one device a step is one graph. On several it is one for each device's heads and one for the choice, queued by one
thread in this order: all heads; the logits' way to where slots are chosen; the choice; the slots' way back. Slots are
chosen where heads take longest, so that the longest way is none: what comes from elsewhere has come by then.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from flowinfer.engine.caches.pages import PagedCache
from flowinfer.engine.loops.fusing import FusedChoice, TorchChoice
from flowinfer.engine.loops.graphs import Graphs
from flowinfer.engine.loops.outcome import Outcome, Ring
from flowinfer.engine.loops.place import Place
from flowinfer.engine.loops.states import RowStates, exchange
from flowinfer.engine.loops.tables import IdTables
from flowinfer.engine.loops.watch import Mark, Watch
from flowinfer.engine.loops.ways import Way
from flowinfer.engine.network.runner import HeadRunner
from flowinfer.fusion.shared import SharedVocabulary
from flowinfer.fusion.utf8 import BOUNDARY
from flowinfer.spec import Decoding


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
    """The devices' side of one decoding loop.

    Args:
        runners: the heads.
        caches: their keys and values.
        vocabulary: shared by them, on the device where slots are chosen: one of theirs.
        max_positions: most ids of a row, by head.
        choose: from logits to slots; runs inside a graph.
        rows: R.
        placement: by head, the number of the place where it runs; each device is one if not given.
    """

    def __init__(
        self,
        runners: Sequence[HeadRunner],
        caches: Sequence[PagedCache],
        vocabulary: SharedVocabulary,
        max_positions: Sequence[int],
        choose: FusedChoice | TorchChoice,
        rows: int,
        placement: Sequence[int] | None = None,
    ) -> None:
        self._choose, self.rows, self.tables = choose, rows, IdTables.of(vocabulary)
        where: Sequence[Hashable] = placement or [runner.device for runner in runners]
        grouped = [[k for k, own in enumerate(where) if own == one] for one in dict.fromkeys(where)]
        self.places = [Place(heads, runners, caches, self.tables, rows) for heads in grouped]
        """Each device with its heads."""
        here = [place for place in self.places if place.device == vocabulary.device]
        self._fusing = max(here, key=lambda place: place.weight_bytes)
        self._others = [place for place in self.places if place is not self._fusing]
        self.device = self._fusing.device
        self._eos_slot = vocabulary.eos_slot
        self._next_utf8 = vocabulary.guard.table(self.device)  # (8, V)
        self._max_positions = torch.tensor(max_positions, device=self.device)[:, None]  # (K, 1)
        self.states = RowStates(rows, self.device)
        self._ring = Ring(len(runners), rows, self.device)
        self._outbox = torch.full((rows,), -1, dtype=torch.int64, device=self.device)
        """(R,): the slots that rows go on with, for the other places; -1 = none."""
        self._ways = [(Way(place.device, self.device), Way(self.device, place.device)) for place in self._others]
        """By other place: there and back."""
        self._beside = torch.cuda.Stream(self.device) if self._others and self.device.type == "cuda" else None  # type: ignore[no-untyped-call]
        """Where the fusing device queues what comes and goes, so that neither waits for its own heads."""
        self.watch: Watch | None = None
        """Marks what devices do, where somebody asks; the choice then has a graph of its own on one device too."""
        self.num_steps = 0
        """Steps that were given to the devices."""
        self.host_wait_seconds = 0.0
        """Time that the host has waited for them."""
        self.num_waits = 0
        self._graphs = {place: Graphs(place.device, place.changed, place.rest) for place in self._others}
        changed = [*self._fusing.changed, *self.states.tensors, *self._ring.tensors, self._outbox]
        self._graphs[self._fusing] = Graphs(self.device, changed, self._rest)

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
        for place in self.places:
            place.start(index, lengths, last_ids)
        self.states.start(index, decoding, key=key, count=count, utf8=utf8)

    def stop(self, index: int) -> None:
        """End a row from the host."""
        for place in self.places:
            place.stop(index)
        self.states.stop(index)

    @torch.inference_mode()
    def exchange(self, one: int, other: int) -> None:
        """Exchange two rows."""
        for place in self.places:
            place.exchange(one, other)
        exchange(self.states.tensors, one, other)

    @torch.inference_mode()
    def run(self, form: StepForm) -> None:
        """Queue one step on every device's current stream."""
        self.num_steps += 1
        if not self._others and self.watch is None:
            self._graphs[self._fusing].run(form, partial(self._whole, form))
            return
        # 1. all heads, before anything is moved: a copy would keep one device waiting for another
        logits: dict[int, Tensor] = {}
        for place in self.places:
            feed = partial(self._feed, place, form)
            self._mark(place, "begin")
            logits |= zip(place.heads, self._graphs[place].run(("feed", form.rows, form.tile), feed), strict=True)
            self._mark(place, "fed")
        # 2. the logits' way to where slots are chosen
        with self._aside():
            for place, (there, _) in zip(self._others, self._ways, strict=True):
                for k in place.heads:
                    came = self._choose.buffer(k, logits[k])
                    there.send(logits[k], came)
                    logits[k] = came
                self._mark(place, "sent")
        if self._beside is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._beside)
        # 3. the choice
        in_order = [logits[k] for k in range(len(logits))]
        self._mark(self._fusing, "came")
        self._graphs[self._fusing].run(("fuse", form), partial(self._fuse, form, in_order))
        self._mark(self._fusing, "chosen")
        # 4. the slots' way back
        if self._beside is not None:
            self._beside.wait_stream(torch.cuda.current_stream(self.device))
        with self._aside():
            for place, (_, back) in zip(self._others, self._ways, strict=True):
                back.send(self._outbox[: form.rows], place.inbox[: form.rows])

    def watched(self) -> Watch:
        """Mark what devices do from now on, and return where."""
        self.watch = Watch([(place.device, place.heads) for place in self.places])
        return self.watch

    def last_outcome(self, count: int, *, is_told: bool) -> Outcome:
        """Queue the way to the host of what the last steps emitted."""
        return self._ring.last(self.num_steps, count, is_told=is_told)

    def _whole(self, form: StepForm) -> None:
        """Do a step in which all is on one device."""
        self._fuse(form, self._fusing.feed(form.rows, form.tile))

    def _feed(self, place: Place, form: StepForm) -> list[Tensor]:
        """Do what a place does of a step before slots are chosen."""
        if place is not self._fusing:
            place.take_what_came(form.rows)
        return place.feed(form.rows, form.tile)

    def _fuse(self, form: StepForm, logits: Sequence[Tensor]) -> None:
        """Choose a slot for every row that has nothing waiting, and let its ids wait.

        Args:
            form: of the step.
            logits: K of (rows, V_k), on the fusing device.
        """
        held, states, rows = self._fusing.states, self.states, form.rows
        live, utf8, count = states.live[:rows], states.utf8[:rows], states.count[:rows]
        # 1. choose for all rows; it counts for those that are ready
        draws = None if form.draws == "none" else states.draws(rows, has_nucleus=form.draws == "nucleus")
        choice = self._choose(logits, utf8, draws, is_told=form.is_told)  # K of (rows, V_k) -> (rows,)
        is_ready = live & (held.waiting[:, :rows] == 0).all(0)  # (K, rows) -> (rows,)
        slots = choice.slots
        # 2. take the slot into the text, where it is not the end
        goes_on = is_ready & (slots != self._eos_slot)
        utf8.copy_(torch.where(goes_on, self._next_utf8[utf8, slots].long(), utf8))
        count += goes_on
        # 3. let each head's own ids for it wait, where tokens and positions are left
        length = held.length[:, :rows] + self._fusing.tables.counts[:, slots]  # (K, rows)
        goes_on &= (count < states.limit[:rows]) & (length <= self._max_positions).all(0)
        self._fusing.take(slots, goes_on)
        if self._others:
            self._outbox[:rows] = torch.where(goes_on, slots, -1)
        live &= ~is_ready | goes_on
        self._ring.write(torch.where(is_ready, slots, -1), choice)

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Queue beside the fusing device's own heads."""
        with nullcontext() if self._beside is None else torch.cuda.stream(self._beside):
            yield

    def _mark(self, place: Place, what: Mark) -> None:
        if self.watch is not None:
            self.watch.mark(self.places.index(place), what)

    def _rest(self) -> None:
        """Let a rehearsal do nothing."""
        self._fusing.rest()
        self.states.live.zero_()
