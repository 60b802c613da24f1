"""The flows that are served: checked, placed together on the machine, each under the name of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flowinfer.backends.base import Turn
from flowinfer.engine.work import Asked
from flowinfer.errors import MemoryShort, UsageError
from flowinfer.language.prompts import AS_THEY_ARE, field_names
from flowinfer.machine import Machine
from flowinfer.planning.merge import SharedStep, Use, beside
from flowinfer.planning.placement import ready
from flowinfer.planning.plan import Mixture, Plan, Step, columns, members
from flowinfer.registry import backends
from flowinfer.results import Question
from flowinfer.runs.judging import majority
from flowinfer.spec import Flow, draws_samples
from flowinfer.sweeps.placing import place_all

_CHAT_FIELDS = ("system", "history")
"""Fields of templates that a chat fills."""
_NOISE_ID = "prompt"
"""What every request draws its noise by, as `exec --prompt` does: with equal seeds, texts are equal."""


@dataclass(frozen=True)
class ServedFlow:
    """A flow as a model."""

    name: str
    flow: Flow | None
    """As it was checked; None in a replica, which neither draws nor describes it."""
    plan: Plan
    uses: Mapping[str, Use]
    shift: int = 0
    """The set of flows that its models are in memory with, where all are not."""

    @property
    def finals(self) -> list[Step]:
        """Return the steps whose text is known to be the answer as they begin; see `Plan.finals`."""
        return [self.plan.step(name) for name in self.plan.finals]

    @property
    def unreadable(self) -> str | None:
        """Return why no text can be read by its heads, to say how likely each token of it is; None where one can."""
        steps = self.plan.steps
        if len(steps) > 1 or self.plan.answer.kind != "text":
            does = "it picks who answers by the question" if self._picks else "several steps write the answer"
            return f"{does}; only a flow that is one model or one '|' group reads a text"
        if self._gives_texts_only(steps[0]):
            return "its model is an endpoint, which gives no distributions"
        source = steps[0].source
        if isinstance(source, Mixture) and source.fuse == "byte":
            return "its heads write bytes; a text is read in tokens"
        return None

    @property
    def untold(self) -> str | None:
        """Return why no probabilities of the answer's tokens are told; None where they are."""
        if not set(self.plan.answer.steps) <= set(self.plan.finals):
            return "its answer is one of several texts, and it is decided later which"
        if any(map(self._gives_texts_only, self.finals)):
            return "the model that answers is an endpoint, which gives no distributions"
        return None

    @property
    def _picks(self) -> bool:
        return any(selection.routes is not None for selection in self.plan.selections)

    def _gives_texts_only(self, step: Step) -> bool:
        return any(backends()[self.plan.models[member.model].backend].text_only for member in members(step.source))

    @property
    def draws_samples(self) -> bool:
        """Return whether it asks for several samples of one prompt."""
        return self.flow is not None and draws_samples(self.flow.root)

    @property
    def takes_messages(self) -> bool:
        """Return whether a chat's messages are handed to its first stage as they are."""
        return self.plan.prompts == AS_THEY_ARE

    def keeps_thinking(self, step: Step) -> bool:
        """Return whether a step's thoughts are part of its text."""
        return all(self.plan.models[member.model].think == "keep" for member in members(step.source))


@dataclass(frozen=True)
class Asking:
    """One question for a flow, with what its request says of how to answer it."""

    flow: ServedFlow
    question: str
    turns: tuple[Turn, ...] = ()
    """What was said before; the first may be of the system."""
    everywhere: Mapping[str, Any] | None = None
    """Options of all steps: temperature, top_p, seed."""
    finally_: Mapping[str, Any] | None = None
    """Options of the steps that answer: max_tokens, stop."""
    item: Question | None = None
    """The whole item of a data set, whose text `question` is; then noise goes by its id."""
    echoes: int | None = None
    """Where the question is a text that is only read: how many tokens are written behind it, 0 or 1."""

    @property
    def said(self) -> list[dict[str, str]]:
        """Return what it says, turn by turn, as plain data."""
        return [turn._asdict() for turn in (*self.turns, Turn("user", self.question))]

    def asked(self, question_id: str) -> Asked:
        """Return the question as the engine takes it."""
        plan, uses = self.flow.plan, self.flow.uses
        decodings, turns = {}, {}
        for step in plan.steps:
            options = {**(self.everywhere or {}), **((self.finally_ or {}) if step.id in plan.answer.steps else {})}
            decodings[uses[step.id].shared] = step.decoding.model_copy(update=options)
            turns[uses[step.id].shared] = self._turns_of(step)
        system = "\n\n".join(turn.content for turn in self.turns if turn.role == "system")
        history = "\n\n".join(f"{turn.role}: {turn.content}" for turn in self.turns if turn.role != "system")
        item = self.item or Question(id=_NOISE_ID, question=self.question, reference="")
        columns = {"system": system, "history": history, **item.columns}
        question = item.model_copy(update={"id": question_id, "columns": columns})
        asked = Asked(
            question, lambda _: self.question, decodings=decodings, turns=turns, noise_id=item.id, vote=majority
        )
        return asked.of(uses)

    def _turns_of(self, step: Step) -> tuple[Turn, ...]:
        """Return the turns before a step's prompts: what its templates do not show themselves."""
        if not self.turns:
            return ()
        shown = {name for member in members(step.source) for name in field_names(member.template)}
        roles = {"system": "system", "user": "history", "assistant": "history"}
        return tuple(turn for turn in self.turns if roles[turn.role] not in shown)


