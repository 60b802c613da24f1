"""The plan: which decoding loops run, on which models and devices, in what order.

One step is one decoding loop over one source; a source is a member (one model) or a mixture of sources. A serial
stage is a mixture of one. The plan knows nothing about tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from flowinfer.language.prompts import field_names
from flowinfer.language.samples import first_draws
from flowinfer.planning.graph import build, earlier_stages
from flowinfer.spec import (
    Branch,
    Choice,
    Decoding,
    Flow,
    ModelSpec,
    Node,
    Parallel,
    Part,
    Quorum,
    Role,
    Routes,
    Rule,
    Series,
    Share,
    written,
)


@dataclass(frozen=True)
class Member:
    """One model inside a step."""

    node: str
    """Id of the flow's node."""
    model: str
    """Key into Plan.models."""
    role: Role
    template: str
    """Prompt template; its fields are question, choices and the keys of `fields`."""
    fields: Mapping[str, tuple[str, ...]]
    """Field -> ids of the steps, or selections, whose text fills it (several: the answers of a `&` group, joined)."""
    weight: float = 1.0
    """Share among the sources of its mixture."""


@dataclass(frozen=True)
class Mixture:
    """Sources that write one text together."""

    group: str
    """Id of the flow's group."""
    fuse: str
    fuse_options: Mapping[str, Any]
    sources: tuple[Source, ...]
    weight: float = 1.0
    """Share among the sources of the mixture around it."""
    least: int | None = None
    """How many of its sources will do where heads elsewhere are lost; None = all."""


Source = Member | Mixture


@dataclass(frozen=True)
class When:
    """A condition: a selection has tried so many candidates and accepted none; once it accepts one, it fails."""

    selection: str
    tried: int
    picks: bool = False
    """Whether the condition is another: that the selection picks the candidate of this index."""


@dataclass(frozen=True)
class Lane:
    """The member of a quorum that a step belongs to: if it fails, or comes too late, the others may go on."""

    selection: str
    member: int


@dataclass(frozen=True)
class Selection:
    """A choice of one of several candidates while a question runs: the first that is accepted; the last always is."""

    id: str
    """d1, d2, ..."""
    title: str
    """As written in the flow, e.g. "(Yi / Qwen)"."""
    rule: Rule
    candidates: tuple[tuple[str, ...], ...]
    """For each, ids of the steps or selections whose texts it is; two candidates at least."""
    gathers: bool = False
    """Whether each candidate has the texts of all before it too: samples, of which enough are to agree."""
    quorum: Quorum | None = None
    """Where it takes the candidates, one for each member, that are there in time, instead of the first accepted."""
    judges: tuple[str, ...] = ()
    """Ids of the steps that say yes or no to each candidate but the last, where the rule asks a model."""
    routes: Routes | None = None
    """Where it picks one candidate by the question, before any step of them runs."""


@dataclass(frozen=True)
class Step:
    """One decoding loop."""

    id: str
    """s1, s2, ... in an order in which every step follows those it reads."""
    title: str
    """As written in the flow, e.g. "(Yi | Qwen)"."""
    source: Source
    decoding: Decoding
    reads: tuple[str, ...] = ()
    """Ids of the steps whose text its prompts use, or may use."""
    label: str | None = None
    when: tuple[When, ...] = ()
    """Conditions, the outermost first; it runs where all hold and is skipped where one fails."""
    lanes: tuple[Lane, ...] = ()
    """The quorums that it belongs to, the outermost first."""
    is_measured: bool = False
    """Whether a selection goes by its tokens' probabilities."""
    alone: str | None = None
    """Its id in the flow in which its member stands in the place of a group that picks, where that is another."""

    @property
    def stream(self) -> str:
        """Return the id that it draws noise by: a picked member draws what it would alone."""
        return self.alone or self.id


