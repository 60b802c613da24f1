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
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flowinfer.backends.base import Session, TokenModel, bytes_beside, is_elsewhere
from flowinfer.engine.base import Completion, Observer, Row
from flowinfer.engine.loops.acceptance import DraftOdds, Payoff
from flowinfer.engine.loops.choosing import Decision, Prefixes
from flowinfer.engine.loops.clock import Clock, Part
from flowinfer.engine.loops.drafts import Drafter
from flowinfer.engine.loops.heads import Heads
from flowinfer.engine.loops.losses import HeadSessions
from flowinfer.engine.loops.proposals import Proposal, SessionRow, spell
from flowinfer.engine.loops.rows import LiveRow
from flowinfer.engine.loops.workers import DeviceWorkers
from flowinfer.errors import HeadCut, HeadLost
from flowinfer.fusion.certified import Candidates, together
from flowinfer.planning.plan import Step

CANDIDATES = 64
"""Columns that a head elsewhere names of each distribution: 512 bytes."""

MakeDrafter = Callable[[Heads], Drafter]
ChooseThreads = Callable[[int], AbstractContextManager[None]]


@dataclass(eq=False)
class RoundDecoder:
    """Decode one step's rows in rounds; a `Decoder`."""

    step: Step
    models: Sequence[TokenModel]
    """The loaded model of each member of the step."""
    batch: int
    """Most rows at once."""
    observer: Observer
    """Hears tokens and ends."""
    keeps_thinking: bool = False
    """Whether later stages read <think>...</think>."""
    drafter: MakeDrafter | None = None
    """Makes what proposes keys; None = nothing does."""
    payoff: Payoff = field(default_factory=lambda: Payoff(is_on=False))
    """Whether rounds draft, and how far; always and wholly if not given."""
    open_sessions: Callable[[], list[Session]] | None = None
    """Makes a session for each model that is here; None = the models' own."""
    threads: ChooseThreads = lambda _: nullcontext()
    """What a round over so many rows runs in."""
    clock: Clock = field(default_factory=Clock)
    """Times the parts of rounds."""

    def __post_init__(self) -> None:
        self.heads = Heads(self.step, self.models, observer=self.observer, keeps_thinking=self.keeps_thinking)
        devices = [model.device for model in self.models]
        beside = [bytes_beside(model) for model in self.models]
        elsewhere = [is_elsewhere(model) for model in self.models]
        is_queued = self.open_sessions is not None
        self.workers = DeviceWorkers(devices, self.clock, beside=beside, elsewhere=elsewhere, is_queued=is_queued)
        self.waits_elsewhere = any(elsewhere)
        """Whether its turns wait for other processes."""

    @property
    def keeps_host_busy(self) -> bool:
        """Return whether nothing else can go on during its turns."""
        return not self.waits_elsewhere

    def stream(self) -> RoundStream:
        """Return a new run; the one before must be closed."""
        return RoundStream(self)


