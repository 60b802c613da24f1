"""Reading a given text as it is, without prompt and template: how likely a step's heads are to write each token.

The text is cut into the tokens of the head of most weight. Its first character, in as many tokens as that has, is each
head's prompt, behind the token with which that head's tokenizer begins a text, if it has one; every further token is
told with its fused probability. Each head reads the text before it as its own tokenizer cuts it, as it reads prompts.
The models' own sessions read: nothing of a step's decoding loop is used, or disturbed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from flowinfer.backends.base import Prompt, Session, TokenModel
from flowinfer.engine.base import Alternative, Observer, Row, TokenEvent
from flowinfer.engine.faults import too_long
from flowinfer.engine.loops.acceptance import DraftLength
from flowinfer.engine.loops.choosing import pairs, tops_of
from flowinfer.engine.loops.drafting import shares_of
from flowinfer.engine.loops.heads import Heads
from flowinfer.engine.loops.likelihood import CHUNK
from flowinfer.engine.loops.proposals import Proposal, SessionRow, spell
from flowinfer.engine.loops.rows import LiveRow
from flowinfer.errors import RunError
from flowinfer.fusion.advance import CanonicalContext, new_context
from flowinfer.fusion.encoder import Encoder
from flowinfer.fusion.selfcheck import ordinary_text
from flowinfer.fusion.utf8 import trim
from flowinfer.fusion.vocab import TokenBytes
from flowinfer.planning.plan import Step
from flowinfer.results import HeadTimes, StepResult

UNKNOWN = -1.0
"""Stands for the probability of a token that nobody could be asked about."""


@dataclass(frozen=True)
class Given:
    """A text that is to be read."""

    text: str
    num_tops: int
    """How many alternatives of each token are wanted."""
    writes: bool
    """Whether the likeliest token behind it is to be written too."""


@dataclass(frozen=True)
class ReadText:
    """A text that was read."""

    result: StepResult
    tokens: tuple[TokenEvent, ...]
    """Of the text, the first ones with an UNKNOWN probability; then the one that was written."""


def read(step: Step, models: Sequence[TokenModel], given: Given) -> ReadText:
    """Read a text.

    Raises:
        RunError: the heads cannot write it, or it is too long for one of them.
    """
    return _Reader(Heads(step, models, observer=Observer()), given).read()


class _Reader:
    """Reads one text."""

    def __init__(self, heads: Heads, given: Given) -> None:
        self._heads, self._given, self._start = heads, given, time.perf_counter()
        shares = list(shares_of(heads.step.source))
        leader = shares.index(max(shares))
        heads.follow(leader)
        first, self._slots = _cut(heads, leader, given.text)
        begun = b"".join(first).decode()
        prompts = [_begun(model, begun) for model in heads.models]
        row = Row("given", heads.step.id, {})
        contexts = [
            new_context(kind, model.tokenizer, own.tokens)
            for kind, model, own in zip(heads.contexts, heads.models, heads.vocabulary.heads, strict=True)
        ]
        nobody = [False] * len(prompts)
        self._live = LiveRow(row, heads.step, [Prompt("", ids) for ids in prompts], contexts, nobody, 1)
        self._tokens = [TokenEvent(at, piece, UNKNOWN, ()) for at, piece in enumerate(first)]

    @torch.inference_mode()
    def read(self) -> ReadText:
        """Return what was read."""
        live, slots, end = self._live, self._slots, len(self._slots) + self._given.writes
        sessions = [model.open() for model in self._heads.models]
        prompts = [prompt.ids for prompt in live.prompts]
        handles = [session.add([ids])[0] for session, ids in zip(sessions, prompts, strict=True)]
        row = SessionRow(live, handles, [0] * len(handles), [0] * len(handles), DraftLength())
        logits = [session.logits([handle]) for session, handle in zip(sessions, handles, strict=True)]
        at, states = 0, [live.utf8_state]
        while at < end:
            probs = self._heads.mixer.fused(logits)  # (S, V), of the next S tokens
            self._tell(probs, states, slots[at : at + len(states)])
            at += len(states)
            if at >= end:
                break
            self._take(row, slots[at - 1])
            proposal = spell(row, slots[at : end - 1][:CHUNK], self._heads)
            logits = [self._feed(k, session, proposal) for k, session in enumerate(sessions)]
            states, live.utf8_state, live.contexts = proposal.states, proposal.states[-1], proposal.contexts[-1]
        return ReadText(self._result(), tuple(self._tokens))

    def _feed(self, k: int, session: Session, proposal: Proposal) -> Tensor:
        """Let a head read what is new to it: (S, V_k), behind that and behind each further token."""
        row = proposal.row
        session.rollback(row.handles[k], row.held[k] - row.valid[k])
        found = session.verify({row.handles[k]: proposal.pending(k)})
        row.held[k] = row.valid[k] = len(proposal.contexts[-1][k].ids)
        return found

    def _take(self, row: SessionRow, slot: int) -> None:
        """Take a token into every head's context."""
        live, vocabulary = self._live, self._heads.vocabulary
        live.utf8_state = vocabulary.guard.advance(live.utf8_state, slot)
        for k, (advance, model) in enumerate(
            zip(self._heads.advance(live.contexts, slot), self._heads.models, strict=True)
        ):
            row.valid[k] -= advance.rollback
            length = len(live.prompts[k].ids) + len(live.contexts[k].ids)
            if length > model.max_positions:
                raise RunError(too_long(model.name, length, model.max_positions, at_least="at least "))

    def _tell(self, probs: Tensor, states: Sequence[int], slots: Sequence[int]) -> None:
        """Note how likely tokens are, and the likeliest where none is given: (S, V), behind texts of these states."""
        vocabulary, mixer = self._heads.vocabulary, self._heads.mixer
        allowed = vocabulary.guard.mask(torch.tensor(states, device=mixer.device))
        best = probs.masked_fill(~allowed, -1.0).argmax(-1).tolist()
        chosen = [*slots, *best[len(slots) :]]
        values = probs.gather(-1, torch.tensor(chosen, device=mixer.device)[:, None])[:, 0].tolist()
        tops = pairs(tops_of(probs, allowed, self._given.num_tops) if self._given.num_tops else None, len(states))
        for slot, value, others in zip(chosen, values, tops, strict=True):
            named = tuple(Alternative(self._piece(other), chance) for other, chance in others if chance >= 0)
            self._tokens.append(TokenEvent(len(self._tokens), self._piece(slot), value, (), named))

    def _piece(self, slot: int) -> bytes | None:
        return None if slot == self._heads.vocabulary.eos_slot else self._heads.vocabulary.keys[slot]

    def _result(self) -> StepResult:
        """Return the step's record; what was read are its heads' prompts."""
        step, given = self._heads.step, self._given
        written = self._tokens[-1].piece if given.writes else None
        heads = tuple(
            HeadTimes(
                node=member.node,
                model=member.model,
                prompt_tokens=len(prompt.ids) + len(context.ids),
                fed_tokens=0,
                forward_seconds=0.0,
                transfer_seconds=0.0,
            )
            for member, prompt, context in zip(
                map(self._live.row.member, self._heads.mixer.members),
                self._live.prompts,
                self._live.contexts,
                strict=True,
            )
        )
        text = given.text + (written or b"").decode(errors="replace")
        return StepResult(
            step=step.id,
            text=text,
            passed_on=text,
            prompts={},
            tokens=int(written is not None),
            finish_reason="eos" if given.writes and written is None else "length",
            seconds=time.perf_counter() - self._start,
            heads=heads,
        )


