"""The host's decoding loop, in rounds: propose, feed, fuse and choose, commit. Without proposals it is the reference.

One round of a batch:
1. propose: something may guess the next keys of a row; where nothing does, the loop is a plain one;
2. feed: every head reads in one forward, for all rows, the ids of the last emitted key and of the proposed ones;
3. fuse and choose: behind every key, all heads' logits become one distribution and that one slot;
4. commit: each row emits what was chosen, along its proposal up to the first slot that is not the proposed one, that
   one included. So the text is that of plain decoding; what was guessed wrong is rolled back in the next round.
The last emitted key is never in a cache, so every round has something to feed. Rows end at different times and waiting
rows take their places; nothing is prefilled twice.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from flowinfer.backends.base import Session, TokenModel
from flowinfer.engine.base import Completion, Observer, Row
from flowinfer.engine.loops.acceptance import DraftOdds, Payoff
from flowinfer.engine.loops.choosing import Decision, Prefixes
from flowinfer.engine.loops.clock import Clock, Part
from flowinfer.engine.loops.drafts import Drafter
from flowinfer.engine.loops.heads import Heads
from flowinfer.engine.loops.proposals import BatchRow, Proposal, spell
from flowinfer.engine.loops.rows import LiveRow
from flowinfer.engine.loops.workers import DeviceWorkers
from flowinfer.planning.plan import Step

MakeDrafter = Callable[[Heads], Drafter]
ChooseThreads = Callable[[int], AbstractContextManager[None]]


class RoundDecoder:
    """Decode one step's rows in rounds; a `Decoder`.

    Args:
        step: what to decode.
        models: the loaded model of each member of the step.
        batch: most rows at once.
        observer: hears tokens and ends.
        keeps_thinking: whether later stages read <think>...</think>.
        drafter: makes what proposes keys; None = nothing does.
        payoff: whether rounds draft; always if not given.
        open_sessions: makes a session for each model, if not the models' own.
        threads: what a round over so many rows runs in.
        clock: times the parts of rounds.
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
        clock: Clock | None = None,
    ) -> None:
        self.heads = Heads(step, models, observer=observer, keeps_thinking=keeps_thinking)
        self.batch = batch
        self.drafter = drafter(self.heads) if drafter else None
        self.payoff = payoff or Payoff(is_on=False)
        self.open_sessions = open_sessions or (lambda: [model.open() for model in models])
        self.threads = threads
        self.clock = clock or Clock()
        devices = [model.device for model in models]
        self.workers = DeviceWorkers(devices, self.clock, overlaps=open_sessions is not None)

    def stream(self) -> RoundStream:
        """Return a new run; the one before must be closed."""
        return RoundStream(self)


