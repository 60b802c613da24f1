"""The heads of one step, ready to decode: what every decoding loop does with prompts, distributions and ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor

from flowinfer.backends.base import Prompt, Session, TokenModel
from flowinfer.engine.base import Completion, HeadWish, Observer, Row, TokenEvent
from flowinfer.engine.faults import reason
from flowinfer.engine.loops.lanes import Lanes
from flowinfer.engine.loops.mixing import Mixer
from flowinfer.engine.loops.rows import LiveRow
from flowinfer.engine.loops.sampling import greedy_with_leads, sample
from flowinfer.fusion.advance import new_context
from flowinfer.planning.plan import Step


@dataclass
class Places:
    """N places at which a slot is to be chosen: the end of a row's text, or of that text and a part of a draft."""

    states: list[int] = field(default_factory=list)
    """UTF-8 state of the text before each."""
    is_first: list[bool] = field(default_factory=list)
    """Whether that text is empty."""
    keys: list[int] = field(default_factory=list)
    """Key of the row's noise."""
    indices: list[int] = field(default_factory=list)
    """Tokens before it."""

    def add(self, row: LiveRow, states: Sequence[int]) -> None:
        """Add a row's next place, and one behind each key of a draft."""
        self.states += states
        self.is_first += [not row.text and not ahead for ahead in range(len(states))]
        self.keys += [row.key] * len(states)
        self.indices += range(row.num_tokens, row.num_tokens + len(states))


@dataclass(frozen=True)
class Choice:
    """What a step's heads decided at N places: one per row, or several of a row's draft."""

    slots: list[int]
    values: Tensor
    """(N,), fused probability of each slot."""
    leads: list[float]
    """How far each is ahead of the second best; 1 where slots are drawn."""
    heads: Sequence[Tensor]
    """K tensors of shape (N, V): what each head said."""
    favourites: list[list[int]]
    """For each head, its own N best slots."""
    transfers: list[float]
    """Seconds of bringing each head's distributions to the fusing device."""
    fuse_seconds: float
    """Seconds of all the rest."""