@dataclass(frozen=True)
class Answer:
    """What the flow returns: one step's text, or the majority among several."""

    kind: Literal["text", "vote"]
    steps: tuple[str, ...]
    """Ids of all steps whose text may be it."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """By step: what its vote counts, where that is not 1."""
    decided: tuple[str, ...] = ()
    """Ids of the steps and selections whose texts it is, where a selection is among them."""

    @property
    def texts(self) -> tuple[str, ...]:
        """Return the ids of the steps and selections whose texts it is."""
        return self.decided or self.steps


@dataclass(frozen=True)
class Need:
    """What a model asks of a machine, read from its config; None where that is not known offline."""

    parameters: int | None
    weight_bytes: int | None
    kv_bytes_per_token: int | None
    download_bytes: int | None
    """0 when it is already on disk."""
    source: str
    """Where the figures come from."""
    layers: int | None = None
    embedding_bytes: int = 0
    """Of the input embedding where it is not the output matrix too: a step need not read it."""
    stored: str = ""
    """How its weights are quantized, where they stay in memory as they are in the file."""


@dataclass(frozen=True)
class Placement:
    """Where a model lives and why."""

    device: str
    """Where ids go in and logits come out."""
    dtype: str
    why: str
    split: tuple[Share, ...] = ()
    """Where its layers lie, in their order, if on several devices; the first of them is `device`."""

    @property
    def parts(self) -> dict[str, float]:
        """Return what part of the model's bytes each of its devices holds."""
        return {share.device: share.part for share in self.split} or {self.device: 1.0}

    @property
    def where(self) -> str:
        """Return its devices in words, with the layers on each if there are several."""
        first, told = 0, []
        for share in self.split:
            layers = f" (layers {first}-{first + share.layers - 1})" if share.layers else ""
            told.append(share.device + layers)
            first += share.layers
        return ", ".join(told) or self.device


@dataclass(frozen=True)
class Wave:
    """Steps that run while one set of models is resident, over the whole data set."""

    steps: tuple[str, ...]
    models: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """A flow made ready to run."""

    flow: str
    """Name of the flow."""
    steps: tuple[Step, ...]
    answer: Answer
    models: Mapping[str, ModelSpec]
    prompts: str
    """Name of the prompt set, which also says how several answers are joined."""
    needs: Mapping[str, Need] = field(default_factory=dict)
    placements: Mapping[str, Placement] = field(default_factory=dict)
    waves: tuple[Wave, ...] = ()
    selections: tuple[Selection, ...] = ()
    """Each after those whose texts it chooses from."""

    def step(self, step_id: str) -> Step:
        """Return the step of that id."""
        return next(step for step in self.steps if step.id == step_id)

    def selection(self, selection_id: str) -> Selection:
        """Return the selection of that id."""
        return next(selection for selection in self.selections if selection.id == selection_id)

    def writers(self, text: str) -> tuple[str, ...]:
        """Return the ids of the steps that may write a text: itself, or all that a selection chooses from."""
        return writers(text, self.selections)

    @property
    def finals(self) -> tuple[str, ...]:
        """Return the ids of the steps whose text is the answer wherever they run: it is known as they begin.

        A picked member is one, and so is the last candidate of a choice or a repeat, which is taken as it comes. Texts
        that are judged first are none, nor are those that vote.
        """
        texts = self.answer.texts
        return tuple(dict.fromkeys(self._finals(texts[0]))) if len(texts) == 1 else ()

    def _finals(self, text: str) -> Iterator[str]:
        found = next((one for one in self.selections if one.id == text), None)
        if found is None:
            yield text
        elif found.quorum is None and not found.gathers:
            for candidate in found.candidates if found.routes else found.candidates[-1:]:
                yield from self._finals(candidate[0]) if len(candidate) == 1 else ()

    def before(self, step: Step) -> tuple[str, ...]:
        """Return the ids of the steps that a step waits for: those that it reads, and those that its conditions try."""
        tried: list[str] = []
        for when in (one for one in step.when if not one.picks):
            selection = self.selection(when.selection)
            texts = [text for candidate in selection.candidates[: when.tried] for text in candidate]
            tried += [writer for text in texts for writer in self.writers(text)]
            tried += selection.judges[: when.tried]
        return tuple(dict.fromkeys([*step.reads, *tried]))


def writers(text: str, selections: Sequence[Selection]) -> tuple[str, ...]:
    """Return the ids of the steps that may write a text: itself, or all that a selection chooses from."""
    found = next((one for one in selections if one.id == text), None)
    if found is None:
        return (text,)
    texts = (part for candidate in found.candidates for part in candidate)
    return tuple(dict.fromkeys(step for part in texts for step in writers(part, selections)))


def members(source: Source) -> Iterator[Member]:
    """Yield the members of a source in order of appearance."""
    if isinstance(source, Member):
        yield source
    else:
        for inner in source.sources:
            yield from members(inner)


def columns(flow: Flow) -> dict[str, str]:
    """Return the fields that only a data set can fill, each with a model whose prompt has it."""
    found: dict[str, str] = {}
    for step in compile(flow).steps:
        for member in members(step.source):
            for name in sorted(field_names(member.template).difference(("question", "choices"), member.fields)):
                found.setdefault(name, member.model)
    return found


