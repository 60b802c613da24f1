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

from flowinfer.engine.caches.launching import compiling_at_once
from flowinfer.engine.caches.pages import ChainedCache, PagedCache
from flowinfer.engine.caches.tiles import tile_for
from flowinfer.engine.loops.feeding import Ends, advance, commit, feed
from flowinfer.engine.loops.fusing import FusedChoice, TorchChoice
from flowinfer.engine.loops.graphs import Graphs
from flowinfer.engine.loops.outcome import MOST_TOPS, Outcome, Ring
from flowinfer.engine.loops.place import Link, Place
from flowinfer.engine.loops.states import RowStates, exchange
from flowinfer.engine.loops.tables import IdTables
from flowinfer.engine.loops.watch import Mark, Watch
from flowinfer.engine.loops.ways import Way
from flowinfer.engine.network.runner import HeadRunner
from flowinfer.fusion.shared import SharedVocabulary
from flowinfer.fusion.utf8 import BOUNDARY
from flowinfer.spec import Decoding

Placement = Sequence[int]
"""The number of the place of each head, or of each link of a head whose layers lie on several devices."""


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
    has_tops: bool = False
    """Whether the most probable slots are."""


class LockStep:
    """The devices' side of one decoding loop.

    Args:
        runners: the heads.
        caches: their keys and values.
        vocabulary: shared by them, on the device where slots are chosen: one of theirs.
        max_positions: most ids of a row, by head.
        choose: from logits to slots; runs inside a graph.
        rows: R.
        placement: where heads run; each device is a place if not given.
    """

    def __init__(
        self,
        runners: Sequence[HeadRunner],
        caches: Sequence[PagedCache | ChainedCache],
        vocabulary: SharedVocabulary,
        max_positions: Sequence[int],
        choose: FusedChoice | TorchChoice,
        rows: int,
        placement: Placement | None = None,
    ) -> None:
        self._choose, self.rows, self.tables = choose, rows, IdTables.of(vocabulary)
        links = [link for k, runner in enumerate(runners) for link in _links(k, runner, caches[k])]
        where: Sequence[Hashable] = placement or [link.device for link in links]
        grouped = [[link for link, own in zip(links, where, strict=True) if own == one] for one in dict.fromkeys(where)]
        self.places = [Place(own, len(runners), self.tables, rows) for own in grouped]
        """Each device with its heads."""
        self._turns = max(link.turn for link in links) + 1
        self._place_of = {(link.head, link.turn): place for place in self.places for link in place.links}
        here = [place for place in self.places if place.device == vocabulary.device]
        self._fusing = max(here, key=lambda place: place.weight_bytes)
        self._others = [place for place in self.places if place is not self._fusing]
        self.device = self._fusing.device
        self._next_utf8 = vocabulary.guard.table(self.device)  # (8, V)
        self._ends = Ends(vocabulary.eos_slot, torch.tensor(max_positions, device=self.device)[:, None])
        self.states = RowStates(rows, self.device)
        self._ring = Ring(len(runners), rows, self.device)
        self._outbox = torch.full((rows,), -1, dtype=torch.int64, device=self.device)
        """(R,): the slots that rows go on with, for the other places; -1 = none."""
        self._ways: dict[tuple[Place, Place], Way] = {}
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
        if isinstance(choose, FusedChoice):
            with compiling_at_once(self.device):
                self._around_heads(choose)

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
        if not self._others and self._turns == 1 and self.watch is None:
            self._graphs[self._fusing].run(form, partial(self._whole, form))
            return
        # 1. all heads, before anything is moved: a copy would keep one device waiting for another
        logits: dict[int, Tensor] = {}
        for turn in range(self._turns):
            logits |= self._feed_all(form, turn)
        # 2. the logits' way to where slots are chosen
        with self._aside():
            for place in self._others:
                for link in place.links:
                    if link.is_last:
                        came = self._choose.buffer(link.head, logits[link.head])
                        self._send(logits[link.head], came, place, self._fusing)
                        logits[link.head] = came
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
            for place in self._others:
                self._send(self._outbox[: form.rows], place.inbox[: form.rows], self._fusing, place)

    def watched(self) -> Watch:
        """Mark what devices do from now on, and return where."""
        self.watch = Watch([(place.device, place.heads) for place in self.places])
        return self.watch

    def last_outcome(self, count: int, form: StepForm) -> Outcome:
        """Queue the way to the host of what the last steps, all of a form, emitted."""
        return self._ring.last(self.num_steps, count, is_told=form.is_told, has_tops=form.has_tops)

    def _whole(self, form: StepForm) -> None:
        """Do a step in which all is on one device."""
        self._fuse(form, self._fusing.feed(form.rows, form.tile))

    @torch.inference_mode()
    def _around_heads(self, choose: FusedChoice) -> None:
        """Launch what stands around the heads in a greedy step of one row, whether or not it is told."""
        here, one, tile = self._fusing, self.states.utf8[:1], tile_for(1)
        for link in here.links:
            feed(here.states, here.tables, link.head, 1, tile)
        advance(here.states, 1, tile)
        choice = choose([choose.buffer(k, one) for k in range(len(here.states.length))], one, None, is_told=True)
        commit(choice, here.states, here.tables, self.states, self._next_utf8, self._ends, self._ring, self._outbox)

    def _feed_all(self, form: StepForm, turn: int) -> dict[int, Tensor]:
        """Queue what all places run in a turn, then the ways of what is halfway; return the logits that are made."""
        logits, halfway = dict[int, Tensor](), list[tuple[Place, Link, Tensor]]()
        for place in self.places:
            links = place.of_turn(turn)
            if links:
                has_inbox = place is not self._fusing
                feed = partial(place.feed, form.rows, form.tile, turn, has_inbox=has_inbox)
                self._mark(place, "begin" if turn == min(link.turn for link in place.links) else "back")
                made = self._graphs[place].run(("feed", turn, form.rows, form.tile), feed)
                self._mark(place, "fed")
                for link, own in zip(links, made, strict=True):
                    if link.is_last:
                        logits[link.head] = own
                    else:
                        halfway.append((place, link, own))
        for place, link, states in halfway:
            following = self._place_of[link.head, turn + 1]
            self._send(states, following.halfway(link.head, turn + 1, states), place, following)
        return logits

    def _send(self, states: Tensor, to: Tensor, source: Place, target: Place) -> None:
        if (source, target) not in self._ways:
            self._ways[source, target] = Way(source.device, target.device)
        self._ways[source, target].send(states, to)

    def _fuse(self, form: StepForm, logits: Sequence[Tensor]) -> None:
        """Choose a slot for every row that has nothing waiting, and let its ids wait.

        Args:
            form: of the step.
            logits: K of (rows, V_k), on the fusing device.
        """
        states, rows = self.states, form.rows
        draws = None if form.draws == "none" else states.draws(rows, has_nucleus=form.draws == "nucleus")
        num_tops = MOST_TOPS if form.has_tops else 0
        choice = self._choose(
            logits, states.utf8[:rows], draws, is_told=form.is_told, num_tops=num_tops
        )  # K of (rows, V_k) -> (rows,)
        here = self._fusing
        commit(choice, here.states, here.tables, states, self._next_utf8, self._ends, self._ring, self._outbox)

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


def _links(k: int, runner: HeadRunner, cache: PagedCache | ChainedCache) -> list[Link]:
    """Return what a head runs in a step: itself, or the links of its chain."""
    devices = [segment.device for segment in runner.segments] or [runner.device]
    last = len(devices) - 1
    return [
        Link(k, turn, runner, part, device, is_last=turn == last)
        for turn, (device, part) in enumerate(zip(devices, cache.parts, strict=True))
    ]