class RoundStream:
    """One run of rounds, brought on a round at a time; a `RowStream`."""

    is_waiting = False

    def __init__(self, decoder: RoundDecoder) -> None:
        self._decoder = decoder
        self._heads, self._clock, self._workers = decoder.heads, decoder.clock, decoder.workers
        self._drafter = decoder.drafter(decoder.heads) if decoder.drafter else None
        self._payoff = decoder.payoff
        self._waiting: deque[Row] = deque()
        self._misfits: list[Completion] = []
        """Rows that could not begin, and of which nobody has been told."""
        self._of_heads = HeadSessions(decoder.heads, decoder.open_sessions() if decoder.open_sessions else None)
        self.sessions = self._of_heads.all
        """One of each head."""
        self.batch: list[SessionRow] = []
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
        try:
            self._admit()
            if self.batch:
                with self._decoder.threads(len(self.batch)):
                    self._round()
        except (HeadCut, HeadLost) as error:
            self._go_on_without(error)
        ended = [row for row in self.batch if row.live.finish_reason]
        self._remove(ended)
        misfits, self._misfits = self._misfits, []
        return [*misfits, *(self._heads.complete(row.live) for row in ended)]

    def wait(self) -> None:
        """Do nothing: every turn of it does something."""

    def end(self, row: Row) -> None:
        """End a row from outside."""
        self._waiting = deque(other for other in self._waiting if other is not row)
        self._remove([own for own in self.batch if own.live.row is row])

    def close(self) -> None:
        """Let go of all rows, their keys and values."""
        self._waiting.clear()
        self.batch, self.sessions, self._drafter = [], [], None

    def _go_on_without(self, error: HeadCut | HeadLost) -> None:
        """Let all rows go on from where they are without the heads that are lost; see `HeadSessions.go_without`."""
        lost = self._of_heads.go_without(error)
        for row in self.batch:
            row.live.lose(lost)
            row.is_fresh = not row.live.num_tokens
            for k, context in enumerate(row.live.contexts):  # the round that broke may have read all of it
                row.valid[k] = max(0, min(row.valid[k], len(context.ids) - 1))

    def _admit(self) -> None:
        """Let every head read the prompts of waiting rows that there is room for; note those that cannot run.

        Rows that a head has left end first.
        """
        if self._heads.lost and self._waiting:
            if self.batch:
                return
            self._of_heads.look_again()
        room = min(self._decoder.batch - len(self.batch), len(self._waiting))
        taken = [self._waiting.popleft() for _ in range(room)]
        misfits, rows = list[Completion](), list[LiveRow]()
        try:
            for row in taken:
                begun = self._heads.begin(row, len(self.batch) + len(rows) + 1)
                if isinstance(begun, LiveRow):
                    rows.append(begun)
                else:
                    misfits.append(begun)
            if rows:
                self._prefill(rows)
        except (HeadCut, HeadLost):
            self._waiting.extendleft(reversed(taken))
            raise
        self._misfits += misfits

    def _prefill(self, rows: Sequence[LiveRow]) -> None:
        handles: list[list[int]] = [[] for _ in self.sessions]
        try:
            self._read_prompts(rows, handles)
            joint = [index for index, row in enumerate(rows) if row.begins_jointly]
            if joint:
                names = [[of_head[index] for index in joint] for of_head in handles]
                self._heads.take_spaces([rows[index] for index in joint], self.sessions, names)
        except HeadCut:
            for session, own in zip(self.sessions, handles, strict=True):
                session.remove(own)
            raise
        seconds, num_live = self._take_seconds("prefill"), len(self.batch) + len(rows)
        for row, *own in zip(rows, *handles, strict=True):
            row.rounds, row.batch = 0 if self._drafter else None, num_live
            for head, spent in zip(row.heads, seconds, strict=True):
                head.forward_seconds += spent / len(rows)
            self.batch.append(self._session_row(row, own))

    def _session_row(self, row: LiveRow, handles: list[int]) -> SessionRow:
        """Return a row whose prompt was read."""
        return SessionRow(row, handles, [0] * len(handles), [0] * len(handles), self._payoff.new_length())

    def _read_prompts(self, rows: Sequence[LiveRow], handles: list[list[int]]) -> None:
        """Let every head read the rows' prompts; note its handles of them."""

        def read(k: int) -> None:
            handles[k] = self.sessions[k].add([row.prompts[k].ids for row in rows])

        self._workers.run("prefill", read)

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

    def _propose(self, rows: Sequence[SessionRow]) -> list[Proposal]:
        """Ask for drafts where rows have room for them; a row whose draft cannot be spelled fails."""
        drafts: list[list[int]] = [[] for _ in rows]
        if self._drafter and rows and self._payoff.is_open(len(rows)):
            limits = [max(0, min(row.draft_length.limit(), row.live.tokens_left - 1)) for row in rows]
            drafts = self._drafter.propose([row.live for row in rows], limits)
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
                row.live.fail(error)
        return proposals

    def _takes_candidates(self) -> bool:
        """Return whether heads elsewhere need not send whole distributions: no row draws, nobody wants to know more."""
        is_greedy = all(row.live.decoding.temperature == 0 for row in self.batch)
        return self._heads.mixer.takes_candidates and is_greedy and not self._heads.observer.num_tops

    def _feed(self, proposals: Sequence[Proposal], fresh: Sequence[SessionRow]) -> list[Tensor | Candidates]:
        """Let every head read what is pending and proposed, in one forward.

        Returns:
            K tensors of shape (N, V_k): logits behind each proposal and each of its keys, then behind fresh prompts.
            Heads elsewhere may give candidates.
        """
        logits: list[Tensor | Candidates] = [torch.empty(0)] * len(self.sessions)

        takes_some = self._takes_candidates()

        def feed(k: int) -> None:
            session, found = self.sessions[k], list[Tensor | Candidates]()
            apart = self._of_heads.apart[k] if takes_some else None
            if fresh:
                rows = [row.handles[k] for row in fresh]
                found.append(apart.best(rows, CANDIDATES) if apart else session.logits(rows))
            segments = {}
            for proposal in proposals:
                row = proposal.row
                session.rollback(row.handles[k], row.held[k] - row.valid[k])
                segments[row.handles[k]] = proposal.pending(k)
                row.held[k] = row.valid[k] + sum(map(len, segments[row.handles[k]]))
                row.valid[k] = len(proposal.contexts[0][k].ids)
            if segments:
                found.insert(0, apart.verify_best(segments, CANDIDATES) if apart else session.verify(segments))
            if found:
                logits[k] = together(found)

        self._workers.run("forward", feed)
        seconds = self._take_seconds("forward")
        for proposal in proposals:
            row = proposal.row.live
            if row.rounds is not None:
                row.rounds += 1
            for head, spent in zip(row.heads, seconds, strict=True):
                head.forward_seconds += spent / len(proposals)
        return logits

    def _choose(self, proposals: Sequence[Proposal], logits: Sequence[Tensor | Candidates]) -> list[list[Decision]]:
        """Choose a slot behind every key of every proposal, as if all before it in the proposal were right."""
        prefixes = Prefixes()
        for proposal in proposals:
            prefixes.add(proposal.row.live, proposal.states)
        decisions = iter(self._heads.decide(logits, prefixes, self._clock))
        fuse, transfers = self._clock.take("fuse"), self._take_seconds("transfer")
        for proposal in proposals:
            row = proposal.row.live
            row.fuse_seconds += fuse / len(proposals)
            for head, spent in zip(row.heads, transfers, strict=True):
                head.transfer_seconds += spent / len(proposals)
        return [[next(decisions) for _ in proposal.states] for proposal in proposals]

    def _commit(self, proposal: Proposal, decisions: Sequence[Decision]) -> int:
        """Emit what was chosen along a proposal until it differs; return how many tokens that were."""
        row, live = proposal.row, proposal.row.live
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
        row, live = proposal.row, proposal.row.live
        if is_accepted:
            live.contexts, advances = proposal.contexts[index + 1], proposal.advances[index]
        else:
            advances = self._heads.advance(live.contexts, slot)
        for k, advance in enumerate(advances):
            if not live.finish_reason:
                row.valid[k] += len(advance.ids) if is_accepted else -advance.rollback
                live.feed(k, len(advance.ids), self._heads.models[k].max_positions)

    def _remove(self, gone: Sequence[SessionRow]) -> None:
        """Take rows out of the sessions."""
        if not gone:
            return
        for k, session in enumerate(self.sessions):
            session.remove([row.handles[k] for row in gone])
        if self._drafter:
            self._drafter.forget([row.live for row in gone])
        self.batch = [row for row in self.batch if row not in gone]

    def _take_seconds(self, part: Part) -> list[float]:
        return [self._clock.take(part, k) for k in range(len(self.sessions))]
