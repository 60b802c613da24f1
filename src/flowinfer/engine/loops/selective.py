"""The host's loop for a group that is fused only where it matters (`fuse=safe`): one head writes, the others verify.

One round of a batch:
1. write: the writer writes ahead alone, in its own tokens, several of them;
2. verify: each other head reads the draft in the tokens that its own tokenizer makes of the text, in one forward;
3. decide: at each place in the draft that is a token boundary for all heads, a head that gives the writer's next token
   less than `tau` disagrees, and what all heads would write there, fused, is chosen as in every other loop;
4. commit: the writer's tokens stand up to the first place where all heads chose another one, that one included.
What is decided at a place follows from the text before it (`verifying`), neither from the batch nor from how far ahead
the writer was. What it has written behind what could be verified is kept for the next round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowinfer.engine.loops.choosing import Decision, pairs, read, tops_of
from flowinfer.engine.loops.drafting import shares_of
from flowinfer.engine.loops.heads import Heads
from flowinfer.engine.loops.mixing import fuser_of, tie
from flowinfer.engine.loops.proposals import SessionRow
from flowinfer.engine.loops.rounds import RoundDecoder, RoundStream
from flowinfer.engine.loops.rows import LiveRow
from flowinfer.engine.loops.sampling import choose_slots, draws_of
from flowinfer.engine.loops.verifying import Draft, Place, Seen, SelectiveRow, Verifier, Wish, spell
from flowinfer.fusion.fusers import Safe
from flowinfer.planning.plan import Mixture


@dataclass(eq=False)
class SelectiveDecoder(RoundDecoder):
    """Decode one step's rows by one head that the others verify; a `Decoder`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        assert isinstance(self.step.source, Mixture), "only a group has heads that verify"
        fuser = fuser_of(self.step.source)
        assert isinstance(fuser, Safe), "its fuser says when heads disagree"
        self.ahead = fuser.ahead
        self.verifier = Verifier(self.heads, _writer_of(self.heads, fuser.writer), fuser.tau)

    def stream(self) -> SelectiveStream:
        """Return a new run; the one before must be closed."""
        return SelectiveStream(self)


