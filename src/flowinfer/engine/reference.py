"""The reference engine: one decoding loop for serial and parallel steps over transformers' own cache.

Each step of the loop: every head's logits -> shared probabilities -> one fused distribution -> one slot per row ->
each head's next ids. Rows end at different times and waiting rows take their places; nothing is prefilled twice.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from flowinfer.backends.base import Prompt, Session, TokenModel
from flowinfer.engine.base import Completion, HeadWish, Observer, Row, TokenEvent
from flowinfer.engine.lanes import Lanes
from flowinfer.engine.mixing import Mixer
from flowinfer.engine.rows import LiveRow
from flowinfer.engine.sampling import greedy_with_leads, sample
from flowinfer.engine.thinking import EMPTY_THOUGHT
from flowinfer.fusion.advance import new_context
from flowinfer.plan import Step


class ReferenceDecoder:
    """Decode one step's rows; a `Decoder`.

    Args:
        step: what to decode.
        models: the loaded model of each member of the step.
        batch: most rows at once.
        observer: hears tokens and ends.
        keeps_thinking: whether later stages read <think>...</think>.
    """

    def __init__(
        self,
        step: Step,
        models: Sequence[TokenModel],
        *,
        batch: int,
        observer: Observer,
        keeps_thinking: bool = False,
    ) -> None:
        self._step = step
        self._models = tuple(models)
        self._mixer = Mixer(step, models)
        self._batch = batch
        self._observer = observer
        self._sessions: list[Session] = []
        self._lanes = Lanes([model.device for model in models])
        self._keeps_thinking = keeps_thinking
        self._tokens = [model.vocabulary().tokens for model in models]
        by_precision = 1e-6 if all(model.is_exact for model in models) else 1e-3
        self._tie_margin = step.decoding.near_tie_eps or by_precision

    def decode(self, rows: Iterable[Row]) -> Iterator[Completion]:
        """Decode rows, yielding each as it ends."""
        self._sessions = [model.open() for model in self._models]
        try:
            yield from self._decode(rows)
        finally:
            self._sessions = []  # an interrupted decoder must not hold on to its keys and values

    def _decode(self, rows: Iterable[Row]) -> Iterator[Completion]:
        waiting = iter(rows)
        live: list[LiveRow] = []
        while True:
            outcomes = self._admit(waiting, self._batch - len(live), len(live))
            for admitted in outcomes:
                if isinstance(admitted, Completion):
                    yield admitted
                else:
                    live.append(admitted)
            if not live and not outcomes:
                return
            if live:
                self._advance(live)
            ended = [row for row in live if row.finish_reason]
            if ended:
                live = [row for row in live if not row.finish_reason]
                for k, session in enumerate(self._sessions):
                    session.remove([row.handles[k] for row in ended])
                for row in ended:
                    result = row.result(self._step, keeps_thinking=self._keeps_thinking)
                    self._observer.finished(row.row.question_id, result)
                    yield Completion(row.row, result)

    def _admit(self, waiting: Iterator[Row], room: int, num_live: int) -> list[LiveRow | Completion]:
        """Take waiting rows and prefill them together on every head."""
        outcomes: list[LiveRow | Completion] = []
        taken: list[LiveRow] = []
        for row in islice(waiting, max(room, 0)):
            prompts = self._prompts(row)
            if problem := self._misfit(prompts):
                outcomes.append(Completion(row, None, problem))
                continue
            contexts = [
                new_context(self._step.decoding.context, model.tokenizer, tokens, lstrip_first=self._mixer.joins_first)
                for model, tokens in zip(self._models, self._tokens, strict=True)
            ]
            taken.append(LiveRow(row, self._step, prompts, contexts, num_live))
            opened = any(prompt.opens_thinking for prompt in prompts)
            self._observer.admitted(row.question_id, row.step, opens_thinking=opened)
        if taken:
            self._prefill(taken)
            for live in taken:
                live.batch = num_live + len(taken)
        return [*outcomes, *taken]

    def _prompts(self, row: Row) -> list[Prompt]:
        """Build every head's prompt; a thought that not all heads would begin with is closed at once."""
        prefill = self._step.decoding.prefill
        texts = [row.prompts[member.node] for member in self._mixer.members]
        prompts = [model.prompt(text, prefill) for model, text in zip(self._models, texts, strict=True)]
        if prefill or self._step.decoding.thinking == "free" or len({p.opens_thinking for p in prompts}) == 1:
            return prompts
        return [
            model.prompt(text, EMPTY_THOUGHT) if prompt.opens_thinking else prompt
            for model, text, prompt in zip(self._models, texts, prompts, strict=True)
        ]

    def _prefill(self, taken: Sequence[LiveRow]) -> None:
        """Let every head read the prompts of new rows."""
        handles: list[list[int]] = [[] for _ in self._sessions]

        def read(k: int) -> None:
            handles[k] = self._sessions[k].add([live.prompts[k].ids for live in taken])

        seconds = self._lanes.run(read)
        for index, live in enumerate(taken):
            live.handles = [own[index] for own in handles]
            for head, spent in zip(live.heads, seconds, strict=True):
                head.forward_seconds += spent / len(taken)

    def _misfit(self, prompts: Sequence[Prompt]) -> str | None:
        for model, prompt in zip(self._models, prompts, strict=True):
            if len(prompt.ids) >= model.max_positions:
                return (
                    f"the prompt has {len(prompt.ids)} tokens for '{model.name}', which reads at most"
                    f" {model.max_positions} with its answer"
                )
            if not prompt.ids:
                return f"the prompt is empty for '{model.name}'"
        return None

    @torch.inference_mode()
    def _advance(self, live: list[LiveRow]) -> None:
        """Emit one token in every live row and feed it to every head."""
        logits = [session.logits([row.handles[k] for row in live]) for k, session in enumerate(self._sessions)]
        start = time.perf_counter()
        slots, values, margins, heads, transfers = self._choose(logits, live)
        chosen = slots.tolist()
        if self._step.decoding.strict:
            for index, row in enumerate(live):
                if margins[index] < self._tie_margin:
                    chosen[index] = self._decide_alone(row)
        favourites = [head.argmax(-1).tolist() for head in heads]
        fuse_seconds = (time.perf_counter() - start - sum(transfers)) / len(live)
        self._observer.tokens_emitted(len(live))
        if self._observer.wants_tokens:
            self._tell(live, chosen, values, heads, favourites)
        for index, row in enumerate(live):
            row.fuse_seconds += fuse_seconds
            row.near_ties += margins[index] < self._tie_margin
            for k, favourite in enumerate(favourites):
                row.heads[k].agreed += favourite[index] == chosen[index]
                row.heads[k].transfer_seconds += transfers[k] / len(live)
            row.emit(chosen[index], self._mixer.vocabulary)
        self._feed(live, chosen)

    def _choose(
        self, logits: Sequence[Tensor], live: Sequence[LiveRow]
    ) -> tuple[Tensor, Tensor, list[float], Sequence[Tensor], list[float]]:
        """Return slots (B,), their fused probabilities (B,), leads, heads' probabilities, and transfer seconds."""
        states = torch.tensor([row.utf8_state for row in live], device=self._mixer.device)
        probs = self._mixer.lift(logits, [not row.text for row in live])
        if self._mixer.is_certified:
            chosen = self._mixer.certified(probs, states)
            return chosen.slots, chosen.values, chosen.leads.tolist(), probs, [0.0] * len(probs)
        moved, transfers = self._mixer.gather(probs)
        fused = self._mixer.fuse(moved).probs
        allowed = self._mixer.vocabulary.guard.mask(states)
        decoding = self._step.decoding
        if decoding.temperature > 0:
            keys = torch.tensor([row.key for row in live], device=self._mixer.device)
            indices = torch.tensor([row.num_tokens for row in live], device=self._mixer.device)
            slots, leads = sample(fused, allowed, decoding, keys, indices), [1.0] * len(live)
        else:
            best = greedy_with_leads(fused, allowed)
            slots, leads = best.slots, best.leads.tolist()
        return slots, fused.gather(-1, slots[:, None])[:, 0], leads, moved, transfers

    def _decide_alone(self, row: LiveRow) -> int:
        """Return the slot that a row would choose if it ran in no batch: from one forward over its whole context."""
        logits = []
        for model, prompt, context in zip(self._models, row.prompts, row.contexts, strict=True):
            session = model.open()
            handles = session.add([[*prompt.ids, *context.ids]])
            logits.append(session.logits(handles))
            session.remove(handles)
        return int(self._choose(logits, [row])[0][0])

    def _feed(self, live: Sequence[LiveRow], slots: Sequence[int]) -> None:
        """Append the emitted keys to every head of the rows that go on."""
        vocabulary = self._mixer.vocabulary
        chunks: list[dict[int, Sequence[int]]] = [{} for _ in self._sessions]
        for row, slot in zip(live, slots, strict=True):
            for k, session in enumerate(self._sessions):
                if row.finish_reason:
                    break
                step = row.contexts[k].append(vocabulary.keys[slot], vocabulary.ids(k, slot))
                if row.context_full(k, self._models[k].max_positions, len(step.ids) - step.rollback):
                    break
                session.rollback(row.handles[k], step.rollback)
                chunks[k][row.handles[k]] = step.ids
                row.heads[k].fed += len(step.ids)

        def feed(k: int) -> None:
            if chunks[k]:
                self._sessions[k].feed(chunks[k])

        seconds = self._lanes.run(feed)
        for row in live:
            for k, own in enumerate(chunks):
                if row.handles[k] in own:
                    row.heads[k].forward_seconds += seconds[k] / len(own)

    def _tell(
        self,
        live: Sequence[LiveRow],
        slots: Sequence[int],
        values: Tensor,
        heads: Sequence[Tensor],
        favourites: Sequence[Sequence[int]],
    ) -> None:
        keys = (*self._mixer.vocabulary.keys, None)
        for index, row in enumerate(live):
            wishes = tuple(
                HeadWish(
                    member.node,
                    member.model,
                    keys[favourite[index]],
                    float(head[index, favourite[index]]),
                    float(head[index, slots[index]]),
                )
                for member, head, favourite in zip(self._mixer.members, heads, favourites, strict=True)
            )
            event = TokenEvent(row.num_tokens, keys[slots[index]], float(values[index]), wishes)
            self._observer.emitted(row.row.question_id, row.row.step, event)