def chooser(steps: Sequence[Step]) -> Step | None:
    """Return a step that every question has and that chooses among its choices; None where there is none."""
    return next((step for step in steps if step.decoding.by == "likelihood" and not step.when), None)


def held_models(plan: Plan, step: Step) -> tuple[str, ...]:
    """Return the names of the models that a step needs, each once: its members' and the one that drafts for them."""
    names = [member.model for member in members(step.source)]
    return tuple(
        dict.fromkeys([*names, *([step.decoding.speculate] if step.decoding.speculate in plan.models else [])])
    )


def placement_of(plan: Plan, name: str) -> Placement:
    """Return where a model goes: where the plan puts it, or where it is declared if the plan is not placed."""
    if name in plan.placements:
        return plan.placements[name]
    spec = plan.models[name]
    device = spec.device if isinstance(spec.device, str) else spec.device[0]
    return Placement("cpu" if device == "auto" else device, spec.dtype, "not placed")


def fusers_of(source: Source) -> tuple[str, ...]:
    """Return the fusers of a source's tree, each once."""
    if not isinstance(source, Mixture):
        return ()
    inner = (name for one in source.sources for name in fusers_of(one))
    return tuple(dict.fromkeys([source.fuse, *inner]))


def compile(flow: Flow) -> Plan:
    """Contract a flow's token edges into steps: what decodes together is one step.

    Step ids follow the order of the text, so that every step comes after those it reads.
    """
    return _Compiler(flow).plan()


