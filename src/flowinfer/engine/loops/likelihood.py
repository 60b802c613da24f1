"""Choosing among given texts by how likely a step's heads are to write them (`by=likelihood`): nothing is decoded.

A text is read as if it had been chosen key by key: behind each key the heads' fused distribution says how likely the
next one is, and the sum of the logarithms is the text's. So a text that greedy decoding wrote has the sum of its
tokens' log probabilities. A row's prompt is read once for all its texts; several keys are verified in one forward, as
those of a proposal are, and rolled back for the next text. Byte by byte (`fuse=byte`) it is the same with bytes for
keys, and does not depend on how a text is cut into tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowinfer.engine.faults import NO_CHOICES
from flowinfer.engine.loops.bytewise import ByteDecoder, ByteRow, ByteStream
from flowinfer.engine.loops.drafting import keys_of
from flowinfer.engine.loops.heads import Heads
from flowinfer.engine.loops.mixing import writes_ahead, writes_bytes
from flowinfer.engine.loops.proposals import Proposal, SessionRow, spell
from flowinfer.engine.loops.rounds import RoundDecoder, RoundStream
from flowinfer.engine.loops.rows import LiveRow
from flowinfer.engine.loops.selective import SelectiveDecoder
from flowinfer.engine.loops.spaces import begins_with_space
from flowinfer.errors import RunError
from flowinfer.fusion.utf8 import BOUNDARY
from flowinfer.planning.plan import Step

_CHUNK = 32
"""Most keys of a text that are verified in one forward: each has a distribution over the whole vocabulary."""
_LEAST = 1e-45
"""What a probability that float32 cannot hold counts as."""


def host_decoder(step: Step) -> type[RoundDecoder]:
    """Return the decoding loop that the host drives for a step."""
    if step.decoding.by == "likelihood":
        return ByteLikelihoodDecoder if writes_bytes(step.source) else LikelihoodDecoder
    if writes_ahead(step.source):
        return SelectiveDecoder
    return ByteDecoder if writes_bytes(step.source) else RoundDecoder


class LikelihoodDecoder(RoundDecoder):
    """Choose among each row's candidates; a `Decoder`."""

    def stream(self) -> LikelihoodStream:
        """Return a new run; the one before must be closed."""
        return LikelihoodStream(self)


class ByteLikelihoodDecoder(ByteDecoder):
    """Choose among each row's candidates byte by byte; a `Decoder`."""

    def stream(self) -> ByteLikelihoodStream:
        """Return a new run; the one before must be closed."""
        return ByteLikelihoodStream(self)


@dataclass(eq=False)
class _Reading:
    """A row that reads one of its candidates."""

    row: SessionRow
    text: str
    keys: Sequence[int]
    """Of the text, in slots."""
    at: int = 0
    """How many of them have been read."""
    log: float = 0.0
    """Logarithm of their probability."""

    @property
    def is_over(self) -> bool:
        """Return whether nothing is left to read, or the row has failed."""
        return self.at == len(self.keys) or bool(self.row.live.finish_reason)

    def take(self, probs: Tensor) -> int:
        """Read the next key, whose distribution is of shape (V,); return it."""
        key = self.keys[self.at]
        self.log += math.log(max(float(probs[key]), _LEAST))
        self.at += 1
        return key


