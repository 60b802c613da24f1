"""From all heads' logits to the choice by tensor operations: what every loop chooses by, and the kernels must equal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import torch
from torch import Tensor

from flowinfer.engine.loops.clock import UNTIMED, Clock
from flowinfer.engine.loops.mixing import Mixer
from flowinfer.engine.loops.rows import LiveRow
from flowinfer.engine.loops.sampling import Draws, choose_slots, draws_of, most_probable
from flowinfer.fusion.certified import Candidates
from flowinfer.spec import Decoding


@dataclass(frozen=True)
class Told:
    """What each head gave to two slots of B rows, in the vocabulary's order of heads."""

    of_favourites: Tensor
    """(K, B): to its favourite."""
    of_slots: Tensor
    """(K, B): to the slot that the row emits."""


@dataclass(frozen=True)
class Tops:
    """The N most probable slots of B rows, best first; a probability below 0 stands for none."""

    slots: Tensor
    """(B, N), int64."""
    values: Tensor
    """(B, N), fused probabilities."""


@dataclass(frozen=True)
class Choice:
    """What B rows emit next. Tensors of `FusedChoice` are written anew by its next call."""

    slots: Tensor
    """(B,), int64."""
    values: Tensor
    """(B,), fused probability of the slot."""
    leads: Tensor
    """(B,), how far the best allowed slot is ahead of the second; 1 where slots are drawn."""
    favourites: Tensor
    """(K, B), int64: each head's own most probable slot, allowed or not, in the vocabulary's order of heads."""
    told: Told | None = None
    """What heads gave, where somebody listens."""
    tops: Tops | None = None
    """What else could have been emitted, where somebody wants to know."""


LEAST = 1e-5
"""Columns below this probability are not looked at where a CPU chooses from a large vocabulary."""
UNASKED = -1
"""Stands for the favourite of a head that was not asked."""


class Decision(NamedTuple):
    """A choice for one row, on the host."""

    slot: int
    value: float
    """Its fused probability; on a device's loop only where somebody listens."""
    lead: float
    """How far it is ahead of the second best; 1 where it is drawn."""
    favourites: Sequence[int]
    """Each head's most probable slot; UNASKED where the step did not ask it."""
    of_favourites: Sequence[float] = ()
    """What each gave to it, where somebody listens."""
    of_slot: Sequence[float] = ()
    """What each gave to the emitted slot, where somebody listens."""
    tops: Sequence[tuple[int, float]] = ()
    """The most probable slots with their fused probabilities, where somebody wants to know."""
    is_fused: bool | None = None
    """Whether it is all heads' choice, where one head's may stand (`selective`); None elsewhere."""


def choose(
    mixer: Mixer,
    logits: Sequence[Tensor | Candidates],
    states: Tensor,
    joined: Sequence[Sequence[bool]],
    draws: Draws | None,
    *,
    is_told: bool = False,
    num_tops: int = 0,
    clock: Clock = UNTIMED,
) -> Choice:
    """Fuse the heads' distributions of B rows and choose a slot in each.

    Args:
        mixer: how the heads are fused.
        logits: K tensors of shape (B, V_k), in the vocabulary's order of heads, each on its head's device; candidates
            of heads elsewhere, where all rows are greedy and `mixer.takes_candidates`.
        states: shape (B,), int64, UTF-8 states of the rows' texts.
        joined: for each row, which heads begin its text with a space that is none; () = none does.
        draws: how the rows draw; None = all are greedy.
        is_told: whether somebody wants to know what each head gave.
        num_tops: how many of the most probable slots somebody wants to know.
        clock: times its phases.
    """
    if mixer.skips_unlikely and draws is None and not joined and not num_tops:
        with clock.phase("fuse", name="likely"):
            likely = _likely(mixer, logits, states, is_told=is_told)
        if likely is not None:
            return likely
    tops = None
    device = mixer.device
    with clock.phase("fuse", name="lift"):
        if any(isinstance(one, Candidates) for one in logits):
            probs = mixer.lift_certified(logits, states, joined)
        else:
            probs = mixer.lift(cast("Sequence[Tensor]", logits), joined)  # K of (B, V_k) -> K of (B, V)
    if mixer.is_certified and draws is None and not num_tops:
        with clock.phase("fuse", name="certified choice"):
            certified = mixer.certified(probs, states)
        slots, values, leads = certified.slots, certified.values, certified.leads
    else:
        for k, own in enumerate(probs):
            with clock.phase("transfer", head=k):
                probs[k] = own.to(device)
        with clock.phase("fuse", name="mix"):
            fused = mixer.fuse(probs)  # K of (B, V) -> (B, V)
        with clock.phase("fuse", name="choose"):
            allowed = mixer.vocabulary.guard.mask(states)
            best = choose_slots(fused, allowed, draws)
            slots, leads = best.slots, best.leads
            values = fused.gather(-1, slots[:, None])[:, 0]
            tops = tops_of(fused, allowed, num_tops) if num_tops else None
    with clock.phase("fuse", name="favourites"):
        favourites = [most_probable(own) for own in probs]
        told = _told(probs, slots, favourites, device) if is_told else None
        return Choice(slots, values, leads, torch.stack([own.to(device) for own in favourites]), told, tops)


