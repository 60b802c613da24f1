"""One step taken apart: the loop of the reference engine with a clock around each of its phases."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowinfer.backends.base import Prompt, TokenModel
from flowinfer.engine.base import Row
from flowinfer.engine.loops.mixing import Mixer
from flowinfer.engine.loops.sampling import choose_slots, draws_of, row_key
from flowinfer.errors import RunError, UsageError
from flowinfer.fusion.advance import Context, new_context
from flowinfer.fusion.utf8 import BOUNDARY
from flowinfer.planning.plan import Step
from flowinfer.profiling.bandwidth import synchronize
from flowinfer.profiling.spans import Recorder

WARM_UPS = 3
"""Tokens emitted before those that count."""
_CPU = torch.device("cpu")


class PartsLoop:
    """Decode rows of one step, one phase after another, each waited for.

    Args:
        step: what to decode.
        models: its heads, without end tokens.
        rows: decoded together.
        recorder: gets every phase.
        steps: tokens to measure in every row.
    Raises:
        UsageError: a row would exceed a model's positions.
    """

    def __init__(
        self, step: Step, models: Sequence[TokenModel], rows: Sequence[Row], recorder: Recorder, steps: int
    ) -> None:
        self.mixer = Mixer(step, models)
        self.lanes = _lane_names([member.model for member in self.mixer.members])
        self._decoding = step.decoding
        self._models = tuple(models)
        self._recorder = recorder
        self.prompts = [self._prompts_of(row) for row in rows]
        self._sessions = [model.open() for model in models]
        self._contexts = [[self._new_context(model) for model in models] for _ in rows]
        self._handles: list[list[int]] = []
        self._states = [BOUNDARY] * len(rows)
        self._keys = [row_key(step.decoding, row.question_id, row.step) for row in rows]
        self._emitted = 0
        self._steps = steps
        self._refuse_overlong()

    @torch.inference_mode()
    def run(self) -> float:
        """Read the prompts and emit tokens in every row; return the mean ids of a row while measured."""
        for k, (model, session) in enumerate(zip(self._models, self._sessions, strict=True)):
            with self._recorder.phase(self.lanes[k], "prefill", model.device):
                self._handles.append(session.add([prompts[k].ids for prompts in self.prompts]))
        lengths = []
        for number in range(WARM_UPS + self._steps):
            self._recorder.index = number - WARM_UPS
            if number >= WARM_UPS:
                lengths.append(self._mean_length())
            self._advance()
        self._sessions.clear()  # keys and values must not stand in the way of what comes next
        return sum(lengths) / len(lengths)

    def _advance(self) -> None:
        """Emit one token in every row and feed it to every head."""
        logits = [session.logits(own) for session, own in zip(self._sessions, self._handles, strict=True)]
        slots = self._choose(logits)
        with self._recorder.phase("host", "append", _CPU, "ids of every head"):
            chunks = self._append(slots)
        for k, (model, session) in enumerate(zip(self._models, self._sessions, strict=True)):
            with self._recorder.phase(self.lanes[k], "forward", model.device):
                session.feed(chunks[k])
        self._emitted += 1

    def _choose(self, logits: Sequence[Tensor]) -> list[int]:
        """Return the slot that each row emits."""
        record, device, mixer = self._recorder, self.mixer.device, self.mixer
        with record.phase("fuse", "fuse", logits[0].device, "lift"):
            probs = mixer.lift(logits, [self._emitted == 0] * len(self._states))
            for model in self._models:
                synchronize(model.device)
        states = torch.tensor(self._states, device=device)
        count = len(self._states)
        draws = draws_of([self._decoding] * count, self._keys, [self._emitted] * count, device)
        if mixer.is_certified and draws is None:
            with record.phase("fuse", "fuse", device, "certified choice"):
                return _listed(mixer.certified(probs, states).slots)
        moved = []
        for lane, one in zip(self.lanes, probs, strict=True):
            with record.phase(lane, "transfer", device):
                moved.append(one.to(device))
        with record.phase("fuse", "fuse", device, "mix"):
            fused = mixer.fuse(moved).probs
        with record.phase("fuse", "fuse", device, "choose"):
            return _listed(choose_slots(fused, mixer.vocabulary.guard.mask(states), draws).slots)

    def _append(self, slots: Sequence[int]) -> list[dict[int, Sequence[int]]]:
        """Write emitted slots into every head's context; return the ids to feed, by head and row."""
        vocabulary = self.mixer.vocabulary
        chunks: list[dict[int, Sequence[int]]] = [{} for _ in self._sessions]
        for index, (slot, contexts) in enumerate(zip(slots, self._contexts, strict=True)):
            self._states[index] = vocabulary.guard.advance(self._states[index], slot)
            for k, (session, context) in enumerate(zip(self._sessions, contexts, strict=True)):
                handle = self._handles[k][index]
                change = context.append(vocabulary.keys[slot], vocabulary.ids(k, slot))
                session.rollback(handle, change.rollback)
                chunks[k][handle] = change.ids
        return chunks

    def _prompts_of(self, row: Row) -> list[Prompt]:
        pairs = list(zip(self._models, self.mixer.members, strict=True))
        prompts = [model.prompt(row.prompts[member.node], self._decoding.prefill) for model, member in pairs]
        for model, prompt in zip(self._models, prompts, strict=True):
            if not prompt.ids:
                raise RunError(f"the prompt is empty for '{model.name}'")
        return prompts

    def _new_context(self, model: TokenModel) -> Context:
        tokens = model.vocabulary().tokens
        return new_context(self._decoding.context, model.tokenizer, tokens, lstrip_first=self.mixer.joins_first)

    def _refuse_overlong(self) -> None:
        for k, model in enumerate(self._models):
            longest = max(len(prompts[k].ids) for prompts in self.prompts)
            room = model.max_positions - longest - WARM_UPS
            if self._steps > room:
                raise UsageError(
                    f"--steps {self._steps}: a prompt has {longest} tokens for '{model.name}', which reads at most"
                    f" {model.max_positions} with its answer",
                    help=f"at most --steps {max(room, 0)}, or shorter questions",
                )

    def _mean_length(self) -> float:
        pairs = zip(self._sessions, self._handles, strict=True)
        counts = [session.length(handle) for session, own in pairs for handle in own]
        return sum(counts) / len(counts)


def _listed(slots: Tensor) -> list[int]:
    """Bring chosen slots to the host."""
    return [int(slot) for slot in slots.tolist()]


def _lane_names(models: Sequence[str]) -> list[str]:
    """Name the heads by their models; a model's second head is numbered. Example: A B A -> A, B, A 2."""
    return [
        name if (count := models[: index + 1].count(name)) == 1 else f"{name} {count}"
        for index, name in enumerate(models)
    ]
