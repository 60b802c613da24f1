"""A live row: one question in one decoding loop, with its text, its heads' contexts and what it has cost."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import exp, log

from flowinfer.backends.base import Prompt
from flowinfer.engine.base import Row
from flowinfer.engine.faults import reason
from flowinfer.engine.loops.sampling import row_key
from flowinfer.engine.loops.thinking import strip_thinking
from flowinfer.fusion.advance import Context
from flowinfer.fusion.shared import SharedVocabulary
from flowinfer.fusion.utf8 import BOUNDARY, trim
from flowinfer.planning.plan import Step, members
from flowinfer.results import FinishReason, HeadTimes, StepResult


@dataclass
class HeadState:
    """What one head has cost a row so far."""

    forward_seconds: float = 0.0
    transfer_seconds: float = 0.0
    fed: int = 0
    agreed: int = 0
    forwards: int = 0
    """Behind the prompt's; counted where heads do not go in lock step."""


class LiveRow:
    """One question being decoded.

    Args:
        row: what was asked for.
        step: the step it runs in.
        prompts: each head's prompt.
        contexts: each head's empty context.
        joined: for each head, whether it begins its answer with a space that is none (see `spaces`).
        batch: rows that were live when it was admitted.
    """

    def __init__(
        self,
        row: Row,
        step: Step,
        prompts: Sequence[Prompt],
        contexts: Sequence[Context],
        joined: Sequence[bool],
        batch: int,
    ) -> None:
        self.row = row
        self.prompts = tuple(prompts)
        self.joined, self.unjoined = tuple(joined), (False,) * len(prompts)
        self.num_joined = sum(joined)
        self.contexts = tuple(contexts)
        self.heads = [HeadState() for _ in prompts]
        self.batch = batch
        self.text = bytearray()
        self.utf8_state = BOUNDARY
        self.num_tokens = 0
        self.slots: list[int] = []
        """Emitted slots, the end slot excepted."""
        self.near_ties = 0
        self.log_probability: float | None = 0.0
        """Of all that it has emitted, the end included; None where nobody computed it."""
        self.lead = 0.0
        """Sum over all that it has emitted."""
        self.num_agreed = 0
        """How often all heads favoured what it emitted."""
        self.rounds: int | None = None
        """Verifying forwards; None where every token has its own."""
        self.fused: int | None = None
        """Tokens that all heads chose, where one writes and the others verify."""
        self.drafted = 0
        self.accepted = 0
        self.fuse_seconds = 0.0
        self.finish_reason: FinishReason | None = None
        self.error: str | None = None
        """Why it failed."""
        self.lost: dict[int, int] = {}
        """Heads that are lost, and how many tokens there were then."""
        self.likelihoods: dict[str, float] | None = None
        """Logarithm of the probability of each candidate; None where it writes."""
        self.decoding = row.decoding or step.decoding
        """Its own options, or the step's."""
        self.key = row_key(self.decoding, row.noise_id or row.question_id, row.stream or row.step)
        self._stops = tuple(stop.encode() for stop in self.decoding.stop if stop)
        self._started = time.perf_counter()

    def emit(self, slot: int, vocabulary: SharedVocabulary) -> None:
        """Take an emitted slot: extend the text, or end the row."""
        if slot == vocabulary.eos_slot:
            self.finish_reason = "eos"
            return
        before = len(self.text)
        self.text += vocabulary.keys[slot]
        self.utf8_state = vocabulary.guard.advance(self.utf8_state, slot)
        self.num_tokens += 1
        self.slots.append(slot)
        if self._cut_at_stop(before):
            self.finish_reason = "stop"
        elif self.num_tokens >= self.decoding.max_tokens:
            self.finish_reason = "length"

    def settle(self, text: str, num_tokens: int, likelihoods: dict[str, float]) -> None:
        """End the row with one of its candidates.

        Args:
            text: the candidate.
            num_tokens: of it.
            likelihoods: logarithm of the probability of each.
        """
        self.text[:], self.num_tokens, self.likelihoods = text.encode(), num_tokens, likelihoods
        self.log_probability = likelihoods[text]
        self.finish_reason = "likelihood"

    def count(self, slot: int, probability: float, lead: float, favourites: Sequence[int]) -> None:
        """Count how sure of a slot the heads were that it emits.

        Args:
            probability: the slot's fused one; 0 where nobody computed it.
            lead: over the second best.
            favourites: each head's most probable slot.
        """
        if probability <= 0:
            self.log_probability = None
        elif self.log_probability is not None:
            self.log_probability += log(probability)
        self.lead += lead
        agreed = True
        for k, (head, favourite) in enumerate(zip(self.heads, favourites, strict=True)):
            if k in self.lost:
                continue
            is_own = favourite == slot
            head.agreed += is_own
            agreed &= is_own
        self.num_agreed += agreed

    def lose(self, heads: Iterable[int]) -> None:
        """Go on without some heads."""
        for head in heads:
            self.lost.setdefault(head, self.num_tokens)

    def fail(self, error: BaseException) -> None:
        """End the row, and no other, by what was raised at work on it; what is the run's is raised again."""
        self.error, self.finish_reason = reason(error), "error"

    @property
    def begins_jointly(self) -> bool:
        """Return whether its first token is still to be put together by heads that begin with a space and without."""
        return self.num_joined > 0 and not self.num_tokens

    def take_space(self, head: int, ids: Sequence[int], context: Context) -> None:
        """Let a head's prompt end with the space that it would have begun with: behind it, it begins as the others.

        Args:
            ids: of the space.
            context: an empty one that does not join its first token.
        """
        prompt = self.prompts[head]
        longer = replace(prompt, text=prompt.text + " ", ids=(*prompt.ids, *ids))
        self.prompts = (*self.prompts[:head], longer, *self.prompts[head + 1 :])
        self.contexts = (*self.contexts[:head], context, *self.contexts[head + 1 :])
        self.joined = (*self.joined[:head], False, *self.joined[head + 1 :])

    @property
    def tokens_left(self) -> int:
        """Return how many tokens may still be emitted."""
        return self.decoding.max_tokens - self.num_tokens

    def has_room(self, head: int, num_ids: int, max_positions: int) -> bool:
        """Return whether a head could hold so many ids behind the row's prompt."""
        return len(self.prompts[head].ids) + num_ids <= max_positions

    def feed(self, head: int, num_ids: int, max_positions: int) -> None:
        """Count ids about to be fed to a head; end the row where its context exceeds the head's positions."""
        if head in self.lost:
            return
        if self.has_room(head, len(self.contexts[head].ids), max_positions):
            self.heads[head].fed += num_ids
        else:
            self.finish_reason = "context"

    def result(self, step: Step, *, keeps_thinking: bool) -> StepResult:
        """Return the finished row's record; later stages read it with or without its thinking."""
        text = step.decoding.prefill + trim(bytes(self.text)).decode("utf-8", errors="replace")
        steps = max(1, self.num_tokens + (self.finish_reason == "eos"))
        heads = tuple(
            HeadTimes(
                node=member.node,
                model=member.model,
                prompt_tokens=len(prompt.ids),
                fed_tokens=state.fed,
                forward_seconds=state.forward_seconds,
                transfer_seconds=state.transfer_seconds,
                agreement=None if self.likelihoods else state.agreed / (self.lost.get(k, steps) or 1),
                lost_at=self.lost.get(k),
                forwards=None if self.fused is None else state.forwards,
            )
            for k, (member, prompt, state) in enumerate(
                zip(map(self.row.member, members(step.source)), self.prompts, self.heads, strict=True)
            )
        )
        assert self.finish_reason, "only ended rows have results"
        opened = any(prompt.opens_thinking for prompt in self.prompts)
        return StepResult(
            step=self.row.step,
            text=text,
            passed_on=text if keeps_thinking else strip_thinking(text, opened=opened),
            prompts={head.node: prompt.text for head, prompt in zip(heads, self.prompts, strict=True)},
            tokens=self.num_tokens,
            finish_reason=self.finish_reason,
            seconds=time.perf_counter() - self._started,
            fuse_seconds=self.fuse_seconds,
            batch=self.batch,
            heads=heads,
            near_ties=self.near_ties,
            confidence=None if self.log_probability is None else exp(self.log_probability / steps),
            lead=None if self.likelihoods else self.lead / steps,
            agreement=None if self.likelihoods else self.num_agreed / steps,
            lstripped=self.num_joined if len(self.prompts) > 1 and step.decoding.lstrip_first == "auto" else None,
            rounds=self.rounds,
            drafted_tokens=self.drafted,
            accepted_tokens=self.accepted,
            fused_tokens=self.fused,
            likelihoods=self.likelihoods,
        )

    def _cut_at_stop(self, before: int) -> bool:
        if not self._stops:
            return False
        found = [self.text.find(stop, max(0, before - len(stop) + 1)) for stop in self._stops]
        places = [at for at in found if at >= 0]
        if places:
            del self.text[min(places) :]
        return bool(places)
