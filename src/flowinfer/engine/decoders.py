"""Decoders of steps, made once and kept with their batch sizes; where memory is short, the batch is halved.

What breaks a loop is looked for in halves of its rows, until it is known whose fault it is.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from flowinfer.backends.base import TextModel, TokenModel
from flowinfer.engine.base import Completion, Decoder, Observer, Row
from flowinfer.engine.budget import Budget, auto_batch, budgets
from flowinfer.engine.faults import is_memory_short, reason
from flowinfer.engine.loops.choice import Engine, Loop, is_on_gpu, make_decoder
from flowinfer.engine.loops.text_only import TextDecoder
from flowinfer.engine.models import ModelPool
from flowinfer.errors import MemoryShort, RunError
from flowinfer.fusion.shared import SharedVocabularyWarning
from flowinfer.planning.plan import Plan, Step, members

_MOST_ALONE = 4
"""Rows that fail alone, before any has ended well, until it is no question's fault but the step's."""
_MAKE_ROOM = "lower max_tokens, use dtype=bfloat16, or place its models on other devices"


@dataclass(frozen=True)
class After:
    """How rows go on whose loop broke."""

    groups: tuple[Sequence[Row], ...]
    """Those that are to be decoded, each group by itself."""
    failed: tuple[Completion, ...] = ()


class Decoders:
    """Decode rows of steps.

    Args:
        pool: the models.
        observer: hears the engine.
        batch: most rows of a decoding loop; "auto" asks memory.
        engine: which loops may serve.
    """

    def __init__(
        self, pool: ModelPool, observer: Observer, batch: int | Literal["auto"], engine: Engine = "auto"
    ) -> None:
        self.pool = pool
        self._engine = engine
        self._observer = observer
        self._batch = batch
        self._batches: dict[str, int] = {}
        self._made: dict[str, Decoder] = {}
        self._alone: dict[str, int] = {}
        """How many rows of a decoder have failed alone; -1 once one has ended well."""
        self._widest: dict[str, int] = {}
        """Batches before memory was short."""
        self._together: tuple[Plan, Sequence[Step]] | None = None
        self._budgets: dict[str, Budget] = {}

    def keep_only(self, plan: Plan, names: Iterable[str]) -> None:
        """Free all decoders, and every model that none of these names needs."""
        self._made.clear()
        self.pool.keep_only(plan, names)

    def run_together(self, plan: Plan, steps: Sequence[Step]) -> None:
        """Let some steps, each under its id, share the memory of their devices from now on."""
        self._together = (plan, steps)
        self._budgets = {}

    def decode(self, name: str, plan: Plan, step: Step, rows: Sequence[Row]) -> Generator[Completion, None, None]:
        """Decode rows, whatever one of them does to the loop: rows that were with it are decoded again without it.

        Where memory is short, the batch is halved; of single rows the one that asks for least comes first then.

        Args:
            name: what the decoder is kept under; another step of the same models, weights and decoding may use it.
            plan: knows the models.
            step: what to decode.
            rows: with the prompts of the step's nodes.
        Raises:
            LoadError, MemoryShort: a model cannot be loaded or not even one row fits.
            RunError: the step fails for every row.
        """
        groups: list[Sequence[Row]] = [rows]
        while groups:
            left = {id(row): row for row in groups.pop()}
            decoder = self.decoder(name, plan, step)
            is_broken = False
            try:
                for completion in decoder.decode(list(left.values())):
                    del left[id(completion.row)]
                    self.ended(name, completion)
                    yield completion
            except BaseException as error:  # what is not a question's is raised
                after = self.after(name, step, error, list(left.values()))
                is_broken = True
            if is_broken:
                del decoder
                free_cached()  # only now is nothing left that the error held on to
                groups += reversed(after.groups)
                yield from after.failed

    def ended(self, name: str, completion: Completion) -> None:
        """Note how a row ended: a decoder that has ended one well does not fail as such."""
        if completion.result is not None:
            self._alone[name] = -1

    def after(self, name: str, step: Step, error: BaseException, rows: Sequence[Row]) -> After:
        """Let go of a decoder that an error broke; return how its rows that have not ended go on.

        Short memory halves the batch. Else, and where one row at a time is too many, each half of the rows goes on
        alone, those with the shorter prompts first; a single row has failed.

        Raises:
            BaseException: the error itself, where it is no question's fault.
            MemoryShort: memory is too short for the smallest row.
            RunError: the step fails for every row.
        """
        if not rows:
            raise error
        is_short = is_memory_short(error)
        if is_short and self._batches.get(name, 0) != 1:
            self.halve(name, step, error)
            return After((rows,))
        problem = _too_large(step) if is_short else reason(error)
        self._made.pop(name, None)
        if len(rows) > 1:
            ordered = sorted(rows, key=lambda row: sum(map(len, row.prompts.values())))
            return After((ordered[: len(rows) // 2], ordered[len(rows) // 2 :]))
        if self._alone.setdefault(name, 0) >= 0:
            self._alone[name] += 1
            if is_short:
                raise MemoryShort(problem, help=_MAKE_ROOM) from error
            if self._alone[name] == _MOST_ALONE:
                raise RunError(f"step {step.id} {step.title} fails for every question: {problem}") from error
        self._batches.update({name: self._widest[name]} if is_short else {})
        return After((), (Completion(rows[0], None, problem),))

    def decoder(self, name: str, plan: Plan, step: Step) -> Decoder:
        """Return a step's decoder, made if need be, with half the batch where memory is short.

        Raises:
            LoadError, MemoryShort: a model cannot be loaded or not even one row fits.
        """
        while name not in self._made:
            is_short = False
            try:
                self._made[name] = self._make(name, plan, step)
            except (MemoryError, RuntimeError) as error:
                self.halve(name, step, error)
                is_short = True
            if is_short:
                free_cached()
        return self._made[name]

    def halve(self, name: str, step: Step, error: BaseException) -> None:
        """Let go of a decoder that ran out of memory; the next one gets half its batch.

        Raises:
            MemoryShort: its batch was one row.
            Exception: the error itself, where it tells of something else or no batch was chosen yet.
        """
        batch = self._batches.get(name)
        if batch is None or not is_memory_short(error):
            raise error
        if batch == 1:
            raise MemoryShort(_too_large(step), help=_MAKE_ROOM) from error
        self._widest.setdefault(name, batch)
        self._batches[name] = batch // 2
        self._made.pop(name, None)
        self._observer.batch_halved(batch // 2)

    def engine(self, name: str) -> str:
        """Return which engine decoded what was decoded last under a name: reference, text, ..."""
        return type(self._made[name]).__name__.removesuffix("Decoder").lower()

    def host_wait_seconds(self, name: str) -> float | None:
        """Return what that engine has waited for the device in all; None where it does not count it."""
        waited: float | None = getattr(self._made[name], "host_wait_seconds", None)
        return waited

    def _make(self, name: str, plan: Plan, step: Step) -> Decoder:
        heads = [self.pool.get(plan, member.model, self._observer) for member in members(step.source)]
        keeps = all(plan.models[member.model].think == "keep" for member in members(step.source))
        if isinstance(heads[0], TextModel):
            return TextDecoder(step, heads[0], observer=self._observer, keeps_thinking=keeps)
        tokens = [head for head in heads if not isinstance(head, TextModel)]
        assert len(tokens) == len(heads), "check refuses text-only models in groups"
        draft = step.decoding.speculate
        writer = self.pool.get(plan, draft, self._observer) if draft in plan.models else None
        assert not isinstance(writer, TextModel), "check refuses text-only models as drafts"
        self._make_way(tokens)
        if self._together and not self._budgets:  # now that models are needed at all
            together, steps = self._together
            self._budgets = budgets(together, steps, partial(self.pool.is_loaded, together))
        budget = self._budgets.get(name, Budget())
        if name not in self._batches:
            packs = is_on_gpu(tokens, self._engine)
            rows = auto_batch(plan, step, tokens, writer, is_packed=packs, budget=budget)
            self._batches[name] = rows if self._batch == "auto" else self._batch
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", SharedVocabularyWarning)
            loop = Loop(step, tokens, writer, self._batches[name], self._observer, keeps, budget)
            decoder = make_decoder(loop, self._engine)
        for warning in {str(warning.message) for warning in caught}:
            self._observer.notice(warning)
        return decoder

    def _make_way(self, models: Sequence[TokenModel]) -> None:
        """Let go of other decoders where loops run one after another and a GPU is nearly full."""
        gpus = {model.device for model in models if model.device.type == "cuda"}
        if self._together or not self._made or not gpus:
            return
        memory = [torch.cuda.mem_get_info(gpu) for gpu in gpus]
        if any(free < total // 4 for free, total in memory):
            self._made.clear()
            free_cached()


def free_cached() -> None:
    """Give memory back that is kept for reuse; for after an error, when nothing holds on to what it broke."""
    gc.collect()  # decoders and what they hold may stand in circles
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _too_large(step: Step) -> str:
    return f"step {step.id} {step.title} does not fit into memory even for one question"