def _cut(heads: Heads, leader: int, text: str) -> tuple[list[bytes], list[int]]:
    """Cut a text as one head does: the bytes of the tokens of its first character, and further slots.

    Raises:
        RunError: the heads cannot write it.
    """
    own, tokenizer = heads.vocabulary.heads[leader].tokens, heads.models[leader].tokenizer
    ids = _spelled(tokenizer, own, text)
    pieces = [own.pieces[i] or b"" for i in ids]
    if b"".join(pieces) == b" " + text.encode():  # a tokenizer's dummy prefix
        pieces[0] = pieces[0][1:]
    ends = accumulate(pieces)
    count = next((at for at, begun in enumerate(ends, 1) if begun and trim(begun) == begun), 0)
    slots = heads.vocabulary.slots(leader, ids[count:])
    if not count or len(slots) < len(ids) - count:
        raise RunError("the heads of the flow have no tokens for this text")
    return pieces[:count], slots


def _spelled(tokenizer: Encoder | None, tokens: TokenBytes, text: str) -> Sequence[int]:
    """Return a head's own ids of a whole text; where they would not write it, the greedy cover."""
    if tokenizer is not None and tokens.has_dummy_prefix:
        with ordinary_text(tokenizer):
            ids = tokenizer.encode(text, add_special_tokens=False).ids
        if b"".join(tokens.pieces[i] or b"" for i in ids) == b" " + text.encode():
            return ids
    found = CanonicalContext(tokenizer, tokens).spelled(text) if tokenizer is not None else None
    return tokens.try_cover(text.encode()) or () if found is None else found


def _begun(model: TokenModel, text: str) -> tuple[int, ...]:
    """Return a head's ids of the beginning of a text, behind the tokens with which its tokenizer begins one."""
    own = tuple(_spelled(model.tokenizer, model.vocabulary().tokens, text))
    if model.tokenizer is None:
        return own
    with ordinary_text(model.tokenizer):
        bare, whole = (model.tokenizer.encode(text, add_special_tokens=added).ids for added in (False, True))
    before = next((at for at in range(len(whole)) if whole[at : at + len(bare)] == bare), 0)
    return (*whole[:before], *own)
