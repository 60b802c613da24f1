"""One place of a loop: a device, the heads that run there, and what it knows of what all heads hold.

How many ids every head holds of a row, and how many wait, follows from the chosen slots by arithmetic on whole numbers.
So each place keeps it for all heads, and of a step only logits travel to where slots are chosen, and slots back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from flowinfer.engine.caches.kernels import splits_for
from flowinfer.engine.caches.pages import PagedCache
from flowinfer.engine.loops.states import HeadStates, exchange
from flowinfer.engine.loops.tables import IdTables
from flowinfer.engine.network.runner import HeadRunner


class Place:
    """A device and its share of a step.

    Args:
        heads: the indices of those that run here.
        runners: of all K heads.
        caches: keys and values of all.
        tables: every head's ids, anywhere.
        rows: R.
    """

    def __init__(
        self,
        heads: Sequence[int],
        runners: Sequence[HeadRunner],
        caches: Sequence[PagedCache],
        tables: IdTables,
        rows: int,
    ) -> None:
        self.heads = tuple(heads)
        self.device = runners[heads[0]].device
        self._runners, self._caches, self._rows = {k: runners[k] for k in heads}, {k: caches[k] for k in heads}, rows
        self.tables = tables.to(self.device)
        self.states = HeadStates(len(runners), rows, self.device)
        self.inbox = torch.full((rows,), -1, dtype=torch.int64, device=self.device)
        """(R,): the slots that were chosen elsewhere and are to be taken; -1 = none."""
        self._hidden: dict[int, Tensor] = {}
        """By head, (R, D): each row's last hidden state, for steps in which it feeds nothing."""
        self._streams = self._make_streams()

    @property
    def weight_bytes(self) -> int:
        """Return the bytes of its heads' weights, which say how long a step takes here."""
        return sum(_weight_bytes(runner) for runner in self._runners.values())

    @property
    def changed(self) -> list[Tensor]:
        """Return all that a step changes here."""
        return [*self.states.tensors, self.inbox]

    def rest(self) -> None:
        """Let nothing wait, in any row."""
        self.states.waiting.zero_()
        self.inbox.fill_(-1)

    def start(self, index: int, lengths: Sequence[int], last_ids: Sequence[int]) -> None:
        """Let a row begin of which all ids are read except for the last.

        Args:
            index: its index in the batch.
            lengths: ids in keys and values, by head.
            last_ids: the id that waits, by head.
        """
        firsts = [single + last for single, last in zip(self.tables.singles, last_ids, strict=True)]
        self.states.start(index, lengths, firsts)
        self.inbox[index] = -1

    def stop(self, index: int) -> None:
        """Feed nothing more of a row."""
        self.states.stop(index)
        self.inbox[index] = -1

    def exchange(self, one: int, other: int) -> None:
        """Exchange two rows."""
        exchange(self.changed, one, other)
        exchange([hidden.T for hidden in self._hidden.values()], one, other)

    def take(self, slots: Tensor, is_new: Tensor) -> None:
        """Let every head's own ids of slots wait.

        Args:
            slots: (rows,), the slots of the first rows.
            is_new: (rows,), in which rows there is one.
        """
        states, rows = self.states, len(slots)
        first, waiting = states.first[:, :rows], states.waiting[:, :rows]
        first.copy_(torch.where(is_new, self.tables.firsts[:, slots], first))  # (rows,) -> (K, rows)
        waiting += self.tables.counts[:, slots] * is_new

    def take_what_came(self, rows: int) -> None:
        """Take the slots that were chosen elsewhere."""
        came = self.inbox[:rows]
        self.take(came.clamp_min(0), came >= 0)
        came.fill_(-1)

    def feed(self, rows: int, tile: int) -> list[Tensor]:
        """Feed each head as many waiting ids as T allows.

        Args:
            rows: of the batch, the first so many.
            tile: T, flat tokens per head.
        Returns:
            the logits of each row's last id, (rows, V_k), of the heads that run here.
        """
        states = self.states
        length, first, waiting = states.length[:, :rows], states.first[:, :rows], states.waiting[:, :rows]
        # 1. how many ids of each row are taken, in the order of rows until T are: by whichever place
        ends = waiting.cumsum(1).clamp_max(tile)  # (K, rows)
        starts = torch.nn.functional.pad(ends[:, :-1], (1, 0))
        taken = ends - starts
        # 2. the forwards of the heads that run here
        logits = []
        for k in self.heads:
            with self._on_stream(k):
                logits.append(self._forward(k, starts[k], ends[k], tile))
        for stream in self._streams.values():
            torch.cuda.current_stream(self.device).wait_stream(stream)
        # 3. what was taken waits no more
        length += taken
        first += taken
        waiting -= taken
        return logits

    def _forward(self, k: int, starts: Tensor, ends: Tensor, tile: int) -> Tensor:
        """Run a head over flat tokens: each row's are those from its start to its end, (rows,) -> (rows, V_k)."""
        rows, states, own_ids = len(ends), self.states, self.tables.ids[k]
        # 1. which row and which of its ids every flat token is
        flat = torch.arange(tile, device=self.device)  # (T,)
        row = torch.searchsorted(ends, flat, right=True)  # (rows,), (T,) -> (T,): `rows` where there is nothing to feed
        is_real = row < rows
        row = row.clamp_max(rows - 1)
        offset = flat - starts[row]
        ids = own_ids[(states.first[k][row] + offset) * is_real] * is_real
        positions = (states.length[k][row] + offset) * is_real
        # 2. the forward, up to each row's last token
        placed = self._caches[k].at(torch.where(is_real, row, -1), positions, splits_for(tile))
        keep = partial(self._keep_hidden, k, fed=ends > starts)
        return self._runners[k].logits(ids, positions, (ends - 1).clamp_min(0), placed, keep)  # (T,) -> (rows, V_k)

    def _keep_hidden(self, k: int, states: Tensor, fed: Tensor) -> Tensor:
        """Let a row that fed nothing keep the last hidden state that it had: (rows, D) -> (rows, D)."""
        hidden = self._hidden.get(k)
        if hidden is None:
            hidden = self._hidden[k] = states.new_zeros(self._rows, states.shape[-1])
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
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            yield

    def _make_streams(self) -> dict[int, torch.cuda.Stream]:
        """Return a stream per head; that of the longest goes first where both could run."""
        if self.device.type != "cuda" or len(self.heads) == 1:
            return {}
        sizes = {k: _weight_bytes(runner) for k, runner in self._runners.items()}
        longest = max(sizes.values())
        return {
            k: torch.cuda.Stream(self.device, priority=-1 if size == longest else 0)  # type: ignore[no-untyped-call]
            for k, size in sizes.items()
        }


def _weight_bytes(runner: HeadRunner) -> int:
    return sum(weight.nbytes for weight in runner.model.parameters())
