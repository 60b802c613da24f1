"""The heads of one step, ready to decode: what every decoding loop does with prompts, distributions and ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from flowinfer.backends.base import Prompt, Session, TokenModel
from flowinfer.engine.base import Alternative, Completion, HeadWish, Observer, Row, TokenEvent
from flowinfer.engine.faults import reason, too_long
from flowinfer.engine.loops.absent import AbsentSession
from flowinfer.engine.loops.choosing import UNASKED, Decision, Prefixes
from flowinfer.engine.loops.clock import UNTIMED, Clock
from flowinfer.engine.loops.mixing import Mixer
from flowinfer.engine.loops.rows import LiveRow
from flowinfer.engine.loops.spaces import joined_heads, told
from flowinfer.fusion.advance import Advance, Context, new_context
from flowinfer.fusion.certified import Candidates
from flowinfer.fusion.encoder import Encoder
from flowinfer.planning.plan import Step
from flowinfer.startup import STARTUP

_LEAST_CHARACTERS = 8
"""For each token that a model reads: of texts that are shorter all tokens are counted."""


class Behind(Protocol):
    """Rows whose prompts a head has read, and what it would write behind them; every `Session` is one."""

    def feed(self, chunks: Mapping[int, Sequence[int]]) -> None:
        """Append ids to rows."""

    def logits(self, rows: Sequence[int]) -> Tensor:
        """Return the last logits of rows: shape (R, V_k)."""


class Heads:
    """The models of one step and how they mix.

    Args:
        step: what to decode.
        models: the loaded model of each member of the step.
        observer: hears tokens and ends.
        keeps_thinking: whether later stages read <think>...</think>.
    """

    def __init__(
        self, step: Step, models: Sequence[TokenModel], *, observer: Observer, keeps_thinking: bool = False
    ) -> None:
        self.step = step
        self.models = tuple(models)
        with STARTUP.waiting_for("shared vocabulary", step.id):
            self.mixer = Mixer(step, models)
            self.vocabulary = self.mixer.vocabulary
        self.observer = observer
        by_precision = 1e-6 if all(model.is_exact for model in models) else 1e-3
        self.tie_margin = self.mixer.margin = step.decoding.near_tie_eps or by_precision
        self.contexts: list[Literal["native", "canonical"]] = [step.decoding.context] * len(self.models)
        """How each goes on from what was emitted."""
        self._keeps_thinking = keeps_thinking
        self._has_told = False
        self._tokens = [model.vocabulary().tokens for model in models]
        self.lost: frozenset[int] = frozenset()
        """Heads elsewhere that are gone, and without which the text goes on."""

    def follow(self, leader: int) -> None:
        """Let heads read what one of them writes as their own tokenizers cut the text, where those are others."""
        own = self.vocabulary.heads[leader].tokens.fingerprint
        self.contexts = ["native" if head.tokens.fingerprint == own else "canonical" for head in self.vocabulary.heads]

    def may_lose(self, heads: frozenset[int]) -> bool:
        """Return whether the groups go on without some heads."""
        return self.mixer.tree_without(heads) is not None

    def lose(self, lost: frozenset[int]) -> bool:
        """Go on without some heads, and with all others; return whether the groups allow that."""
        is_allowed = self.mixer.leave_out(lost)
        if is_allowed:
            self.lost = lost
        return is_allowed

    def open(self, k: int) -> Session:
        """Return an empty session of a head; one that reads nothing where it is lost."""
        return AbsentSession(len(self.vocabulary.lifts[k].banned)) if k in self.lost else self.models[k].open()

    def begin(self, row: Row, batch: int) -> LiveRow | Completion:
        """Build a row's prompts and empty contexts; a row that cannot run ends at once.

        Args:
            row: what was asked for.
            batch: rows that are live then.
        """
        try:
            if problem := self._far_too_long(row):
                return Completion(row, None, problem)
            prompts = self._prompts(row)
            if problem := self._misfit(prompts):
                return Completion(row, None, problem)
            joined = self._joined(prompts)
            contexts = [self._context(k, is_joined=is_joined) for k, is_joined in enumerate(joined)]
            live = LiveRow(row, self.step, prompts, contexts, joined, batch)
            live.lose(self.lost)
            opened = any(prompt.opens_thinking for prompt in prompts)
            self.observer.admitted(row.question_id, row.step, opens_thinking=opened)
            return live
        except BaseException as error:  # what is not the row's is raised
            return Completion(row, None, reason(error))

    def take_spaces(
        self, rows: Sequence[LiveRow], sessions: Sequence[Behind], handles: Sequence[Sequence[int]]
    ) -> None:
        """Let heads that would begin rows with a space alone, and then a digit, read that space: behind it they vote.

        Args:
            rows: begin jointly; their prompts have been read.
            sessions: one of each head.
            handles: of each head, its names of the rows.
        """
        space = self.vocabulary.slot_of_key.get(b" ")
        for k, (session, own) in enumerate(zip(sessions, handles, strict=True)):
            asked = [(row, handle) for row, handle in zip(rows, own, strict=True) if row.joined[k]]
            if space is None or not asked:
                continue
            probs = self.mixer.lift_one(k, session.logits([handle for _, handle in asked]))
            ids = self.vocabulary.ids(k, space)
            for (row, handle), favourite in zip(asked, probs.argmax(-1).tolist(), strict=True):
                if favourite == space and row.has_room(k, len(ids) + 1, self.models[k].max_positions):
                    session.feed({handle: ids})
                    row.take_space(k, ids, self._context(k, is_joined=False))

    @torch.inference_mode()
    def start(self, rows: Sequence[LiveRow], sessions: Sequence[Behind], handles: Sequence[Sequence[int]]) -> None:
        """Emit the first token of rows that begin jointly, so that a device's loop need not know of spaces.

        Args:
            rows: as of `take_spaces`.
            sessions: as of `take_spaces`.
            handles: as of `take_spaces`.
        """
        self.take_spaces(rows, sessions, handles)
        prefixes = Prefixes()
        for row in rows:
            prefixes.add(row, [row.utf8_state])
        logits = [session.logits(own) for session, own in zip(sessions, handles, strict=True)]
        for row, decision in zip(rows, self.decide(logits, prefixes), strict=True):
            try:
                self._begin_with(row, decision)
            except BaseException as error:  # what is not the row's is raised
                row.fail(error)
        self.observer.tokens_emitted(len(rows))

    def _begin_with(self, row: LiveRow, decision: Decision) -> None:
        self.emit(row, decision)
        if not row.finish_reason:
            for k, advance in enumerate(self.advance(row.contexts, decision.slot)):
                if not row.finish_reason:
                    row.feed(k, len(advance.ids), self.models[k].max_positions)

    def decide(
        self, logits: Sequence[Tensor | Candidates], prefixes: Prefixes, clock: Clock = UNTIMED
    ) -> list[Decision]:
        """Choose a slot behind each of N prefixes: K logits of shape (N, V_k) -> N."""
        return prefixes.decide(
            self.mixer, logits, clock, is_told=self.observer.wants_tokens, num_tops=self.observer.num_tops
        )

    @property
    def is_measured(self) -> bool:
        """Return whether somebody wants to know how probable what is emitted was."""
        return self.observer.wants_tokens or self.step.is_measured

    def is_near_tie(self, lead: float) -> bool:
        """Return whether a lead is within rounding."""
        return lead < self.tie_margin

    def is_doubtful(self, decision: Decision) -> bool:
        """Return whether a row must decide alone what it has decided in a batch."""
        return self.step.decoding.strict and self.is_near_tie(decision.lead)

    def decide_alone(self, row: LiveRow, ids: Sequence[Sequence[int]], decision: Decision) -> Decision:
        """Return what a row would decide if it ran in no batch: from one forward over its whole context.

        Args:
            row: decides its next slot.
            ids: for each head, what stands behind the row's prompt.
            decision: what it has decided in a batch, whose lead still counts.
        """
        logits = []
        for k, (prompt, own) in enumerate(zip(row.prompts, ids, strict=True)):
            session = self.open(k)
            handles = session.add([[*prompt.ids, *own]])
            logits.append(session.logits(handles))
            session.remove(handles)
        prefix = Prefixes()
        prefix.add(row, [row.utf8_state])
        return self.decide(logits, prefix)[0]._replace(lead=decision.lead)

    def emit(self, row: LiveRow, decision: Decision) -> None:
        """Count what a row has decided, tell the observer of it, and take it into the row's text."""
        STARTUP.first_token()
        row.near_ties += self.is_near_tie(decision.lead)
        row.count(decision.slot, decision.value, decision.lead, decision.favourites)
        if decision.is_fused is not None:
            row.fused = (row.fused or 0) + decision.is_fused
        if self.observer.wants_tokens:
            self.observer.emitted(row.row.question_id, row.row.step, self._event(row, decision))
        row.emit(decision.slot, self.vocabulary)

    def advance(self, contexts: Sequence[Context], slot: int) -> tuple[Advance, ...]:
        """Append a slot's key to every head's context; return how each head's ids change."""
        key = self.vocabulary.keys[slot]
        return tuple(context.append(key, self.vocabulary.ids(k, slot)) for k, context in enumerate(contexts))

    def complete(self, row: LiveRow) -> Completion:
        """Return how an ended row ended."""
        if row.error is None:
            try:
                result = row.result(self.step, keeps_thinking=self._keeps_thinking)
                self.observer.finished(row.row.question_id, result)
                return Completion(row.row, result)
            except BaseException as error:  # what is not the row's is raised
                row.fail(error)
        return Completion(row.row, None, row.error)

    def _context(self, k: int, *, is_joined: bool) -> Context:
        kind = "native" if k in self.lost else self.contexts[k]
        tokenizer = None if k in self.lost else self.models[k].tokenizer
        return new_context(kind, tokenizer, self._tokens[k], lstrip_first=is_joined)

    def _joined(self, prompts: Sequence[Prompt]) -> list[bool]:
        """Return which heads' first token counts without its space; say once that they disagree about it."""
        there = [k for k in range(len(prompts)) if k not in self.lost]
        own = [prompts[k] for k in there]
        joined = joined_heads(self.step.decoding, own, [self._tokens[k] for k in there])
        if any(joined) and self.step.decoding.lstrip_first == "auto" and not self._has_told:
            self._has_told = True
            names = [self.models[k].name for k in there]
            self.observer.notice(f"step {self.step.id} {self.step.title}: {told(names, own, joined)}")
        of_head = dict(zip(there, joined, strict=True))
        return [of_head.get(k, False) for k in range(len(prompts))]

    def _event(self, row: LiveRow, decision: Decision) -> TokenEvent:
        """Return what each head wished where a row emits what it has decided."""
        given = zip(decision.favourites, decision.of_favourites, decision.of_slot, strict=True)
        wishes = tuple(
            HeadWish(own.node, own.model, self._key(favourite), of_favourite, of_slot)
            for k, (own, (favourite, of_favourite, of_slot)) in enumerate(
                zip(map(row.row.member, self.mixer.members), given, strict=True)
            )
            if k not in row.lost and favourite != UNASKED
        )
        tops = tuple(Alternative(self._key(slot), value) for slot, value in decision.tops if value >= 0)
        return TokenEvent(
            row.num_tokens, self._key(decision.slot), decision.value, wishes, tops, is_fused=decision.is_fused
        )

    def _key(self, slot: int) -> bytes | None:
        return None if slot == self.vocabulary.eos_slot else self.vocabulary.keys[slot]

    def _prompts(self, row: Row) -> list[Prompt]:
        """Build every head's prompt; a thought that not all heads would begin with is closed at once."""
        prefill = self.step.decoding.prefill
        texts = [row.prompts[member.node] for member in self.mixer.members]
        prompts = [self._prompt(k, row, text, prefill) for k, text in enumerate(texts)]
        skips = [prompt.opener for prompt in prompts]
        is_opened = {bool(skip) for k, skip in enumerate(skips) if k not in self.lost}
        if prefill or self.step.decoding.thinking == "free" or len(is_opened) == 1:
            return prompts
        return [
            self._prompt(k, row, text, skip) if skip else prompt
            for k, (text, prompt, skip) in enumerate(zip(texts, prompts, skips, strict=True))
        ]

    def _prompt(self, k: int, row: Row, text: str, prefill: str) -> Prompt:
        """Build one head's prompt; a backend need not know of turns where there were none."""
        if k in self.lost:
            return Prompt(text, ())
        build = self.models[k].prompt
        return build(text, prefill, row.turns) if row.turns else build(text, prefill)

    def _far_too_long(self, row: Row) -> str | None:
        """Return the problem of a row whose texts are so long that to tokenize them would hold up all others."""
        said = "\n".join(turn.content for turn in row.turns)
        for k, (member, model) in enumerate(zip(self.mixer.members, self.models, strict=True)):
            if k in self.lost:
                continue
            text = f"{said}\n{row.prompts[member.node]}"
            if model.tokenizer is not None and (least := count_beyond(model.tokenizer, text, model.max_positions)):
                return too_long(model.name, least, model.max_positions, at_least="at least ")
        return None

    def _misfit(self, prompts: Sequence[Prompt]) -> str | None:
        for k, (model, prompt) in enumerate(zip(self.models, prompts, strict=True)):
            if k in self.lost:
                continue
            if len(prompt.ids) >= model.max_positions:
                return too_long(model.name, len(prompt.ids), model.max_positions)
            if not prompt.ids:
                return f"the prompt is empty for '{model.name}'"
        return None


def count_beyond(tokenizer: Encoder, text: str, most: int) -> int | None:
    """Return how many tokens the beginning of a text has, where these are far more than a model reads.

    Looked at are pieces that grow, from the least that could have so many: what is refused costs about as much as the
    longest prompt that is not. Twice the limit leaves room for what the rest of the text could join to one token.
    """
    size = _LEAST_CHARACTERS * most
    while size < len(text):
        count = len(tokenizer.encode(text[:size], add_special_tokens=False).ids)
        if count > 2 * most:
            return count
        size *= 4
    return None
