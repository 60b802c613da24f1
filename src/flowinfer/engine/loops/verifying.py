"""What heads that verify a writer's draft read of it, and where they disagree with it (`fuse=safe`).

A place, between two of the writer's tokens, is a token boundary for a head where its tokens of the text so far stay as
they are when the writer's next token is added to the text; inside a character only where all have the same tokens. Only
there a head can disagree, and only there all heads' distributions are fused. A head whose tokens are the writer's reads
the writer's own; each other one reads what its tokenizer makes of the text.

Several places are judged behind one forward. As later tokens may change the last ids of a head, the forward holds those
of the whole draft; a draft is cut before a token that would change ids behind which a place before it is judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from flowinfer.backends.base import Session
from flowinfer.engine.loops.choosing import UNASKED, Decision, Prefixes, read
from flowinfer.engine.loops.clock import Clock
from flowinfer.engine.loops.heads import Heads
from flowinfer.engine.loops.proposals import PathRow
from flowinfer.fusion.advance import Advance, Context, NativeContext
from flowinfer.fusion.selective import Agreement, Asked
from flowinfer.fusion.utf8 import BOUNDARY


class Wish(NamedTuple):
    """A token that the writer would write next."""

    slot: int
    value: float
    """What the writer gives to it."""
    lead: float
    """How far it is ahead of the writer's second best; 1 where it is drawn."""
    favourite: int
    """The writer's most probable slot."""
    of_favourite: float
    tops: Sequence[tuple[int, float]]
    """The writer's most probable slots, where somebody wants to know."""
    logits: Tensor
    """(V_w,), the writer's."""


@dataclass(eq=False)
class SelectiveRow(PathRow):
    """A live row, and what its writer has written ahead."""

    written: Context = field(default_factory=NativeContext)
    """The writer's context of the text with all wishes."""
    state: int = BOUNDARY
    """UTF-8 state behind them."""
    wishes: list[Wish] = field(default_factory=list)

    def write(self, wish: Wish, heads: Heads, writer: int) -> None:
        """Take a further wish."""
        self.wishes.append(wish)
        vocabulary = heads.vocabulary
        if wish.slot != vocabulary.eos_slot:
            self.written.append(vocabulary.keys[wish.slot], vocabulary.ids(writer, wish.slot))
            self.state = vocabulary.guard.advance(self.state, wish.slot)

    def go_on(self, num_stood: int | None, writer: int) -> None:
        """Forget the wishes that stood; all of them (None) where another token was emitted."""
        if num_stood is None:
            self.wishes, self.state = [], self.live.utf8_state
            self.written = self.live.contexts[writer].fork()
        else:
            del self.wishes[:num_stood]


@dataclass(frozen=True)
class Place:
    """A place of a draft, and the wish behind it."""

    wish: Wish
    state: int
    """UTF-8 state of the text before it."""
    before: tuple[Context, ...]
    """Each head's context of that text."""
    after: tuple[Context, ...]
    """The same with the wish."""
    advances: tuple[Advance, ...]
    """How they differ."""
    lengths: tuple[range, ...]
    """For each head, how many of its ids behind the prompt stand before each id of the wish, as far as it has room;
    () where it lies inside a token of some head: nobody is asked there."""


@dataclass(frozen=True)
class Draft:
    """What a row's writer has written ahead, as far as it can be verified in one forward."""

    row: SelectiveRow
    places: list[Place]

    def lengths(self, head: int) -> list[int]:
        """Return how many of its ids a head is to have read where it is asked, ascending."""
        return sorted({length for place in self.places if place.lengths for length in place.lengths[head]})


@dataclass(frozen=True)
class Seen:
    """What a head says of drafts."""

    logits: Tensor
    """(N, V_k)."""
    index: Mapping[tuple[int, int], int]
    """(number of the draft, ids read of it) -> which of them."""
    joined: Sequence[bool]
    """(N,), where the head begins the text with a space that is none."""


@dataclass(frozen=True)
class _Opinion:
    """What a head that verifies thinks at a place."""

    agreement: float
    """How likely it is to write the wish's bytes."""
    favourite: int
    of_favourite: float
    of_wish: float


