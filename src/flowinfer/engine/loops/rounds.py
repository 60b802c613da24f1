"""Decoding in rounds: heads verify a draft of several keys in one forward, and the text is that of plain decoding.

A round of one row: pending ids and the draft's ids go through every head at once -> fused distributions behind each
key -> walk the draft and emit at each place what plain decoding would choose there, up to the first that is not the
draft's next key, that one included. What was guessed wrong is rolled back. The last emitted key is never in a cache,
so every round has something to feed. Without drafts a round is a step of the reference engine.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from flowinfer.backends.base import Session, TokenModel
from flowinfer.engine.base import Completion, Observer, Row
from flowinfer.engine.loops.drafts import Drafter
from flowinfer.engine.loops.heads import Choice, Heads, Places
from flowinfer.engine.loops.pace import Pace, Payoff, Wish
from flowinfer.engine.loops.rows import LiveRow
from flowinfer.fusion.advance import Advance, Context
from flowinfer.planning.plan import Step

MakeDrafter = Callable[[Heads], Drafter]
ChooseThreads = Callable[[int], AbstractContextManager[None]]


@dataclass(eq=False)
class _Line:
    """A live row between rounds."""

    row: LiveRow
    held: list[int]
    """For each head, ids behind the prompt that its session holds."""
    valid: list[int]
    """For each head, how many of them stand in the row's context too."""
    pace: Pace
    is_fresh: bool = True
    """Whether only its prompt was read: its first distributions are there without a forward."""


@dataclass
class _Attempt:
    """A row's draft in one round, as far as it can be verified."""

    line: _Line
    draft: list[int]
    contexts: list[tuple[Context, ...]]
    """Each head's context before the draft and after each of its keys."""
    advances: list[tuple[Advance, ...]]
    """How each key of the draft changes each head's ids; nothing is rolled back in it."""
    states: list[int]
    """UTF-8 state before the draft and after each of its keys."""
    first: int = 0
    """Place of its first distribution among all rows'."""


class RoundDecoder:
    """Decode one step's rows in rounds; a `Decoder`.

    Args:
        step: what to decode.
        models: the loaded model of each member of the step.
        batch: most rows at once.
        observer: hears tokens and ends.
        keeps_thinking: whether later stages read <think>...</think>.
        drafter: makes what proposes keys; None = no drafts, a plain decoder.
        payoff: whether rounds draft; always if not given.
        open_sessions: makes a session for each model, if not the models' own.
        threads: what a round over so many rows runs in.
    """

    keeps_host_busy = True

    def __init__(
        self,
        step: Step,
        models: Sequence[TokenModel],
        *,
        batch: int,
        observer: Observer,
        keeps_thinking: bool = False,
        drafter: MakeDrafter | None = None,
        payoff: Payoff | None = None,
        open_sessions: Callable[[], list[Session]] | None = None,
        threads: ChooseThreads = lambda _: nullcontext(),
    ) -> None:
        self.heads = Heads(step, models, observer=observer, keeps_thinking=keeps_thinking, open_sessions=open_sessions)
        self.batch = batch
        self.drafter = drafter(self.heads) if drafter else None
        self.payoff = payoff or Payoff(is_on=False)
        self.threads = threads

    def stream(self) -> RoundStream:
        """Return a new run; the one before must be closed."""
        return RoundStream(self)