class LikelihoodStream(RoundStream):
    """One run of choices among candidates; a `RowStream`."""

    @torch.inference_mode()
    def _round(self) -> None:
        """Read every candidate of every row."""
        mixer = self._heads.mixer
        firsts = mixer.fused(self._logits([], self.batch), [row.live.joined for row in self.batch])  # (B, V)
        before = {id(row): probs for row, probs in zip(self.batch, firsts, strict=True)}

        def read(readings: Sequence[_Reading]) -> None:
            empty = [reading.row.live.contexts for reading in readings]
            for reading in readings:
                live = reading.row.live
                live.contexts = tuple(context.fork() for context in live.contexts)
                key = reading.take(before[id(reading.row)])
                if not reading.is_over:
                    live.utf8_state = self._heads.vocabulary.guard.advance(BOUNDARY, key)
                    self._heads.advance(live.contexts, key)
            while going := [reading for reading in readings if not reading.is_over]:
                self._go_on(going)
            for reading, contexts in zip(readings, empty, strict=True):
                live = reading.row.live
                live.contexts, live.utf8_state, reading.row.valid = contexts, BOUNDARY, [0] * len(contexts)

        _read_all(self.batch, self._heads, read)

    def _go_on(self, readings: Sequence[_Reading]) -> None:
        """Verify the next keys of some texts in one forward."""
        ahead = [reading.keys[reading.at : len(reading.keys) - 1][:_CHUNK] for reading in readings]
        proposals = [spell(reading.row, draft, self._heads) for reading, draft in zip(readings, ahead, strict=True)]
        probs = self._heads.mixer.fused(self._logits(proposals, []))  # (N, V), N = the texts and their keys
        for reading, proposal in zip(readings, proposals, strict=True):
            self._walk(reading, proposal, probs[: len(proposal.states)])
            probs = probs[len(proposal.states) :]

    def _takes_candidates(self) -> bool:
        """Return False: a given key may be none of a head's best."""
        return False

    def _logits(self, proposals: Sequence[Proposal], fresh: Sequence[SessionRow]) -> list[Tensor]:
        return [one for one in self._feed(proposals, fresh) if isinstance(one, Tensor)]

    def _walk(self, reading: _Reading, proposal: Proposal, probs: Tensor) -> None:
        """Read along a proposal: (S, V), behind its row's text and each of its keys."""
        live = reading.row.live
        for index, own in enumerate(probs):
            key = reading.take(own)
            if reading.is_over:
                return
            self._append(proposal, index, key, is_accepted=index < len(proposal.slots))
            live.utf8_state = self._heads.vocabulary.guard.advance(live.utf8_state, key)


class ByteLikelihoodStream(ByteStream):
    """One run of choices among candidates, byte by byte; a `RowStream`."""

    @torch.inference_mode()
    def _round(self) -> None:
        """Read every candidate of every row."""
        _read_all(self.batch, self._heads, self._read)

    def _read(self, readings: Sequence[_Reading]) -> None:
        rows = [reading.row for reading in readings if isinstance(reading.row, ByteRow)]
        empty = [row.covers for row in rows]
        for row in rows:
            row.covers = [covers.fork() for covers in row.covers]
        while going := [pair for pair in zip(readings, rows, strict=True) if not pair[0].is_over]:
            probs = self._heads.mixer.fused(self._logits([row for _, row in going]))  # (N, 257)
            for (reading, row), own in zip(going, probs, strict=True):
                key = reading.take(own)
                if not reading.is_over:
                    for covers in row.covers:
                        covers.append(key)
            self._feed_covers([row for reading, row in going if not reading.is_over])
        for row, before in zip(rows, empty, strict=True):
            row.covers = before


def _read_all(batch: Sequence[SessionRow], heads: Heads, read: Callable[[Sequence[_Reading]], None]) -> None:
    """Read all candidates, those of all rows that come first in them, then the second ones, and let each row choose."""
    found = {id(row): _readings(row, heads) for row in batch if not row.live.finish_reason}
    for number in range(max((len(own) for own in found.values()), default=0)):
        together = [own[number] for own in found.values() if number < len(own)]
        if left := [reading for reading in together if not reading.row.live.finish_reason]:
            read(left)
    for row in batch:
        if row.live.finish_reason == "context":
            row.live.fail(RunError("a text to choose from does not fit behind the prompt"))
        if not row.live.finish_reason:
            own = found[id(row)]
            best = max(own, key=lambda reading: reading.log)  # of equals the first
            row.live.settle(best.text, len(best.keys), {reading.text: reading.log for reading in own})
    heads.observer.tokens_emitted(sum(row.live.num_tokens for row in batch))


def _readings(row: SessionRow, heads: Heads) -> list[_Reading]:
    """Return a row's candidates in keys; one that has none, or that the heads cannot write, fails the row."""
    live = row.live
    try:
        if not live.row.candidates:
            raise RunError(NO_CHOICES)
        space = " " if live.row.are_letters and _begins_with_space(live, heads) else ""
        return [_Reading(row, text, keys_of(heads, space + text)) for text in live.row.candidates]
    except BaseException as error:  # what is not the row's is raised
        live.fail(error)
        return []


def _begins_with_space(live: LiveRow, heads: Heads) -> bool:
    """Return whether all heads would begin a word with a space behind their prompts."""
    tokens = [model.vocabulary().tokens for model in heads.models]
    return all(begins_with_space(*pair) is True for pair in zip(live.prompts, tokens, strict=True))