def spell(row: SelectiveRow, heads: Heads) -> Draft:
    """Write a row's wishes in every head's ids, as far as what is judged before a wish does not change with it."""
    vocabulary, state, before = heads.vocabulary, row.live.utf8_state, row.live.contexts
    prompts = [len(prompt.ids) for prompt in row.live.prompts]
    rooms = [model.max_positions - taken for model, taken in zip(heads.models, prompts, strict=True)]
    needed, places = [0] * len(before), list[Place]()
    are_alike = all(kind == "native" for kind in heads.contexts)  # then a half character is a token of all
    for wish in row.wishes:
        is_end = wish.slot == vocabulary.eos_slot
        after = before if is_end else tuple(context.fork() for context in before)
        advances = tuple(Advance(0, ()) for _ in before) if is_end else heads.advance(after, wish.slot)
        kept = [len(context.ids) - advance.rollback for context, advance in zip(before, advances, strict=True)]
        if any(own < least for own, least in zip(kept, needed, strict=True)):
            break
        is_boundary = (state == BOUNDARY or are_alike) and not any(advance.rollback for advance in advances)
        ends = [
            min(max(len(context.ids), own + 1), room + 1) for context, own, room in zip(after, kept, rooms, strict=True)
        ]
        lengths = tuple(map(range, kept, ends)) if is_boundary else ()
        places.append(Place(wish, state, before, after, advances, lengths))
        if any(len(context.ids) > room for context, room in zip(after, rooms, strict=True)):
            break  # the row ends there
        if is_boundary:
            needed = [own[-1] for own in lengths]
        if not is_end:
            state, before = vocabulary.guard.advance(state, wish.slot), after
    return Draft(row, places)