class SelectiveStream(RoundStream):
    """One run of rounds in each of which one head writes ahead and the others verify; a `RowStream`."""

    def __init__(self, decoder: SelectiveDecoder) -> None:
        super().__init__(decoder)
        self._ahead, self._verifier, self._writer = decoder.ahead, decoder.verifier, decoder.verifier.writer
        others = [model.device for k, model in enumerate(decoder.models) if k != self._writer]
        self._num_verifying = max(map(others.count, others), default=0)
        """Forwards in turn in which the others verify: those of several devices do it at the same time."""

    def _session_row(self, row: LiveRow, handles: list[int]) -> SessionRow:
        row.rounds = row.fused = 0
        n, written = len(handles), row.contexts[self._writer].fork()
        length = self._payoff.new_length()
        return SelectiveRow(row, handles, [0] * n, [0] * n, length, False, [()] * n, written)

    @torch.inference_mode()
    def _round(self) -> None:
        """Emit a token or more in every row."""
        rows = [row for row in self.batch if isinstance(row, SelectiveRow) and not row.live.finish_reason]
        # 1. write
        self._write(rows)
        # 2. verify
        drafts = self._drafts(rows)
        if not drafts:
            return
        seen = self._verify(drafts)
        # 3. decide
        decided = self._verifier.decide(drafts, seen, self._clock)
        fuse, transfers = self._clock.take("fuse"), self._take_seconds("transfer")
        for live in (draft.row.live for draft in drafts):
            live.fuse_seconds += fuse / len(drafts)
            for head, spent in zip(live.heads, transfers, strict=True):
                head.transfer_seconds += spent / len(drafts)
        # 4. commit
        with self._clock.phase("append"):
            emitted = sum(self._take(draft, decisions) for draft, decisions in zip(drafts, decided, strict=True))
        self._heads.observer.tokens_emitted(emitted)

    def _write(self, rows: Sequence[SelectiveRow]) -> None:
        """Let the writer write ahead, all rows together and equally far: a forward over few costs as much."""
        shares = [row.draft_length.acceptance.share for row in rows]
        length = ahead_of(shares, self._num_verifying, self._ahead)
        while going := [row for row in rows if len(row.wishes) < min(length, row.live.tokens_left)]:
            if not (going := [row for row in going if self._may_write(row)]):
                break
            self._write_one(going)

    def _may_write(self, row: SelectiveRow) -> bool:
        has_ended = bool(row.wishes) and row.wishes[-1].slot == self._heads.vocabulary.eos_slot
        most = self._heads.models[self._writer].max_positions
        has_room = row.live.has_room(self._writer, len(row.written.ids), most)
        return has_room and not has_ended and not row.live.finish_reason

    def _write_one(self, rows: Sequence[SelectiveRow]) -> None:
        """Let the writer write a token more in each row."""
        order, logits = self._ask_writer(rows)
        heads, mixer = self._heads, self._heads.mixer
        with self._clock.phase("fuse", name="write"):
            joined = [row.live.joined[self._writer] and not row.written.ids for row in order]
            probs = mixer.lift_one(self._writer, logits, joined).to(mixer.device)  # (N, V_w) -> (N, V)
            allowed = heads.vocabulary.guard.mask(torch.tensor([row.state for row in order], device=mixer.device))
            lives, indices = [row.live for row in order], [row.live.num_tokens + len(row.wishes) for row in order]
            draws = draws_of([live.decoding for live in lives], [live.key for live in lives], indices, mixer.device)
            chosen = choose_slots(probs, allowed, draws)
            values = probs.gather(-1, chosen.slots[:, None])[:, 0]
            best = probs.max(-1)
            tops = tops_of(probs, allowed, heads.observer.num_tops) if heads.observer.num_tops else None
            slots, *told = read(chosen.slots, values, chosen.leads, best.indices, best.values)
            told[2] = [int(favourite) for favourite in told[2]]
            wishes = map(Wish, map(int, slots), *told, pairs(tops, len(order)), logits)
        for row, wish in zip(order, wishes, strict=True):
            try:
                row.write(wish, heads, self._writer)
            except BaseException as error:  # what is not the row's is raised
                row.live.fail(error)

    def _ask_writer(self, rows: Sequence[SelectiveRow]) -> tuple[list[SelectiveRow], Tensor]:
        """Return rows in another order, and what the writer says behind what it has written: (N, V_w)."""
        fresh, others = [row for row in rows if not row.written.ids], [row for row in rows if row.written.ids]
        found = list[Tensor]()

        def ask(k: int) -> None:
            if k != self._writer:
                return
            session, segments = self.sessions[k], {}
            for row in others:
                ids = row.written.ids
                segments[row.handles[k]] = [ids[row.hold(k, session, ids, len(ids) - 1) :]]
                row.live.heads[k].forwards += 1
            if fresh:
                found.append(session.logits([row.handles[k] for row in fresh]))
            if segments:
                found.append(session.verify(segments))

        self._forward(ask, rows)
        return [*fresh, *others], torch.cat(found)  # a copy: the next forward may write where these lie

    def _drafts(self, rows: Sequence[SelectiveRow]) -> list[Draft]:
        """Write what was written ahead in every head's ids; a row where that cannot be done fails."""
        drafts = []
        for row in rows:
            try:
                if not row.live.finish_reason:
                    drafts.append(spell(row, self._heads))
            except BaseException as error:  # what is not the row's is raised
                row.live.fail(error)
        return drafts

    def _verify(self, drafts: Sequence[Draft]) -> list[Seen | None]:
        """Let every head but the writer read the drafts."""
        seen: list[Seen | None] = [None] * len(self.sessions)

        def read(k: int) -> None:
            if k != self._writer:
                seen[k] = self._verifier.read(k, self.sessions[k], drafts)

        self._forward(read, [draft.row for draft in drafts])
        for draft in drafts:
            draft.row.live.rounds = (draft.row.live.rounds or 0) + 1
        return seen

    def _forward(self, work: Callable[[int], None], rows: Sequence[SelectiveRow]) -> None:
        """Do a part of heads' work, and count its time evenly to some rows."""
        self._workers.run("forward", work)
        for k, spent in enumerate(self._take_seconds("forward")):
            for row in rows:
                row.live.heads[k].forward_seconds += spent / len(rows)

    def _take(self, draft: Draft, decisions: Sequence[Decision]) -> int:
        """Emit what was decided along a draft until the writer's token does not stand; return how many that were."""
        row, live = draft.row, draft.row.live
        emitted = stood = 0
        try:
            for place, decision in zip(draft.places, decisions, strict=True):
                stands = decision.slot == place.wish.slot
                self._heads.emit(live, decision)
                emitted, stood = emitted + 1, stood + stands
                if not live.finish_reason:
                    self._take_key(live, place, decision.slot)
                if live.finish_reason or not stands:
                    break
        except BaseException as error:  # what is not the row's is raised
            live.fail(error)
            return 0
        live.drafted, live.accepted = live.drafted + emitted, live.accepted + stood
        row.draft_length.learn(len(draft.places), stood)
        row.go_on(stood if stood == emitted else None, self._writer)
        return emitted

    def _take_key(self, live: LiveRow, place: Place, slot: int) -> None:
        """Take an emitted key into every head's context; end the row where one of them is full."""
        if slot == place.wish.slot:
            live.contexts, advances = place.after, place.advances
        else:
            advances = self._heads.advance(live.contexts, slot)
        for k, advance in enumerate(advances):
            if not live.finish_reason:
                live.feed(k, len(advance.ids), self._heads.models[k].max_positions)


def ahead_of(shares: Sequence[float], num_verifying: int, most: int) -> int:
    """Return how far to write so that a forward brings most tokens.

    Args:
        shares: of each row, how likely a wish stands if all before it did.
        num_verifying: forwards in which the others verify a draft, however long it is.
        most: longest draft.
    """
    expected, best = 0.0, (0.0, 1)
    for length in range(1, most + 1):
        expected += sum(share ** (length - 1) for share in shares)
        best = max(best, (expected / (length + num_verifying), length))
    return best[1]


def _writer_of(heads: Heads, name: str) -> int:
    """Return the head that writes: that of most weight, of equals the first by name; of those so named if one is."""
    shares, members = list(shares_of(heads.step.source)), heads.mixer.members
    named = [k for k, member in enumerate(members) if member.model == name] or range(len(members))
    return min(named, key=lambda k: (-shares[k], members[k].model, tie(members[k])))
