"""What makes decoding loops: each once, kept with its decoder and batch size, beside the others on its devices."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch

from flowinfer.backends.base import TextModel
from flowinfer.engine.base import Completion, Decoder, Observer, Row
from flowinfer.engine.budget import Budget, auto_batch, budgets, free_after_loading
from flowinfer.engine.decoding import DecodingLoop, free_cached
from flowinfer.engine.loops.choice import Engine, Loop, is_on_gpu, make_decoder
from flowinfer.engine.loops.text_only import Lanes, TextDecoder
from flowinfer.engine.loops.watch import Watch
from flowinfer.engine.models import ModelPool
from flowinfer.fusion.shared import SharedVocabularyWarning
from flowinfer.planning.plan import Plan, Step, held_models, members
from flowinfer.registry import backends


@dataclass(frozen=True)
class LoopState:
    """How full a loop is."""

    title: str
    num_rows: int
    free_pages: Mapping[str, int]
    """By model: its pages for keys and values that no row has; empty where there are none, as on a CPU."""


class Decoders:
    """All decoding loops of a run.

    Args:
        pool: the models.
        observer: hears the engine.
        batch: most rows of a decoding loop, but for samples of one question; "auto" asks memory.
        engine: which loops may serve.
        cpu_bytes: what a loop may count with of the CPU's free memory, where other processes have their share; None:
            all.
    """

    def __init__(
        self,
        pool: ModelPool,
        observer: Observer,
        batch: int | Literal["auto"],
        engine: Engine = "auto",
        *,
        cpu_bytes: int | None = None,
    ) -> None:
        self.pool = pool
        self._alone = Budget(None if cpu_bytes is None else {torch.device("cpu"): cpu_bytes})
        """Of a loop that shares no device."""
        self._engine = engine
        self._observer = observer
        self._batch = batch
        self._loops: dict[str, DecodingLoop] = {}
        self._together: tuple[Plan, Sequence[Step]] | None = None
        self._budgets: dict[str, Budget] = {}
        """By name of the loop."""
        self._lanes: dict[str, Lanes] = {}
        """By endpoint: steps that ask the same one share them."""
        self._looked: dict[DecodingLoop, tuple[Sequence[DecodingLoop], bool]] = {}
        """For a loop that is to begin: which ones were busy when it was last looked for room, and whether it was."""

    def loop(self, name: str, plan: Plan, step: Step) -> DecodingLoop:
        """Return the loop of that name.

        Args:
            name: what it is kept under; another step of the same models, weights and decoding may use it.
            plan: knows the models.
            step: what to decode, where the loop is new.
        """
        if name not in self._loops:
            self._loops[name] = DecodingLoop(plan, step, self._make, self._observer.batch_halved)
        return self._loops[name]

    def decode(self, name: str, plan: Plan, step: Step, rows: Sequence[Row]) -> Iterator[Completion]:
        """Decode rows with nothing beside them; yield each as it ends.

        Raises:
            LoadError, MemoryShort: a model cannot be loaded or not even one row fits.
            RunError: the step fails for every row.
        """
        loop = self.loop(name, plan, step)
        try:
            for row in rows:
                loop.add(row)
            while loop.num_rows:
                yield from loop.turn()
                loop.wait()
        finally:
            loop.clear()

    def keep_only(self, plan: Plan, names: Iterable[str]) -> None:
        """Free all decoders, and every model that none of these names needs."""
        self.let_go()
        self.pool.keep_only(plan, names)

    def let_go(self) -> None:
        """Free all decoders."""
        for loop in self._loops.values():
            loop.let_go()

    @property
    def states(self) -> list[LoopState]:
        """Return how full each loop is; for any thread."""
        return [
            LoopState(loop.step.title, loop.num_rows, getattr(loop.decoder, "free_pages", {}))
            for loop in list(self._loops.values())
        ]

    def run_together(self, steps: Mapping[str, tuple[Plan, Step]], *, are_resident: bool = False) -> None:
        """Say which loops run at once, by name: those of one plan share the memory of their devices from now on.

        So do those of several plans whose models were placed to be in memory together. Else a loop takes what is free,
        and the next one begins when there is room.
        """
        plans = [plan for plan, _ in steps.values()]
        is_one = all(plan is plans[0] for plan in plans)
        self._together = None
        if plans and (is_one or are_resident):
            own = [replace(step, id=name) for name, (_, step) in steps.items()]
            self._together = (plans[0] if is_one else _joined(plans), own)
        self._budgets = {}

    def may_begin(self, loop: DecodingLoop) -> bool:
        """Return whether a loop can be brought on: those that decode now have left it room on its GPUs."""
        if loop.decoder is not None or self._together:
            return True
        decoding = [other for other in self._loops.values() if other.decoder is not None and other.num_rows]
        busy = [other for other in decoding if loop.gpus & other.gpus]
        if not busy:
            return True
        before, has_room = self._looked.get(loop, ((), False))
        if busy != before:  # free memory changes as loops begin and end
            has_room = not self._is_nearly_full(loop)
            self._looked[loop] = busy, has_room
        return has_room

    def engine(self, name: str) -> str:
        """Return which engine decoded what was decoded last under a name: round, packed, text."""
        return type(self._loops[name].decoder).__name__.removesuffix("Decoder").lower()

    def host_wait_seconds(self, name: str) -> float | None:
        """Return what that engine has waited for the device in all; None where it does not count it."""
        waited: float | None = getattr(self._loops[name].decoder, "host_wait_seconds", None)
        return waited

    def watched(self, name: str) -> Watch | None:
        """Mark what each device of that engine does from now on; None where its steps are no device's own."""
        watched = getattr(self._loops[name].decoder, "watched", None)
        return watched() if watched else None

    def _make(self, loop: DecodingLoop) -> Decoder:
        plan, step = loop.plan, loop.step
        if not self._together and self._is_nearly_full(loop):
            self._make_way()
        for name, spec in plan.models.items():
            backend = backends().get(spec.backend)
            if backend is not None and backend.is_elsewhere:  # what is wrong there is told before anything is loaded
                self.pool.get(plan, name, self._observer)
        self.pool.begin(plan, self._wanted(plan, step))
        heads = [self.pool.get(plan, member.model, self._observer) for member in members(step.source)]
        keeps = all(plan.models[member.model].think == "keep" for member in members(step.source))
        if isinstance(heads[0], TextModel):
            spec = plan.models[next(members(step.source)).model]
            lanes = self._lanes.setdefault(spec.model_dump_json(exclude={"name", "think"}), Lanes(spec.parallel))
            return TextDecoder(step, heads[0], spec, lanes, observer=self._observer, keeps_thinking=keeps)
        tokens = [head for head in heads if not isinstance(head, TextModel)]
        assert len(tokens) == len(heads), "check refuses text-only models in groups"
        draft = step.decoding.speculate
        writer = self.pool.get(plan, draft, self._observer) if draft in plan.models else None
        assert not isinstance(writer, TextModel), "check refuses text-only models as drafts"
        self.pool.settle()
        if self._together and not self._budgets:  # now that models are needed at all
            together, steps = self._together
            self._budgets = budgets(together, steps, partial(self.pool.is_loaded, together))
        name = next(name for name, one in self._loops.items() if one is loop)
        budget = self._budgets.get(name, self._alone)
        if loop.batch is None:
            packs = is_on_gpu(tokens, self._engine)
            rows = auto_batch(plan, step, tokens, writer, is_packed=packs, budget=budget)
            loop.batch = rows if self._batch == "auto" else max(self._batch, min(rows, loop.together))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", SharedVocabularyWarning)
            made = make_decoder(Loop(step, tokens, writer, loop.batch, self._observer, keeps, budget), self._engine)
        for warning in {str(warning.message) for warning in caught}:
            self._observer.notice(warning)
        return made

    def _wanted(self, plan: Plan, step: Step) -> list[str]:
        """Return the models of a step, and then those of its plan's steps that run beside it."""
        steps = [step, *(self._together[1] if self._together and self._together[0] is plan else ())]
        return list(dict.fromkeys(name for one in steps for name in held_models(plan, one)))

    def _is_nearly_full(self, loop: DecodingLoop) -> bool:
        """Return whether one of a loop's GPUs has little memory left when its models are there."""
        left = free_after_loading(loop.plan, [loop.step], partial(self.pool.is_loaded, loop.plan))
        return any(free < torch.cuda.mem_get_info(device)[1] // 4 for device, free in left.items())

    def _make_way(self) -> None:
        """Let go of decoders that have nothing to do."""
        for loop in self._loops.values():
            if not loop.num_rows:
                loop.let_go()
        free_cached()


def _joined(plans: Sequence[Plan]) -> Plan:
    """Return a plan that knows the models of all, by name; what is known of each says how much memory is left."""
    models = {name: spec for plan in plans for name, spec in plan.models.items()}
    needs = {name: need for plan in plans for name, need in plan.needs.items()}
    placements = {name: placement for plan in plans for name, placement in plan.placements.items()}
    return replace(plans[0], models=models, needs=needs, placements=placements)
