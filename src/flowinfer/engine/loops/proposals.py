"""What a round lets the heads read of a row: the keys that something proposes, in every head's own ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from flowinfer.backends.base import Session
from flowinfer.engine.loops.acceptance import DraftLength
from flowinfer.engine.loops.heads import Heads
from flowinfer.engine.loops.rows import LiveRow
from flowinfer.fusion.advance import Advance, Context, common_prefix


@dataclass(eq=False)
class SessionRow:
    """A live row, and what its sessions hold of it."""

    live: LiveRow
    handles: list[int]
    """Its name in each head's session."""
    held: list[int]
    """For each head, ids behind the prompt that its session holds."""
    valid: list[int]
    """For each head, how many of them stand in the row's context too."""
    draft_length: DraftLength
    is_fresh: bool = True
    """Whether only its prompt was read: its first distributions are there without a forward."""


@dataclass(eq=False)
class PathRow(SessionRow):
    """A live row of whose ids each session holds a path of its own, which may part from what it is to read next."""

    path: list[tuple[int, ...]] = field(default_factory=list)
    """For each head, the ids behind the prompt that its session holds."""

    def hold(self, k: int, session: Session, ids: Sequence[int], kept: int) -> int:
        """Roll a head's session back to where it differs from some ids, which it is then to read.

        Args:
            k: the head.
            session: of it.
            ids: behind the prompt, to be held.
            kept: most of them that may be held already.
        Returns:
            how many of them it holds.
        """
        held = self.path[k]
        kept = min(kept, common_prefix(held, ids))
        session.rollback(self.handles[k], len(held) - kept)
        self.path[k] = tuple(ids)
        return kept


@dataclass
class Proposal:
    """The keys that a row may emit in one round, as far as they can be verified; none for a plain round."""

    row: SessionRow
    contexts: list[tuple[Context, ...]]
    """Each head's context before the keys and after each of them."""
    states: list[int]
    """UTF-8 state before the keys and after each of them."""
    slots: list[int] = field(default_factory=list)
    advances: list[tuple[Advance, ...]] = field(default_factory=list)
    """How each key changes each head's ids; nothing is rolled back in it."""

    def pending(self, head: int) -> list[Sequence[int]]:
        """Return what a head has to read, in segments: all ids that are new to its session, then each key's own."""
        ids = self.contexts[0][head].ids
        return [ids[self.row.valid[head] :], *(advances[head].ids for advances in self.advances)]


def spell(row: SessionRow, draft: Sequence[int], heads: Heads) -> Proposal:
    """Write a draft in every head's ids, up to the first key that cannot be verified in the same forward.

    That is the end slot, a key that the UTF-8 guard forbids, one that does not fit, and, in canonical contexts, one
    that changes ids before it.
    """
    live, vocabulary = row.live, heads.vocabulary
    proposal = Proposal(row, [live.contexts], [live.utf8_state])
    for slot in draft:
        if slot == vocabulary.eos_slot or not vocabulary.guard.allows(proposal.states[-1], slot):
            break
        contexts = tuple(context.fork() for context in proposal.contexts[-1])
        advances = heads.advance(contexts, slot)
        fits = all(
            live.has_room(k, len(context.ids), model.max_positions)
            for k, (context, model) in enumerate(zip(contexts, heads.models, strict=True))
        )
        if not fits or any(advance.rollback for advance in advances):
            break
        proposal.slots.append(slot)
        proposal.contexts.append(contexts)
        proposal.advances.append(advances)
        proposal.states.append(vocabulary.guard.advance(proposal.states[-1], slot))
    return proposal