class RoundStream:
    """One run of rounds, brought on a round at a time; a `RowStream`."""

    is_waiting = False

    def __init__(self, decoder: RoundDecoder) -> None:
        self._batch, self._threads = decoder.batch, decoder.threads
        self._heads, self._drafter, self._payoff = decoder.heads, decoder.drafter, decoder.payoff
        self._waiting: deque[Row] = deque()
        self._lines: list[_Line] = []
        self._heads.open()

    @property
    def num_rows(self) -> int:
        """Return how many rows have not ended."""
        return len(self._waiting) + len(self._lines)

    def add(self, row: Row) -> None:
        """Take a row; it begins when there is room."""
        self._waiting.append(row)

    def turn(self) -> list[Completion]:
        """Admit rows and do a round; return the rows that ended."""
        ended = self._admit()
        if self._lines:
            with self._threads(len(self._lines)):
                self._round(self._lines)
        gone = [line for line in self._lines if line.row.finish_reason]
        self._remove(gone)
        return [*ended, *(self._heads.complete(line.row) for line in gone)]

    def wait(self) -> None:
        """Do nothing: every turn of it does something."""

    def end(self, row: Row) -> None:
        """End a row from outside."""
        self._waiting = deque(other for other in self._waiting if other is not row)
        self._remove([line for line in self._lines if line.row.row is row])

    def close(self) -> None:
        """Let go of all rows, their keys and values."""
        self._waiting.clear()
        self._lines = []
        self._heads.close()
        if self._drafter:
            self._drafter.close()

    def _admit(self) -> list[Completion]:
        """Let waiting rows begin where there is room; return those that cannot run."""
        room = min(self._batch - len(self._lines), len(self._waiting))
        outcomes = self._heads.admit((self._waiting.popleft() for _ in range(room)), room, len(self._lines))
        nothing = [0] * len(self._heads.models)
        for row in (outcome for outcome in outcomes if isinstance(outcome, LiveRow)):
            row.rounds = 0 if self._drafter else None
            self._lines.append(_Line(row, [*nothing], [*nothing], self._payoff.new_pace()))
        return [outcome for outcome in outcomes if isinstance(outcome, Completion)]

    def _remove(self, gone: Sequence[_Line]) -> None:
        """Take rows out of the sessions."""
        if not gone:
            return
        for k, session in enumerate(self._heads.sessions):
            session.remove([line.row.handles[k] for line in gone])
        if self._drafter:
            self._drafter.forget([line.row for line in gone])
        self._lines = [line for line in self._lines if line not in gone]

    @torch.inference_mode()
    def _round(self, lines: Sequence[_Line]) -> None:
        """Emit one token or more in every live row."""
        start = time.perf_counter()
        reading = [line for line in lines if not line.is_fresh]
        fresh = [line for line in lines if line.is_fresh]
        drafts = self._propose(reading)
        attempts = [attempt for line, draft in zip(reading, drafts, strict=True) if (attempt := self._try(line, draft))]
        begun = [
            self._heads.sessions[k].logits([line.row.handles[k] for line in fresh]) for k in self._every_head(fresh)
        ]
        logits = self._verify(attempts)
        attempts += [_Attempt(line, [], [line.row.contexts], [], [line.row.utf8_state]) for line in fresh]
        if not attempts:
            return
        choice = self._choose([*attempts], [torch.cat(parts) for parts in _paired(logits, begun)])
        emitted = 0
        for attempt in attempts:
            try:
                emitted += self._walk(attempt, choice, len(attempts))
            except BaseException as error:  # what is not the row's is raised
                attempt.line.row.fail(error)
        self._heads.observer.tokens_emitted(emitted)
        if not fresh:
            width = max(len(attempt.draft) for attempt in attempts)
            self._payoff.learn(len(lines), width, time.perf_counter() - start)

    def _every_head(self, lines: Sequence[_Line]) -> range:
        return range(len(self._heads.sessions) if lines else 0)

    def _propose(self, lines: Sequence[_Line]) -> list[list[int]]:
        """Ask for drafts where rows have room for them."""
        if self._drafter is None or not lines or not self._payoff.is_open(len(lines)):
            return [[] for _ in lines]
        limits = [max(0, min(line.pace.limit(), line.row.tokens_left - 1)) for line in lines]
        drafts = self._drafter.propose([line.row for line in lines], limits)
        drafts = [draft[:limit] for draft, limit in zip(drafts, limits, strict=True)]
        shares = [line.pace.acceptance.share for line in lines]
        width = self._payoff.width([Wish(len(draft), share) for draft, share in zip(drafts, shares, strict=True)])
        return [draft[:width] for draft in drafts]

    def _try(self, line: _Line, draft: Sequence[int]) -> _Attempt | None:
        """Spell a draft; None where its row fails."""
        try:
            return self._spell(line, draft)
        except BaseException as error:  # what is not the row's is raised
            line.row.fail(error)
            return None

    def _spell(self, line: _Line, draft: Sequence[int]) -> _Attempt:
        """Write a draft in every head's ids, up to the first key that cannot be verified in the same forward.

        That is the end slot, a key that the UTF-8 guard forbids, one that does not fit, and, in canonical contexts, one
        that changes ids before it.
        """
        row, vocabulary = line.row, self._heads.vocabulary
        attempt = _Attempt(line, [], [row.contexts], [], [row.utf8_state])
        for slot in draft:
            if slot == vocabulary.eos_slot or not vocabulary.guard.allows(attempt.states[-1], slot):
                break
            contexts = tuple(context.fork() for context in attempt.contexts[-1])
            advances = tuple(
                context.append(vocabulary.keys[slot], vocabulary.ids(k, slot)) for k, context in enumerate(contexts)
            )
            fits = all(
                row.has_room(k, len(context.ids), self._heads.models[k].max_positions)
                for k, context in enumerate(contexts)
            )
            if not fits or any(advance.rollback for advance in advances):
                break
            attempt.draft.append(slot)
            attempt.contexts.append(contexts)
            attempt.advances.append(advances)
            attempt.states.append(vocabulary.guard.advance(attempt.states[-1], slot))
        return attempt

    def _verify(self, attempts: Sequence[_Attempt]) -> list[Tensor]:
        """Feed every head what is pending and the drafts, in one forward each; return logits behind each key."""
        heads = self._heads
        logits: list[Tensor] = [torch.empty(0)] * len(heads.sessions)
        if not attempts:
            return []

        def verify(k: int) -> None:
            session, segments = heads.sessions[k], {}
            for attempt in attempts:
                line, handle = attempt.line, attempt.line.row.handles[k]
                ids = attempt.contexts[0][k].ids
                session.rollback(handle, line.held[k] - line.valid[k])
                segments[handle] = [ids[line.valid[k] :], *(advances[k].ids for advances in attempt.advances)]
                line.held[k] = line.valid[k] + sum(map(len, segments[handle]))
                line.valid[k] = len(ids)
            logits[k] = session.verify(segments)

        seconds = heads.lanes.run(verify)
        for attempt in attempts:
            row = attempt.line.row
            if row.rounds is not None:
                row.rounds += 1
            for head, spent in zip(row.heads, seconds, strict=True):
                head.forward_seconds += spent / len(attempts)
        return logits

    def _choose(self, attempts: Sequence[_Attempt], logits: Sequence[Tensor]) -> Choice:
        """Choose a slot at every place of every draft, as if all before it in the draft were right."""
        places = Places()
        for attempt in attempts:
            attempt.first = len(places.states)
            places.add(attempt.line.row, attempt.states)
        return self._heads.choose(logits, places)

    def _walk(self, attempt: _Attempt, choice: Choice, num_rows: int) -> int:
        """Emit what was chosen along a draft until it differs; return how many tokens that were."""
        row, line = attempt.line.row, attempt.line
        row.fuse_seconds += choice.fuse_seconds / num_rows
        for head, seconds in zip(row.heads, choice.transfers, strict=True):
            head.transfer_seconds += seconds / num_rows
        row.drafted += len(attempt.draft)
        line.is_fresh = False
        emitted = 0
        for index in range(len(attempt.draft) + 1):
            place = attempt.first + index
            slot = self._slot(attempt, choice, index)
            is_accepted = index < len(attempt.draft) and attempt.draft[index] == slot
            self._heads.count(row, choice, place, slot)
            self._heads.tell(row, choice, place, slot)
            row.emit(slot, self._heads.vocabulary)
            emitted += 1
            row.accepted += is_accepted
            if row.finish_reason or not self._continue(line, attempt, index, slot, is_accepted) or not is_accepted:
                break
        line.pace.learn(len(attempt.draft), emitted - 1)
        self._payoff.note(len(attempt.draft), emitted - 1)
        return emitted

    def _slot(self, attempt: _Attempt, choice: Choice, index: int) -> int:
        place, row = attempt.first + index, attempt.line.row
        if not (self._heads.step.decoding.strict and self._heads.is_near_tie(choice.leads[place])):
            return choice.slots[place]
        ids = [context.ids for context in attempt.contexts[index]]
        return self._heads.decide_alone(row, ids, attempt.states[index])

    def _continue(self, line: _Line, attempt: _Attempt, index: int, slot: int, is_accepted: bool) -> bool:
        """Take an emitted key into every head's context; return False where one of them is full."""
        row, vocabulary = line.row, self._heads.vocabulary
        if is_accepted:
            row.contexts = attempt.contexts[index + 1]
        for k, context in enumerate(row.contexts):
            if is_accepted:
                advance = attempt.advances[index][k]
                line.valid[k] += len(advance.ids)
            else:
                advance = context.append(vocabulary.keys[slot], vocabulary.ids(k, slot))
                line.valid[k] -= advance.rollback
            if row.context_full(k, self._heads.models[k].max_positions, len(advance.ids) - advance.rollback):
                return False
            row.heads[k].fed += len(advance.ids)
        return True


def _paired(first: Sequence[Tensor], second: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield what there is of each head's tensors; either side may be missing for all heads."""
    for k in range(max(len(first), len(second))):
        yield [side[k] for side in (first, second) if side]