class Heads:
    """The models of one step, their sessions and how they mix.

    Args:
        step: what to decode.
        models: the loaded model of each member of the step.
        observer: hears tokens and ends.
        keeps_thinking: whether later stages read <think>...</think>.
        open_sessions: makes a session for each model, if not the models' own.
    """

    def __init__(
        self,
        step: Step,
        models: Sequence[TokenModel],
        *,
        observer: Observer,
        keeps_thinking: bool = False,
        open_sessions: Callable[[], list[Session]] | None = None,
    ) -> None:
        self.step = step
        self.models = tuple(models)
        self.mixer = Mixer(step, models)
        self.vocabulary = self.mixer.vocabulary
        self.observer = observer
        self.sessions: list[Session] = []
        self.lanes = Lanes([model.device for model in models], overlaps=open_sessions is not None)
        by_precision = 1e-6 if all(model.is_exact for model in models) else 1e-3
        self.tie_margin = step.decoding.near_tie_eps or by_precision
        self._keeps_thinking = keeps_thinking
        self._open_sessions = open_sessions
        self._tokens = [model.vocabulary().tokens for model in models]

    def open(self) -> None:
        """Begin with empty sessions."""
        self.sessions = self._open_sessions() if self._open_sessions else [model.open() for model in self.models]

    def close(self) -> None:
        """Let go of keys and values."""
        self.sessions = []

    def admit(self, waiting: Iterator[Row], room: int, num_live: int) -> list[LiveRow | Completion]:
        """Take waiting rows and prefill them together on every head; rows that cannot run end at once."""
        outcomes = self.take(waiting, room, num_live)
        taken = [row for row in outcomes if isinstance(row, LiveRow)]
        if taken:
            self._prefill(taken)
        return outcomes

    def take(self, waiting: Iterator[Row], room: int, num_live: int) -> list[LiveRow | Completion]:
        """Take waiting rows and build their prompts; rows that cannot run end at once."""
        outcomes: list[LiveRow | Completion] = []
        taken: list[LiveRow] = []
        for row in islice(waiting, max(room, 0)):
            try:
                outcome: LiveRow | Completion = self._take(row, num_live)
            except BaseException as error:  # what is not the row's is raised
                outcome = Completion(row, None, reason(error))
            if isinstance(outcome, LiveRow):
                taken.append(outcome)
            else:
                outcomes.append(outcome)
        for live in taken:
            live.batch = num_live + len(taken)
        return [*outcomes, *taken]

    def _take(self, row: Row, num_live: int) -> LiveRow | Completion:
        prompts = self._prompts(row)
        if problem := self._misfit(prompts):
            return Completion(row, None, problem)
        contexts = [
            new_context(self.step.decoding.context, model.tokenizer, tokens, lstrip_first=self.mixer.joins_first)
            for model, tokens in zip(self.models, self._tokens, strict=True)
        ]
        live = LiveRow(row, self.step, prompts, contexts, num_live)
        opened = any(prompt.opens_thinking for prompt in prompts)
        self.observer.admitted(row.question_id, row.step, opens_thinking=opened)
        return live

    def choose(self, logits: Sequence[Tensor], places: Places) -> Choice:
        """Fuse N places and choose a slot at each.

        Args:
            logits: one tensor (N, V_k) per head.
            places: what stands before each.
        """
        start = time.perf_counter()
        at = torch.tensor(places.states, device=self.mixer.device)
        probs = self.mixer.lift(logits, places.is_first)
        transfers = [0.0] * len(probs)
        if self.mixer.is_certified:
            certified = self.mixer.certified(probs, at)
            slots, values, leads = certified.slots, certified.values, certified.leads.tolist()
        else:
            probs, transfers = self.mixer.gather(probs)
            fused = self.mixer.fuse(probs).probs
            allowed = self.vocabulary.guard.mask(at)
            if self.step.decoding.temperature > 0:
                keys = torch.tensor(places.keys, device=self.mixer.device)
                indices = torch.tensor(places.indices, device=self.mixer.device)
                slots, leads = sample(fused, allowed, self.step.decoding, keys, indices), [1.0] * len(at)
            else:
                best = greedy_with_leads(fused, allowed)
                slots, leads = best.slots, best.leads.tolist()
            values = fused.gather(-1, slots[:, None])[:, 0]
        chosen, favourites = slots.tolist(), [head.argmax(-1).tolist() for head in probs]
        seconds = time.perf_counter() - start - sum(transfers)
        return Choice(chosen, values, leads, probs, favourites, transfers, seconds)

    def decide_alone(self, row: LiveRow, ids: Sequence[Sequence[int]], state: int) -> int:
        """Return the slot that a row would choose if it ran in no batch: from one forward over its whole context.

        Args:
            ids: for each head, what stands behind the row's prompt.
            state: UTF-8 state of the text.
        """
        place = Places()
        place.add(row, [state])
        logits = []
        for model, prompt, own in zip(self.models, row.prompts, ids, strict=True):
            session = model.open()
            handles = session.add([[*prompt.ids, *own]])
            logits.append(session.logits(handles))
            session.remove(handles)
        return self.choose(logits, place).slots[0]

    def is_near_tie(self, lead: float) -> bool:
        """Return whether a lead is within rounding."""
        return lead < self.tie_margin

    def count(self, row: LiveRow, choice: Choice, place: int, slot: int) -> None:
        """Count one emitted slot of a row that was chosen at a place."""
        row.near_ties += self.is_near_tie(choice.leads[place])
        for head, favourite in zip(row.heads, choice.favourites, strict=True):
            head.agreed += favourite[place] == slot

    def tell(self, row: LiveRow, choice: Choice, place: int, slot: int) -> None:
        """Tell the observer, if it wants to know, what each head wished where a row is about to emit a slot."""
        if not self.observer.wants_tokens:
            return
        wishes = tuple(
            HeadWish(
                member.node,
                member.model,
                self._key(favourite[place]),
                float(head[place, favourite[place]]),
                float(head[place, slot]),
            )
            for member, head, favourite in zip(self.mixer.members, choice.heads, choice.favourites, strict=True)
        )
        event = TokenEvent(row.num_tokens, self._key(slot), float(choice.values[place]), wishes)
        self.observer.emitted(row.row.question_id, row.row.step, event)

    def end(self, live: Sequence[LiveRow]) -> tuple[list[LiveRow], list[Completion]]:
        """Take ended rows out of the sessions; return the rows that go on, and how the others ended."""
        ended = [row for row in live if row.finish_reason]
        if not ended:
            return list(live), []
        for k, session in enumerate(self.sessions):
            session.remove([row.handles[k] for row in ended])
        return [row for row in live if not row.finish_reason], [self.complete(row) for row in ended]

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

    def _key(self, slot: int) -> bytes | None:
        return None if slot == self.vocabulary.eos_slot else self.vocabulary.keys[slot]

    def _prompts(self, row: Row) -> list[Prompt]:
        """Build every head's prompt; a thought that not all heads would begin with is closed at once."""
        prefill = self.step.decoding.prefill
        texts = [row.prompts[member.node] for member in self.mixer.members]
        prompts = [model.prompt(text, prefill) for model, text in zip(self.models, texts, strict=True)]
        skips = [prompt.opener for prompt in prompts]
        if prefill or self.step.decoding.thinking == "free" or len({bool(skip) for skip in skips}) == 1:
            return prompts
        return [
            model.prompt(text, skip) if skip else prompt
            for model, text, prompt, skip in zip(self.models, texts, prompts, skips, strict=True)
        ]

    def _misfit(self, prompts: Sequence[Prompt]) -> str | None:
        for model, prompt in zip(self.models, prompts, strict=True):
            if len(prompt.ids) >= model.max_positions:
                return (
                    f"the prompt has {len(prompt.ids)} tokens for '{model.name}', which reads at most"
                    f" {model.max_positions} with its answer"
                )
            if not prompt.ids:
                return f"the prompt is empty for '{model.name}'"
        return None

    def _prefill(self, taken: Sequence[LiveRow]) -> None:
        """Let every head read the prompts of new rows."""
        handles: list[list[int]] = [[] for _ in self.sessions]

        def read(k: int) -> None:
            handles[k] = self.sessions[k].add([live.prompts[k].ids for live in taken])

        seconds = self.lanes.run(read)
        for index, live in enumerate(taken):
            live.handles = [own[index] for own in handles]
            for head, spent in zip(live.heads, seconds, strict=True):
                head.forward_seconds += spent / len(taken)