class Verifier:
    """Asks a step's heads about drafts and decides what they emit.

    Args:
        heads: of the step.
        writer: which of them writes.
        tau: a head that gives less to a wish disagrees with it.
    """

    def __init__(self, heads: Heads, writer: int, tau: float) -> None:
        self._heads, self.writer, self._tau = heads, writer, tau
        self._agreement = Agreement(heads.vocabulary)
        heads.follow(writer)

    def read(self, k: int, session: Session, drafts: Sequence[Draft]) -> Seen | None:
        """Let a head read drafts where it is asked about them, in one forward; None where it is nowhere."""
        lengths = [draft.lengths(k) for draft in drafts]
        fresh = [number for number, own in enumerate(lengths) if own[:1] == [0]]  # asked behind the prompt, just read
        index = {(number, 0): row for row, number in enumerate(fresh)}
        segments = dict[int, list[Sequence[int]]]()
        for number, (draft, own) in enumerate(zip(drafts, lengths, strict=True)):
            further = [length for length in own if length]
            if not further:
                continue
            row, ids = draft.row, tuple(draft.places[-1].after[k].ids[: further[-1]])
            cuts = [row.hold(k, session, ids, further[0] - 1), *further]
            segments[row.handles[k]] = [ids[start:end] for start, end in pairwise(cuts)]
            row.live.heads[k].forwards += 1
            index |= {(number, length): len(index) + at for at, length in enumerate(further)}
        found = [session.logits([drafts[number].row.handles[k] for number in fresh])] if fresh else []
        found += [session.verify(segments)] if segments else []
        joined = [drafts[number].row.live.joined[k] and not length for number, length in index]
        return Seen(torch.cat(found), index, joined) if found else None

    def decide(self, drafts: Sequence[Draft], seen: Sequence[Seen | None], clock: Clock) -> list[list[Decision]]:
        """Decide what is emitted at each place of each draft, as if all before it stood.

        Args:
            drafts: what was written ahead.
            seen: what each head says of them, None of the writer.
            clock: times its phases.
        """
        with clock.phase("fuse", name="verify"):
            opinions = [self._opinions(k, one, drafts) if one else {} for k, one in enumerate(seen)]
        fused = iter(self._fused(drafts, seen, opinions, clock))
        decided = []
        for number, draft in enumerate(drafts):
            own = [[one.get((number, at)) for one in opinions] for at in range(len(draft.places))]
            decided.append(
                [
                    next(fused)._replace(is_fused=True) if self._is_doubted(found) else self._stands(place.wish, found)
                    for place, found in zip(draft.places, own, strict=True)
                ]
            )
        return decided

    def _is_doubted(self, opinions: Sequence[_Opinion | None]) -> bool:
        return any(one is not None and one.agreement < self._tau for one in opinions)

    def _fused(
        self,
        drafts: Sequence[Draft],
        seen: Sequence[Seen | None],
        opinions: Sequence[Mapping[tuple[int, int], _Opinion]],
        clock: Clock,
    ) -> list[Decision]:
        """Choose by all heads at each place where one disagrees."""
        doubted = [
            (number, at)
            for number, draft in enumerate(drafts)
            for at in range(len(draft.places))
            if self._is_doubted([one.get((number, at)) for one in opinions])
        ]
        if not doubted:
            return []
        prefixes, places = Prefixes(), [drafts[number].places[at] for number, at in doubted]
        for (number, at), place in zip(doubted, places, strict=True):
            prefixes.add(drafts[number].row.live, [place.state], at)
        logits = []  # K of (N, V_k)
        for k, one in enumerate(seen):
            if one is None:
                logits.append(torch.stack([place.wish.logits for place in places]))
            else:
                both = zip(doubted, places, strict=True)
                logits.append(one.logits[[one.index[n, place.lengths[k].start] for (n, _), place in both]])
        return self._heads.decide(logits, prefixes, clock)

    def _opinions(self, k: int, seen: Seen, drafts: Sequence[Draft]) -> dict[tuple[int, int], _Opinion]:
        """Return what a head thinks at each boundary of each draft, by the numbers of the draft and the place."""
        probs = self._heads.mixer.lift_one(k, seen.logits, seen.joined)  # (N, V_k) -> (N, V)
        asked = [
            (number, at) for number, draft in enumerate(drafts) for at, one in enumerate(draft.places) if one.lengths
        ]
        places = [drafts[number].places[at] for number, at in asked]
        rows = [[seen.index[n, length] for length in one.lengths[k]] for (n, _), one in zip(asked, places, strict=True)]
        end = self._heads.vocabulary.eos_slot
        both = zip(rows, places, strict=True)
        wanted = [self._asked(k, own, place) for own, place in both if place.wish.slot != end]
        agreements = iter(self._agreement.of(probs, wanted) if wanted else [])
        first = probs[[own[0] for own in rows]]  # (N, V) -> (P, V), P = the places
        wishes = torch.tensor([place.wish.slot for place in places], device=probs.device)
        best = first.max(-1)
        told = read(best.indices, best.values, first.gather(-1, wishes[:, None])[:, 0])
        found = {}
        for one, place, (favourite, of_favourite, of_wish) in zip(asked, places, zip(*told, strict=True), strict=True):
            agreement = of_wish if place.wish.slot == end else next(agreements)
            found[one] = _Opinion(agreement, int(favourite), of_favourite, of_wish)
        return found

    def _asked(self, k: int, rows: Sequence[int], place: Place) -> Asked:
        """Return what a head is asked about a wish: behind the text and behind further ids of the wish."""
        vocabulary, slot = self._heads.vocabulary, place.wish.slot
        ids = place.after[k].ids[place.lengths[k].start : place.lengths[k].stop]
        pieces = [vocabulary.heads[k].tokens.pieces[i] or b"" for i in ids] or [vocabulary.keys[slot]]
        slots = [next(iter(vocabulary.slots(k, [i])), None) for i in ids]
        if (
            pieces[0][:1] == b" " != vocabulary.keys[slot][:1]
        ):  # a space that the head begins with, and the text does not
            pieces[0] = pieces[0][1:]
            slots[0] = vocabulary.slot_of_key.get(pieces[0])
        return Asked(pieces, slots, rows)

    def _stands(self, wish: Wish, opinions: Sequence[_Opinion | None]) -> Decision:
        """Return a wish as what is emitted, with what the heads that were asked think of it."""
        favourites, of_favourites, of_slot = list[int](), list[float](), list[float]()
        for k, one in enumerate(opinions):
            is_own = k == self.writer
            favourites.append(wish.favourite if is_own else one.favourite if one else UNASKED)
            of_favourites.append(wish.of_favourite if is_own else one.of_favourite if one else 0.0)
            of_slot.append(wish.value if is_own else one.of_wish if one else 0.0)
        told = (favourites, of_favourites, of_slot)
        return Decision(wish.slot, wish.value, wish.lead, *told, wish.tops, is_fused=False)