def served(
    flows: Mapping[str, Flow],
    machine: Machine,
    on_left_out: Callable[[str, str], None] | None = None,
    *,
    swaps: bool = False,
) -> tuple[list[ServedFlow], list[SharedStep]]:
    """Place flows on a machine so that all their models are in memory together, or those of some.

    Args:
        flows: by the name of the model that each is to be.
        machine: its devices.
        on_left_out: hears the name of a flow that this machine cannot run, and why, where another can be served; if
            nobody does, that is raised.
        swaps: whether flows may be served in turn whose models do not fit together.
    Raises:
        UsageError: a flow asks for what only a data set has.
        MemoryShort: the models do not fit together; with the arithmetic.
        LoadError: see `placement.ready`.
    """
    for name, flow in flows.items():
        if missing := [column for column in columns(flow) if column not in _CHAT_FIELDS]:
            raise UsageError(
                f"'{name}' cannot be served: its prompts show {{{missing[0]}}}, which only a data set has",
                help=f"fields of a chat: question, {', '.join(_CHAT_FIELDS)}",
            )
    here = _that_run_here(flows, machine, on_left_out)
    sets = [list(here)] if not swaps else []
    for name in here if swaps else ():
        for together in sets:
            if _fit([here[one] for one in (*together, name)], machine):
                together.append(name)
                break
        else:
            sets.append([name])
    plans: dict[str, Plan] = {}
    for together in sets:
        placed = place_all([here[name] for name in together], machine)
        found = [plan for plan in placed.plans if plan is not None]
        if not placed.fits or any(len(plan.waves) > 1 for plan in found):
            raise _too_large(found, machine, can_swap=len(together) > 1)
        plans |= dict(zip(together, found, strict=True))
    shift_of = {name: shift for shift, together in enumerate(sets) for name in together}
    merged = beside([plans[name] for name in here])
    ready_flows = [
        ServedFlow(name, flow, plans[name], uses, shift_of[name])
        for (name, flow), uses in zip(here.items(), merged.uses, strict=True)
    ]
    return ready_flows, list(merged.steps)


def _that_run_here(
    flows: Mapping[str, Flow], machine: Machine, on_left_out: Callable[[str, str], None] | None
) -> dict[str, Flow]:
    """Return the flows that the machine can run, and tell of the others."""
    placed = place_all(list(flows.values()), machine)
    here = {}
    for (name, flow), plan, problem in zip(flows.items(), placed.plans, placed.problems, strict=True):
        if plan is not None:
            here[name] = flow
        elif on_left_out is None or placed.whole is None:
            ready(flow, machine)  # raises what the problem is
        else:
            on_left_out(name, str(problem))
    return here


def _fit(flows: Sequence[Flow], machine: Machine) -> bool:
    """Return whether the models of some flows are in memory together."""
    placed = place_all(flows, machine)
    return placed.fits and all(plan is not None and len(plan.waves) == 1 for plan in placed.plans)


def _too_large(plans: Sequence[Plan], machine: Machine, *, can_swap: bool) -> MemoryShort:
    """Return the error that says what all models need and what there is."""
    sizes = {
        spec.model_dump_json(exclude={"name", "think"}): (name, plan.needs[name].weight_bytes or 0)
        for plan in plans
        for name, spec in plan.models.items()
    }
    needed = ", ".join(f"{name} {size / 1e9:.1f} GB" for name, size in sizes.values())
    total = sum(size for _, size in sizes.values()) / 1e9
    free = ", ".join(f"{device.name} {device.free_bytes / 1e9:.1f} GB free" for device in machine.devices)
    of = "these flows" if can_swap else "one flow"
    return MemoryShort(
        f"the models of {of} do not fit together: {needed}, {total:.1f} GB in all; {free}",
        help=("--swap serves them in turn; or " if can_swap else "")
        + "serve fewer flows, smaller models, or dtype=bfloat16",
    )
