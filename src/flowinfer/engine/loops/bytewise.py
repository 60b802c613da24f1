"""The host's loop for heads that write one text byte by byte (`fuse=byte`), each behind covers in its own tokens.

One round of a batch:
1. choose: each head's probabilities of the next byte (`fusion.bytewise`) are fused, and a byte or the end is chosen, as
   a token is in every other loop: heads over the 256 bytes are heads that share one vocabulary;
2. commit: each row emits its byte, and every head's covers of its text go on with it;
3. feed: every head reads the covers that are new, all rows together. A cover is one path through the head's tokens:
   what its session holds of another is rolled back first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from flowinfer.engine.loops.choosing import Prefixes
from flowinfer.engine.loops.proposals import PathRow
from flowinfer.engine.loops.rounds import RoundDecoder, RoundStream
from flowinfer.engine.loops.rows import LiveRow
from flowinfer.fusion.bytewise import ByteIndex, Cover, Covers, bytes_left_out
from flowinfer.planning.plan import Mixture, Source


@dataclass(eq=False)
class ByteRow(PathRow):
    """A live row and its text as each head may have written it."""

    covers: list[Covers] = field(default_factory=list)
    """Of each head."""


@dataclass(eq=False)
class ByteDecoder(RoundDecoder):
    """Decode one step's rows byte by byte; a `Decoder`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        decoding = self.step.decoding
        vocabularies = [model.vocabulary(decoding.stop_tokens) for model in self.models]
        left_out = bytes_left_out([vocabulary.tokens for vocabulary in vocabularies])
        self.indices = [
            ByteIndex(vocabulary, model.tokenizer, decoding.eos, left_out)
            for vocabulary, model in zip(vocabularies, self.models, strict=True)
        ]
        self.most_covers = _most_covers(self.step.source)

    def stream(self) -> ByteStream:
        """Return a new run; the one before must be closed."""
        return ByteStream(self)


class ByteStream(RoundStream):
    """One run of rounds, each of which emits a byte in every row; a `RowStream`."""

    def __init__(self, decoder: ByteDecoder) -> None:
        super().__init__(decoder)
        self._indices, self._most_covers = decoder.indices, decoder.most_covers

    @torch.inference_mode()
    def _prefill(self, rows: Sequence[LiveRow]) -> None:
        handles: list[list[int]] = [[] for _ in self.sessions]
        self._read_prompts(rows, handles)
        seconds = self._take_seconds("prefill")
        fresh = []
        for live, *own in zip(rows, *handles, strict=True):
            live.batch = len(self.batch) + len(rows)
            covers = [
                Covers(index, self._most_covers, is_joined=is_joined)
                for index, is_joined in zip(self._indices, live.joined, strict=True)
            ]
            n = len(own)
            row = ByteRow(live, own, [0] * n, [0] * n, self._payoff.new_length(), False, [()] * n, covers)
            fresh.append(row)
            for head, spent in zip(live.heads, seconds, strict=True):
                head.forward_seconds += spent / len(rows)
        for k, (session, index) in enumerate(zip(self.sessions, self._indices, strict=True)):
            probs = index.probs(session.logits([row.handles[k] for row in fresh]))
            for row, own_probs in zip(fresh, probs, strict=True):
                row.covers[k].read(row.covers[k].unread[0], own_probs)
        self.batch += fresh
        self._feed_covers(fresh)

    @torch.inference_mode()
    def _round(self) -> None:
        """Emit a byte or the end in every row."""
        rows = [row for row in self.batch if isinstance(row, ByteRow) and not row.live.finish_reason]
        if not rows:
            return
        # 1. choose
        prefixes = Prefixes()
        for row in rows:
            prefixes.add(row.live, [row.live.utf8_state])
        decisions = self._heads.decide(self._logits(rows), prefixes, self._clock)
        fuse, transfers = self._clock.take("fuse"), self._take_seconds("transfer")
        # 2. commit
        with self._clock.phase("append"):
            for row, decision in zip(rows, decisions, strict=True):
                live = row.live
                live.fuse_seconds += fuse / len(rows)
                for head, spent in zip(live.heads, transfers, strict=True):
                    head.transfer_seconds += spent / len(rows)
                try:
                    self._heads.emit(live, decision)
                    if not live.finish_reason:
                        for covers in row.covers:
                            covers.append(decision.slot)
                except BaseException as error:  # what is not the row's is raised
                    live.fail(error)
        self._heads.observer.tokens_emitted(len(rows))
        # 3. feed
        self._feed_covers(rows)

    def _logits(self, rows: Sequence[ByteRow]) -> list[Tensor]:
        """Return logarithms of each head's probabilities of the next byte: K of (N, 257), N = the rows."""
        found = []
        for k in range(len(self.sessions)):
            with self._clock.phase("fuse", name="covers"):
                probs = np.stack([row.covers[k].next_bytes() for row in rows])
                found.append(torch.from_numpy(probs).log())
        return found

    def _feed_covers(self, rows: Sequence[ByteRow]) -> None:
        """Let every head read the covers that nobody has asked it about."""

        def feed(k: int) -> None:
            while wanted := [(row, cover) for row in rows if (cover := self._next_cover(row, k))]:
                segments = {row.handles[k]: [self._hold(row, k, cover)] for row, cover in wanted}
                probs = self._indices[k].probs(self.sessions[k].verify(segments))
                for (row, cover), own in zip(wanted, probs, strict=True):
                    row.covers[k].read(cover, own)

        self._workers.run("forward", feed)
        for spent, k in zip(self._take_seconds("forward"), range(len(self.sessions)), strict=True):
            for row in rows:
                row.live.heads[k].forward_seconds += spent / len(rows)

    def _next_cover(self, row: ByteRow, k: int) -> Cover | None:
        """Return a cover that a head is to read now; a row whose text exceeds the head's positions ends."""
        if row.live.finish_reason:
            return None
        for cover in row.covers[k].unread:
            if not row.live.has_room(k, len(cover.ids), self._heads.models[k].max_positions):
                row.live.finish_reason = "context"
                return None
            return cover
        return None

    def _hold(self, row: ByteRow, k: int, cover: Cover) -> tuple[int, ...]:
        """Roll a head's session back to where a cover differs from what it holds; return the cover's ids from there."""
        kept = row.hold(k, self.sessions[k], cover.ids, len(cover.ids) - 1)
        row.live.heads[k].fed += len(cover.ids) - kept
        return cover.ids[kept:]


def _most_covers(source: Source) -> int:
    assert isinstance(source, Mixture), "only a group writes bytes"
    return int(source.fuse_options.get("covers", 0))