def _likely(mixer: Mixer, logits: Sequence[Tensor | Candidates], states: Tensor, *, is_told: bool) -> Choice | None:
    """Choose greedily among the slots that are likely for some head, on a CPU.

    Returns:
        What all slots would give, but for leads: a second below `LEAST` times a head's columns for one slot counts as
        0, whatever other rows name. None where another slot could be chosen, or could be a favourite.
    """
    wholes = [one for one in logits if isinstance(one, Tensor)]
    if len(wholes) < len(logits):
        return None
    reach = LEAST * mixer.vocabulary.most_columns
    named, probs = mixer.vocabulary.lift_likely(wholes, LEAST)  # (S,), K of (B, S)
    fused, allowed = mixer.fuse(probs), mixer.vocabulary.guard.mask(states, named)
    fused = fused.masked_fill(fused < reach, 0.0)
    best = choose_slots(fused, allowed, None)
    values = fused.masked_fill(~allowed, -1.0).gather(-1, best.slots[:, None])[:, 0]
    is_settled = float(values.min()) > reach + mixer.margin and all(float(own.amax(-1).min()) > reach for own in probs)
    if not is_settled:  # nor where a head gives no numbers
        return None
    favourites = [most_probable(own) for own in probs]
    told = _told(probs, best.slots, favourites, mixer.device) if is_told else None
    return Choice(named[best.slots], values, best.leads, named[torch.stack(favourites)], told)


def tops_of(fused: Tensor, allowed: Tensor, count: int) -> Tops:
    """Return the most probable allowed slots: twice (B, V) -> (B, N)."""
    values, slots = fused.masked_fill(~allowed, -1.0).topk(min(count, fused.shape[-1]))
    return Tops(slots, values)


def _told(probs: Sequence[Tensor], slots: Tensor, favourites: Sequence[Tensor], device: torch.device) -> Told:
    """Return what each head gave to its favourite and to the chosen slot, on one device."""

    def given(to: Sequence[Tensor]) -> Tensor:
        own = [one.gather(-1, at.to(one.device)[:, None])[:, 0] for one, at in zip(probs, to, strict=True)]
        return torch.stack([one.to(device) for one in own])  # (K, B)

    return Told(given(favourites), given([slots] * len(probs)))


@dataclass
class Prefixes:
    """N texts behind each of which a slot is to be chosen: rows' texts as they are, or with a part of a draft."""

    states: list[int] = field(default_factory=list)
    """UTF-8 state of each."""
    joined: list[Sequence[bool]] = field(default_factory=list)
    """Which heads begin it with a space that is none; none does once it has begun."""
    decodings: list[Decoding] = field(default_factory=list)
    """Its row's options."""
    keys: list[int] = field(default_factory=list)
    """Key of its row's noise."""
    indices: list[int] = field(default_factory=list)
    """Tokens in it."""

    def add(self, row: LiveRow, states: Sequence[int], first: int = 0) -> None:
        """Add a row's text, and the same with each further key of a draft; without the first so many of these."""
        places = range(first, first + len(states))
        self.states += states
        self.joined += [row.joined if not row.num_tokens and not ahead else row.unjoined for ahead in places]
        self.decodings += [row.decoding] * len(states)
        self.keys += [row.key] * len(states)
        self.indices += [row.num_tokens + ahead for ahead in places]

    def decide(
        self, mixer: Mixer, logits: Sequence[Tensor | Candidates], clock: Clock, *, is_told: bool, num_tops: int = 0
    ) -> list[Decision]:
        """Choose a slot behind each.

        Args:
            mixer: how the heads are fused.
            logits: K tensors of shape (N, V_k).
            clock: times its phases.
            is_told: whether somebody wants to know what each head gave.
            num_tops: how many of the most probable slots somebody wants to know.
        """
        states = torch.tensor(self.states, device=mixer.device)
        draws = draws_of(self.decodings, self.keys, self.indices, mixer.device)
        joined = self.joined if any(map(any, self.joined)) else ()
        choice = choose(mixer, logits, states, joined, draws, is_told=is_told, num_tops=num_tops, clock=clock)
        with clock.phase("fuse", name="read"):
            nothing: list[Sequence[float]] = [()] * len(self.states)
            of_favourites = choice.told.of_favourites.T.tolist() if choice.told else nothing  # (K, N) -> N of K
            of_slots = choice.told.of_slots.T.tolist() if choice.told else nothing
            chosen = (choice.slots.tolist(), choice.values.tolist(), choice.leads.tolist())
            favourites = choice.favourites.T.tolist()
            tops = pairs(choice.tops, len(self.states))
            return [Decision(*one) for one in zip(*chosen, favourites, of_favourites, of_slots, tops, strict=True)]


def read(*columns: Tensor) -> list[list[float]]:
    """Return columns of (N,) numbers on the host, brought there in one go."""
    told: list[list[float]] = torch.stack([column.double() for column in columns]).tolist()
    return told


def pairs(tops: Tops | None, rows: int) -> list[Sequence[tuple[int, float]]]:
    """Return the slots and probabilities of each row, on the host."""
    if tops is None:
        return [()] * rows
    both = zip(tops.slots.tolist(), tops.values.tolist(), strict=True)
    return [tuple(zip(slots, values, strict=True)) for slots, values in both]