class _Compiler:
    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._graph = build(flow)
        self._earlier = earlier_stages(flow.root)
        self._steps: list[Step] = []
        self._selections: list[Selection] = []
        self._num_selections = 0
        self._when: tuple[When, ...] = ()
        """Conditions of what is being added."""
        self._lanes: tuple[Lane, ...] = ()
        """Quorums that it belongs to."""
        self._num_absent = 0
        """Steps before what is being added that would not be there if each group that picks were its member."""
        self._weight = 1.0
        """What its vote counts."""
        self._weights: dict[str, float] = {}
        self._step_of: dict[str, str] = {}
        """Graph node that holds a text -> id of the step that writes it, or of the selection that takes it."""

    def plan(self) -> Plan:
        texts = tuple(self._step_of[end] for end in self._add(self._flow.root))
        flow, choices = self._flow, tuple(self._selections)
        whole = Plan(
            flow.model_name, tuple(self._steps), Answer("text", ()), flow.models, flow.prompts, selections=choices
        )
        steps = tuple(dict.fromkeys(writer for text in texts for writer in whole.writers(text)))
        kind: Literal["text", "vote"] = "vote" if len(texts) > 1 or any(map(self._is_several, texts)) else "text"
        return replace(whole, answer=Answer(kind, steps, self._weights, texts if steps != texts else ()))

    def _is_several(self, text: str) -> bool:
        """Return whether a selection may give several texts."""
        found = next((one for one in self._selections if one.id == text), None)
        if found is not None and found.quorum:
            return True
        return found is not None and any(len(one) > 1 or self._is_several(one[0]) for one in found.candidates)

    def _add(self, part: Part) -> tuple[str, ...]:
        """Add the steps of a part that stands for itself; return the graph nodes of its texts."""
        match part:
            case Node():
                self._step(part.id, self._member(part, 1.0), part.decoding, part.label)
                return (part.id,)
            case Series(stages):
                ends: tuple[str, ...] = ()
                for stage in stages:
                    ends = self._add(stage)
                return ends
            case Parallel():
                if part.kind == "answers" and part.quorum is not None:
                    return self._gather(part, part.quorum)
                if part.kind == "answers":
                    return tuple(end for branch in part.branches for end in self._answer(part, branch))
                self._step(part.id, self._source(part, 1.0), part.decoding, part.label)
                return (part.id,)
            case Choice():
                return self._select(part)

    def _select(self, part: Choice) -> tuple[str, ...]:
        """Add what a choice tries: each step but those of the first has a condition."""
        if part.rule is None or not part.taken_late:
            ends = [self._add(one) for one in part.tries]
            return tuple(end for own in (ends if part.kind == "samples" else ends[-1:]) for end in own)
        self._num_selections += 1
        name, outside = f"d{self._num_selections}", self._when
        candidates, judges, first = list[tuple[str, ...]](), list[str](), len(self._steps)
        is_drawn, picks, absent = part.kind == "samples", part.routes is not None, self._num_absent
        together = first_draws(part.rule.at) if is_drawn else 1
        for index, one in enumerate(part.tries):
            self._num_absent = absent + (len(self._steps) - first if picks else 0)
            tried = index if index >= together else 0
            tried -= bool(tried and is_drawn)  # the first candidate of samples is two of them
            self._when = (*outside, When(name, tried, picks)) if tried or picks else outside
            candidates.append(tuple(self._step_of[end] for end in self._add(one)))
            if index < len(part.judges):
                judges += [self._step_of[end] for end in self._add(part.judges[index])]
        self._when, self._num_absent = outside, absent
        if is_drawn:
            candidates[:2] = [candidates[0] + candidates[1]]
        title = written(replace(part, rule=None, routes=None))  # the rule is told beside it
        found = Selection(name, title, part.rule, tuple(candidates), is_drawn, judges=tuple(judges), routes=part.routes)
        self._selections.append(found)
        self._step_of[part.id] = name
        if part.rule.signal in ("confidence", "lead", "agreement"):
            self._steps[first:] = [replace(step, is_measured=True) for step in self._steps[first:]]
        return (part.id,)

    def _answer(self, part: Parallel, branch: Branch) -> tuple[str, ...]:
        """Add a member of a `&` group; where weights are written, its vote counts as much as its share says."""
        outside = self._weight
        self._weight *= branch.weight * len(part.branches) if part.is_weighted else 1.0
        ends = self._add(branch.part)
        self._weight = outside
        return ends

    def _gather(self, part: Parallel, quorum: Quorum) -> tuple[str, ...]:
        """Add members of which some may be lost."""
        self._num_selections += 1
        name, outside, candidates = f"d{self._num_selections}", self._lanes, list[tuple[str, ...]]()
        for index, branch in enumerate(part.branches):
            self._lanes = (*outside, Lane(name, index))
            candidates.append(tuple(self._step_of[end] for end in self._answer(part, branch)))
        self._lanes = outside
        rule = Rule("quorum", quorum.least)
        self._selections.append(
            Selection(name, written(replace(part, quorum=None)), rule, tuple(candidates), quorum=quorum)
        )
        self._step_of[part.id] = name
        return (part.id,)

    def _source(self, part: Part, weight: float) -> Source:
        """Return a part as a source of a mixture, adding the steps that it needs first."""
        match part:
            case Node():
                return self._member(part, weight)
            case Series(stages):
                for stage in stages[:-1]:
                    self._add(stage)
                return self._source(stages[-1], weight)
            case Parallel():
                sources = tuple(self._source(branch.part, branch.weight) for branch in part.branches)
                least = part.quorum.least if part.quorum is not None else None
                return Mixture(part.id, part.decoding.fuse, part.decoding.fuse_options, sources, weight, least)
            case Choice():
                raise AssertionError("a choice gives texts and is no head")

    def _member(self, node: Node, weight: float) -> Member:
        used = field_names(node.template)
        fields = {name: ids for name, ids in self._readable(node).items() if name in used}
        return Member(node.id, node.model.name, node.role, node.template, fields, weight)

    def _readable(self, node: Node) -> dict[str, tuple[str, ...]]:
        """Return every field that a node's template may have, with the steps that fill it."""
        fields: dict[str, tuple[str, ...]] = {}
        number = 0
        for stage in self._earlier[node.id]:
            texts = tuple(self._step_of[name] for name in stage.outputs)
            fields["prev"] = texts
            if not stage.is_round:
                number += 1
                fields[f"result_{number}"] = texts
            if stage.is_answers:
                own = tuple(self._step_of[name] for name in stage.own)
                fields["answers"] = tuple(text for text in texts if text not in own)
                fields |= {"own": own} if own else {}
            if stage.label:
                fields[stage.label] = texts
        return fields

    def _step(self, name: str, source: Source, decoding: Decoding, label: str | None) -> None:
        step_id = f"s{len(self._steps) + 1}"
        self._weights |= {step_id: self._weight} if self._weight != 1.0 else {}
        texts = {text for member in members(source) for field in member.fields.values() for text in field}
        read = {writer for text in texts for writer in writers(text, self._selections)}
        reads = tuple(step.id for step in self._steps if step.id in read)
        alone = f"s{len(self._steps) + 1 - self._num_absent}" if self._num_absent else None
        step = Step(step_id, _title(source), source, decoding, reads, label, self._when, self._lanes, alone=alone)
        self._steps.append(step)
        self._step_of[name] = step_id


def _title(source: Source) -> str:
    if isinstance(source, Member):
        return source.model
    return "(" + " | ".join(_title(inner) for inner in source.sources) + ")"