class RoundStream:
    """One run of rounds, brought on a round at a time; a `RowStream`."""

    is_waiting = False

    def __init__(self, decoder: RoundDecoder) -> None:
        self._decoder = decoder
        self._heads, self._clock, self._workers = decoder.heads, decoder.clock, decoder.workers
        self._drafter, self._payoff = decoder.drafter, decoder.payoff
        self._waiting: deque[Row] = deque()
        self.sessions = decoder.open_sessions()
        """One of each head."""
        self.batch: list[BatchRow] = []
        """Rows that are being decoded."""

    @property
    def num_rows(self) -> int:
        """Return how many rows have not ended."""
        return len(self._waiting) + len(self.batch)

    def add(self, row: Row) -> None:
        """Take a row; it begins when there is room."""
        self._waiting.append(row)

    def turn(self) -> list[Completion]:
        """Admit rows and do a round; return the rows that ended."""
        misfits = self._admit()
        if self.batch:
            with self._decoder.threads(len(self.batch)):
                self._round()
        ended = [row for row in self.batch if row.row.finish_reason]
        self._remove(ended)
        return [*misfits, *(self._heads.complete(row.row) for row in ended)]

    def wait(self) -> None:
        """Do nothing: every turn of it does something."""

    def end(self, row: Row) -> None:
        """End a row from outside."""
        self._waiting = deque(other for other in self._waiting if other is not row)
        self._remove([own for own in self.batch if own.row.row is row])

    def close(self) -> None:
        """Let go of all rows, their keys and values."""
        self._waiting.clear()
        self.batch, self.sessions = [], []
        if self._drafter:
            self._drafter.close()

    def _admit(self) -> list[Completion]:
        """Let every head read the prompts of waiting rows that there is room for; return those that cannot run."""
        room = min(self._decoder.batch - len(self.batch), len(self._waiting))
        taken = self._heads.take((self._waiting.popleft() for _ in range(room)), room, len(self.batch))
        rows = [row for row in taken if isinstance(row, LiveRow)]
        if rows:
            self._prefill(rows)
        return [outcome for outcome in taken if isinstance(outcome, Completion)]

    def _prefill(self, rows: Sequence[LiveRow]) -> None:
        handles: list[list[int]] = [[] for _ in self.sessions]

        def read(k: int) -> None:
            handles[k] = self.sessions[k].add([row.prompts[k].ids for row in rows])

        self._workers.run("prefill", read)
        seconds = self._take_seconds("prefill")
        for row, *own in zip(rows, *handles, strict=True):
            row.rounds = 0 if self._drafter else None
            for head, spent in zip(row.heads, seconds, strict=True):
                head.forward_seconds += spent / len(rows)
            self.batch.append(BatchRow(row, own, [0] * len(own), [0] * len(own), self._payoff.new_length()))

    @torch.inference_mode()
    def _round(self) -> None:
        """Emit one token or more in every row."""
        start = time.perf_counter()
        fresh = [row for row in self.batch if row.is_fresh]
        # 1. propose
        proposals = self._propose([row for row in self.batch if not row.is_fresh])
        # 2. feed
        logits = self._feed(proposals, fresh)  # K of (N, V_k), N = the rows and their proposed keys
        proposals += [spell(row, (), self._heads) for row in fresh]
        if not proposals:
            return
        # 3. fuse and choose
        decisions = self._choose(proposals, logits)
        # 4. commit
        with self._clock.phase("append"):
            emitted = sum(self._commit(own, found) for own, found in zip(proposals, decisions, strict=True))
        self._heads.observer.tokens_emitted(emitted)
        if not fresh:
            width = max(len(proposal.slots) for proposal in proposals)
            self._payoff.learn(len(self.batch), width, time.perf_counter() - start)

    def _propose(self, rows: Sequence[BatchRow]) -> list[Proposal]:
        """Ask for drafts where rows have room for them; a row whose draft cannot be spelled fails."""
        drafts: list[list[int]] = [[] for _ in rows]
        if self._drafter and rows and self._payoff.is_open(len(rows)):
            limits = [max(0, min(row.draft_length.limit(), row.row.tokens_left - 1)) for row in rows]
            drafts = self._drafter.propose([row.row for row in rows], limits)
            drafts = [draft[:limit] for draft, limit in zip(drafts, limits, strict=True)]
            shares = [row.draft_length.acceptance.share for row in rows]
            odds = [DraftOdds(len(draft), share) for draft, share in zip(drafts, shares, strict=True)]
            width = self._payoff.width(odds)
            drafts = [draft[:width] for draft in drafts]
        proposals = []
        for row, draft in zip(rows, drafts, strict=True):
            try:
                proposals.append(spell(row, draft, self._heads))
            except BaseException as error:  # what is not the row's is raised
                row.row.fail(error)
        return proposals

    def _feed(self, proposals: Sequence[Proposal], fresh: Sequence[BatchRow]) -> list[Tensor]:
        """Let every head read what is pending and proposed, in one forward.

        Returns:
            K tensors of shape (N, V_k): logits behind each proposal and each of its keys, then behind fresh prompts.
        """
        logits: list[Tensor] = [torch.empty(0)] * len(self.sessions)

        def feed(k: int) -> None:
            session, found = self.sessions[k], []
            if fresh:
                found.append(session.logits([row.handles[k] for row in fresh]))
            segments = {}
            for proposal in proposals:
                row = proposal.row
                session.rollback(row.handles[k], row.held[k] - row.valid[k])
                segments[row.handles[k]] = proposal.pending(k)
                row.held[k] = row.valid[k] + sum(map(len, segments[row.handles[k]]))
                row.valid[k] = len(proposal.contexts[0][k].ids)
            if segments:
                found.insert(0, session.verify(segments))
            if found:
                logits[k] = torch.cat(found) if len(found) > 1 else found[0]

        self._workers.run("forward", feed)
        seconds = self._take_seconds("forward")
        for proposal in proposals:
            row = proposal.row.row
            if row.rounds is not None:
                row.rounds += 1
            for head, spent in zip(row.heads, seconds, strict=True):
                head.forward_seconds += spent / len(proposals)
        return logits

    def _choose(self, proposals: Sequence[Proposal], logits: Sequence[Tensor]) -> list[list[Decision]]:
        """Choose a slot behind every key of every proposal, as if all before it in the proposal were right."""
        prefixes = Prefixes()
        for proposal in proposals:
            prefixes.add(proposal.row.row, proposal.states)
        decisions = iter(self._heads.decide(logits, prefixes, self._clock))
        fuse, transfers = self._clock.take("fuse"), self._take_seconds("transfer")
        for proposal in proposals:
            row = proposal.row.row
            row.fuse_seconds += fuse / len(proposals)
            for head, spent in zip(row.heads, transfers, strict=True):
                head.transfer_seconds += spent / len(proposals)
        return [[next(decisions) for _ in proposal.states] for proposal in proposals]

    def _commit(self, proposal: Proposal, decisions: Sequence[Decision]) -> int:
        """Emit what was chosen along a proposal until it differs; return how many tokens that were."""
        row, live = proposal.row, proposal.row.row
        row.is_fresh = False
        live.drafted += len(proposal.slots)
        emitted = 0
        try:
            for index, decision in enumerate(decisions):
                if self._heads.is_doubtful(decision):
                    ids = [context.ids for context in proposal.contexts[index]]
                    decision = self._heads.decide_alone(live, ids, decision)
                is_accepted = index < len(proposal.slots) and proposal.slots[index] == decision.slot
                self._heads.emit(live, decision)
                emitted += 1
                live.accepted += is_accepted
                if not live.finish_reason:
                    self._append(proposal, index, decision.slot, is_accepted=is_accepted)
                if live.finish_reason or not is_accepted:
                    break
        except BaseException as error:  # what is not the row's is raised
            live.fail(error)
            return 0
        row.draft_length.learn(len(proposal.slots), emitted - 1)
        self._payoff.note(len(proposal.slots), emitted - 1)
        return emitted

    def _append(self, proposal: Proposal, index: int, slot: int, *, is_accepted: bool) -> None:
        """Take an emitted key into every head's context; end the row where one of them is full."""
        row, live = proposal.row, proposal.row.row
        if is_accepted:
            live.contexts, advances = proposal.contexts[index + 1], proposal.advances[index]
        else:
            advances = self._heads.advance(live.contexts, slot)
        for k, advance in enumerate(advances):
            row.valid[k] += len(advance.ids) if is_accepted else -advance.rollback
            if live.context_full(k, self._heads.models[k].max_positions, len(advance.ids) - advance.rollback):
                return
            live.heads[k].fed += len(advance.ids)

    def _remove(self, gone: Sequence[BatchRow]) -> None:
        """Take rows out of the sessions."""
        if not gone:
            return
        for k, session in enumerate(self.sessions):
            session.remove([row.handles[k] for row in gone])
        if self._drafter:
            self._drafter.forget([row.row for row in gone])
        self.batch = [row for row in self.batch if row not in gone]

    def _take_seconds(self, part: Part) -> list[float]:
        return [self._clock.take(part, k) for k in range(len(self.sessions))]
