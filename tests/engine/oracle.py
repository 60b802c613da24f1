"""The reference engine: one decoding loop for serial and parallel steps over transformers' own cache.

Each step of the loop: every head's logits -> shared probabilities -> one fused distribution -> one slot per row ->
each head's next ids. Rows end at different times and waiting rows take their places; nothing is prefilled twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch

from flowinfer.backends.base import TokenModel
from flowinfer.engine.base import Completion, Observer, Row
from flowinfer.engine.loops.heads import Heads, Places
from flowinfer.engine.loops.rows import LiveRow
from flowinfer.planning.plan import Step


class ReferenceDecoder:
    """Decode one step's rows; a `Decoder`.

    Args:
        step: what to decode.
        models: the loaded model of each member of the step.
        batch: most rows at once.
        observer: hears tokens and ends.
        keeps_thinking: whether later stages read <think>...</think>.
    """

    def __init__(
        self,
        step: Step,
        models: Sequence[TokenModel],
        *,
        batch: int,
        observer: Observer,
        keeps_thinking: bool = False,
    ) -> None:
        self._step = step
        self._heads = Heads(step, models, observer=observer, keeps_thinking=keeps_thinking)
        self._batch = batch

    def decode(self, rows: Iterable[Row]) -> Iterator[Completion]:
        """Decode rows, yielding each as it ends."""
        self._heads.open()
        try:
            yield from self._decode(iter(rows))
        finally:
            self._heads.close()  # an interrupted decoder must not hold on to its keys and values

    def _decode(self, waiting: Iterator[Row]) -> Iterator[Completion]:
        live: list[LiveRow] = []
        while True:
            outcomes = self._heads.admit(waiting, self._batch - len(live), len(live))
            yield from (outcome for outcome in outcomes if isinstance(outcome, Completion))
            live += (outcome for outcome in outcomes if isinstance(outcome, LiveRow))
            if not live and not outcomes:
                return
            if live:
                self._advance(live)
            live, ended = self._heads.end(live)
            yield from ended

    @torch.inference_mode()
    def _advance(self, live: Sequence[LiveRow]) -> None:
        """Emit one token in every live row and feed it to every head."""
        heads = self._heads
        logits = [session.logits([row.handles[k] for row in live]) for k, session in enumerate(heads.sessions)]
        places = Places()
        for row in live:
            places.add(row, [row.utf8_state])
        choice = heads.choose(logits, places)
        chosen = list(choice.slots)
        heads.observer.tokens_emitted(len(live))
        for index, row in enumerate(live):
            row.fuse_seconds += choice.fuse_seconds / len(live)
            for head, seconds in zip(row.heads, choice.transfers, strict=True):
                head.transfer_seconds += seconds / len(live)
            try:
                if self._step.decoding.strict and heads.is_near_tie(choice.leads[index]):
                    ids = [context.ids for context in row.contexts]
                    chosen[index] = heads.decide_alone(row, ids, row.utf8_state)
                heads.count(row, choice, index, chosen[index])
                heads.tell(row, choice, index, chosen[index])
                row.emit(chosen[index], heads.vocabulary)
            except BaseException as error:  # what is not the row's is raised
                row.fail(error)
        self._feed(live, chosen)

    def _feed(self, live: Sequence[LiveRow], slots: Sequence[int]) -> None:
        """Append the emitted keys to every head of the rows that go on."""
        heads = self._heads
        chunks: list[dict[int, Sequence[int]]] = [{} for _ in heads.sessions]
        for row, slot in zip(live, slots, strict=True):
            try:
                self._append(row, slot, chunks)
            except BaseException as error:  # what is not the row's is raised
                row.fail(error)

        def feed(k: int) -> None:
            if chunks[k]:
                heads.sessions[k].feed(chunks[k])

        seconds = heads.lanes.run(feed)
        for row in live:
            for k, own in enumerate(chunks):
                if row.handles[k] in own:
                    row.heads[k].forward_seconds += seconds[k] / len(own)

    def _append(self, row: LiveRow, slot: int, chunks: Sequence[dict[int, Sequence[int]]]) -> None:
        """Take an emitted key into every head's context, and what it has to be fed into the heads' chunks."""
        heads = self._heads
        for k, session in enumerate(heads.sessions):
            if row.finish_reason:
                return
            step = row.contexts[k].append(heads.vocabulary.keys[slot], heads.vocabulary.ids(k, slot))
            if row.context_full(k, heads.models[k].max_positions, len(step.ids) - step.rollback):
                return
            session.rollback(row.handles[k], step.rollback)
            chunks[k][row.handles[k]] = step.ids
            row.heads[k].fed += len(step.ids)
