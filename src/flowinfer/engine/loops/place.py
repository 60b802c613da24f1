"""One place of a loop: a device, the heads that run there, and what it knows of what all heads hold.

How many ids every head holds of a row, and how many wait, follows from the chosen slots by arithmetic on whole numbers.
So each place keeps it for all heads, and of a step only logits travel to where slots are chosen, and slots back; and
hidden states, where the layers of a head lie on several devices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from flowinfer.engine.caches.kernels import splits_for
from flowinfer.engine.caches.pages import PagedCache
from flowinfer.engine.loops.feeding import advance, feed, take
from flowinfer.engine.loops.states import HeadStates, exchange
from flowinfer.engine.loops.tables import IdTables
from flowinfer.engine.network.runner import HeadRunner


@dataclass(frozen=True)
class Link:
    """What runs at one place in one turn of a step: a whole head, or a link of a head whose layers lie on several."""

    head: int
    turn: int
    """Its place in the head's chain: it runs when the links before it have run."""
    runner: HeadRunner
    cache: PagedCache
    """Keys and values of its layers."""
    device: torch.device
    is_last: bool
    """Whether it ends in logits."""


class Place:
    """A device and its share of a step.

    Args:
        links: what runs here.
        heads: K, of the whole loop.
        tables: every head's ids, anywhere.
        rows: R.
    """

    def __init__(self, links: Sequence[Link], heads: int, tables: IdTables, rows: int) -> None:
        self.links = tuple(links)
        self.heads = tuple(dict.fromkeys(link.head for link in links))
        """Those that run here, wholly or in part."""
        self.device = links[0].device
        self._rows = rows
        turns = [link.turn for link in links]
        self._first_turn, self._last_turn = min(turns), max(turns)
        self.tables = tables.to(self.device)
        self.states = HeadStates(heads, rows, self.device)
        self.inbox = torch.full((rows,), -1, dtype=torch.int64, device=self.device)
        """(R,): the slots that were chosen elsewhere and are to be taken; -1 = none."""
        self._hidden: dict[int, Tensor] = {}
        """By head, (R, D): each row's last hidden state, for steps in which it feeds nothing."""
        self._halfway: dict[tuple[int, int, int], Tensor] = {}
        """By head, turn and T, (T, D): hidden states that came from another link."""
        self._streams = self._make_streams()

    @property
    def weight_bytes(self) -> int:
        """Return the bytes of its heads' weights, which say how long a step takes here."""
        return sum(_weight_bytes(link.runner) for link in self.links if link.is_last)

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
        self.inbox[index].fill_(-1)

    def stop(self, index: int) -> None:
        """Feed nothing more of a row."""
        self.states.stop(index)
        self.inbox[index].fill_(-1)

    def exchange(self, one: int, other: int) -> None:
        """Exchange two rows."""
        exchange(self.changed, one, other)
        exchange([hidden.T for hidden in self._hidden.values()], one, other)

    def feed(self, rows: int, tile: int, turn: int = 0, *, has_inbox: bool = False) -> list[Tensor]:
        """Feed each link of a turn as many waiting ids as T allows, or what came from the link before it.

        Args:
            rows: of the batch, the first so many.
            tile: T, flat tokens per head.
            turn: of the step; one for all but heads whose layers lie on several devices.
            has_inbox: whether slots are chosen elsewhere, and those of the last step are to be taken first.
        Returns:
            by link, in order: the logits of each row's last id, (rows, V_k), or hidden states (T, D) for the next link.
        """
        if has_inbox and turn == self._first_turn:
            self._take_what_came(rows)
        made, links = [], self.of_turn(turn)
        for link in links:
            with self._on_stream(link.head):
                made.append(self._forward(link, rows, tile))
        for stream in [self._streams[link.head] for link in links if self._streams]:  # no graph waits for any other
            torch.cuda.current_stream(self.device).wait_stream(stream)
        if turn == self._last_turn:
            advance(self.states, rows, tile)
        return made

    def of_turn(self, turn: int) -> list[Link]:
        """Return what runs here in a turn."""
        return [link for link in self.links if link.turn == turn]

    def halfway(self, head: int, turn: int, states: Tensor) -> Tensor:
        """Return where hidden states (T, D) for a link are to be put."""
        key = (head, turn, len(states))
        if key not in self._halfway:
            self._halfway[key] = torch.zeros_like(states, device=self.device)
        return self._halfway[key]

    def _take_what_came(self, rows: int) -> None:
        """Take the slots that were chosen elsewhere."""
        came = self.inbox[:rows]
        take(self.states, self.tables, came.clamp_min(0), came >= 0)
        came.fill_(-1)

    def _forward(self, link: Link, rows: int, tile: int) -> Tensor:
        """Run a link over flat tokens, up to each row's last one: (T,) -> (rows, V_k)."""
        fed = feed(self.states, self.tables, link.head, rows, tile)
        given = self._halfway[link.head, link.turn, tile] if link.turn else fed.ids  # (T, D) or (T,)
        placed = link.cache.at(fed.rows, fed.positions, splits_for(tile))
        keep = partial(self._keep_hidden, link.head, fed=fed.is_fed) if link.is_last else None
        return link.runner.link(link.turn, given, fed.positions, fed.wanted, placed, keep)

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
        sizes = {link.head: _weight_bytes(link.runner) for link in self.links}
        longest = max(sizes.values())
        return {
            k: torch.cuda.Stream(self.device, priority=-1 if size == longest else 0)  # type: ignore[no-untyped-call]
            for k, size in sizes.items()
        }


def _weight_bytes(runner: HeadRunner) -> int:
    return sum(weight.nbytes for weight in runner.model.parameters())
