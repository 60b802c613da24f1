"""From written stages to checked ones: names, roles, prompts, options and weights by place in the flow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Any, Literal

from flowinfer.errors import Span
from flowinfer.language.declarations import Declared
from flowinfer.language.effects import Effects, Given, Step
from flowinfer.language.lets import Lets
from flowinfer.language.options import (
    DECODING_KEYS,
    FUSER_KEYS,
    Scope,
    check_unique,
    fuser_option,
    near_or_all,
    speculation_problem,
    typed,
    unknown_option,
)
from flowinfer.language.prompts import BUILT_IN_FIELDS, ROLES, is_field, role_for, template_for
from flowinfer.language.templates import Earlier, TemplateCheck, earliest_read, shows_item
from flowinfer.language.tree import Branch as WrittenBranch
from flowinfer.language.tree import Call, Chain, Group, Option, Stage
from flowinfer.registry import backends, fusers
from flowinfer.spec import Branch, Decoding, ModelSpec, Node, Parallel, Part, Role, Series, nodes

_NODE_KEYS = ("prompt", *(key for key in DECODING_KEYS if key != "fuse"))
_FUSE_KEYS = ("fuse", *FUSER_KEYS)
_LEAST_SHARE = 1e-9
"""Of the whole text, below which a branch's weight is refused: float32 keeps no more than seven digits."""


@dataclass(frozen=True)
class _Place:
    """Where a stage stands."""

    earlier: tuple[Earlier, ...]
    """The stages whose text it may read, first to last."""
    is_last: bool
    position: Literal["serial", "head", "answer"]
    decoding: Mapping[str, Given]
    """Options that flow down to it."""


class Resolver:
    """Resolve one flow.

    Args:
        declared: what the file and its imports declare.
        models: the zoo's models and the declared ones, by name.
        scope: values of params.
        decoding: options of `defaults`.
        fuse_options: parameters of fusers in `defaults`, with their places.
        prompts: name of the prompt set.
    """

    def __init__(
        self,
        declared: Declared,
        models: Mapping[str, ModelSpec],
        scope: Scope,
        decoding: Mapping[str, Given],
        fuse_options: Mapping[str, tuple[Option, Any]],
        prompts: str,
    ) -> None:
        self._declared, self._models, self._scope = declared, models, scope
        self._report = scope.report
        self._decoding, self._fuse_defaults, self._prompts = decoding, fuse_options, prompts
        self._num_nodes = self._num_groups = 0
        self._share = 1.0
        """Of what is being resolved, in the text of the outermost group around it."""
        self._templates = TemplateCheck(self._report, scope)
        self._effects = Effects(self._report)
        self._used_fuse_options: set[str] = set()
        self._reads: dict[str, int] = {}
        """Node whose prompt is its own -> index of the earliest stage that it reads; too high where it reads none."""
        self._labels: dict[str, Span] = {}
        self._lets = Lets(declared, models, scope.report)
        self.used_lets = self._lets.used
        self.used_models: set[str] = set()
        self.used_prompts: set[str] = set()

    def root(self) -> Part | None:
        """Resolve the flow; problems go into the report."""
        if self._declared.flow is None or self._lets.is_too_large:
            return None
        place = _Place((), True, "serial", self._decoding)
        root = self._chain(self._declared.flow.chain, place)
        written = {key: option for key, (option, _) in self._fuse_defaults.items()}
        self._effects.report(self._declared.flow.span, written, self._used_fuse_options)
        if root is not None and not self._report.has_errors:
            self._check_question(root, self._declared.flow.span)
        return root

    def _check_question(self, root: Part, flow: Span) -> None:
        """Warn of a flow none of whose prompts shows anything of a question."""
        if not any(shows_item(node.template, self._labels) for node in nodes(root)):
            hint = "put {question} into the prompt of the first stage"
            self._report.warning("W0303", "no prompt shows the question: all questions get the same", flow, hint)

    def _flatten(self, chain: Chain) -> list[Stage]:
        """Return a chain's stages with lets expanded in place."""
        stages: list[Stage] = []
        for stage in chain.stages:
            if isinstance(stage, Call) and stage.name.text in self._declared.lets:
                stages += self._expand(stage)
            else:
                stages.append(stage)
        return stages

    def _expand(self, call: Call) -> list[Stage]:
        if call.name.text in self._lets.refused:
            return []
        stages = self._flatten(self._declared.lets[call.name.text].chain)
        if call.label and stages:
            stages[-1] = replace(stages[-1], label=call.label)
        return stages

    def _chain(self, chain: Chain, place: _Place) -> Part | None:
        stages = self._flatten(chain)
        parts: list[Part] = []
        earlier = place.earlier
        for index, stage in enumerate(stages):
            is_end = index == len(stages) - 1
            here = _Place(
                earlier,
                place.is_last and is_end,
                place.position if is_end else "serial",
                place.decoding if is_end or place.position != "head" else self._decoding,
            )
            part = self._stage(stage, here)
            if part is not None:
                if index:  # a branch's first stage is judged with its whole group
                    self._check_reads(part, stage.span, earlier)
                parts += part.stages if isinstance(part, Series) else [part]
            label = stage.label.text if stage.label else None
            is_answers = isinstance(stage, Group) and stage.kind == "answers"
            earlier = (*earlier, Earlier(label, is_answers))
        if not parts:
            return None
        return parts[0] if len(parts) == 1 else Series(tuple(parts))

    def _check_reads(self, part: Part, span: Span, earlier: tuple[Earlier, ...]) -> None:
        """Warn of a stage none of whose models reads a text from before it."""
        if not earlier or any(self._reads.get(node.id, 0) < len(earlier) for node in nodes(part)):
            return
        name = f"'{part.model.name}'" if isinstance(part, Node) else "this group"
        hint = "put {prev} or {result_k} into a prompt, or write independent models as (A & B)"
        self._report.warning("W0301", f"{name} reads nothing of what the stages before it wrote", span, hint)

    def _stage(self, stage: Stage, place: _Place) -> Part | None:
        if stage.label:
            self._check_label(stage.label.text, stage.label.span)
        check_unique(stage.options, self._report)
        return self._node(stage, place) if isinstance(stage, Call) else self._group(stage, place)

    def _check_label(self, label: str, span: Span) -> None:
        if label in BUILT_IN_FIELDS or label.startswith("result_"):
            self._report.error("E0109", f"label '{label}' is the name of a field", span, "choose another label")
        elif not is_field(label):
            hint = "use letters, digits, '_', '.' and '-', so that {label} can stand in a prompt"
            self._report.error("E0109", f"label '{label}' cannot be a field", span, hint)
        elif label in self._labels:
            first = self._labels[label]
            hint = f"first used in line {first.line}, column {first.column}"
            self._report.error("E0109", f"label '{label}' is used twice", span, hint)
        self._labels.setdefault(label, span)

    def _node(self, call: Call, place: _Place) -> Node | None:
        self._num_nodes += 1
        node_id = f"n{self._num_nodes}"
        name = call.name.text
        model = self._models.get(name)
        self.used_models.add(name)
        if model is None:
            hint = near_or_all(name, [*self._models, *self._declared.lets], "known models", self._report)
            self._report.error("E0100", f"unknown model '{name}'", call.name.span, hint)
        elif place.position == "head" and backends()[model.backend].text_only:
            hint = "use it as a stage of its own, or in a '&' group"
            message = f"model '{name}' gives texts only and cannot write together with others"
            self._report.error("E0302", message, call.name.span, hint)
        options = self._node_options(call, place)
        role, template, prompt_name = self._prompt(call, place)
        if model is None:
            return None
        if place.position != "head":
            self._effects.step(Step((model,), is_group=False, is_first=not place.earlier), options)
        decoding = _decoding({key: given for key, given in options.items() if key != "fuse"})
        label = call.label.text if call.label else None
        if any(option.key == "prompt" for option in call.options) and not self._report.has_errors:
            read = earliest_read(template, place.earlier)
            self._reads[node_id] = len(place.earlier) if read is None else read
        return Node(node_id, model, role, template, decoding, call.span, label, prompt_name)

    def _node_options(self, call: Call, place: _Place) -> dict[str, Given]:
        values = dict(place.decoding)
        for option in call.options:
            if option.key == "prompt":
                continue
            if option.key in _FUSE_KEYS:
                owner = next((name for name, info in fusers().items() if option.key in info.parameters), "mean")
                own = f", {option.key}={option.value.raw}" if option.key in FUSER_KEYS else ""
                hint = f"write it behind the group: (A | B)[fuse={owner}{own}]"
                self._report.error("E0205", f"option '{option.key}' belongs to a '|' group", option.span, hint)
            elif option.key not in DECODING_KEYS:
                hint = unknown_option(option.key, _NODE_KEYS)
                self._report.error("E0200", f"unknown option '{option.word}'", option.span, hint)
            elif place.position == "head":
                hint = f"write it behind the group: (A | B)[{option.key}={option.value.raw}]"
                self._report.error(
                    "E0205", f"option '{option.key}' belongs to the group, not to one head", option.span, hint
                )
            elif (value := self._typed(option)) is not None:
                values[option.key] = Given(value[0], option, "stage")
        return values

    def _typed(self, option: Option) -> tuple[Any] | None:
        """Return a decoding option's value in a tuple, or None after reporting what is wrong."""
        value = typed(option, Decoding, self._scope)
        if value is None or option.key != "speculate":
            return value
        self.used_models.add(value[0])
        problem = speculation_problem(option.word, value[0], self._models)
        if problem:
            self._report.error(problem.code, problem.message, option.value.span, problem.help)
        return None if problem else value

    def _prompt(self, call: Call, place: _Place) -> tuple[Role, str, str | None]:
        role = role_for(len(place.earlier), is_last=place.is_last)
        template = template_for(self._prompts, role, len(place.earlier))
        option = next((option for option in call.options if option.key == "prompt"), None)
        if option is None:
            return role, template, None
        data = self._scope.data(option.value)
        is_text = option.value.kind in ("string", "parameter") and data is not None
        if is_text and not str(data).strip():
            self._report.error("E0201", "option 'prompt' must say something", option.value.span, "such as {question}")
            return role, template, None
        if is_text and data not in self._declared.prompts and data not in ROLES:
            return role, self._templates.check(str(data), option.value, place.earlier, option.value.span), None
        if data in self._declared.prompts:
            self.used_prompts.add(data)
            declared = self._declared.prompts[data]
            text = str(self._scope.data(declared.template))
            text = self._templates.check(text, declared.template, place.earlier, option.value.span)
            return role, text, str(data)
        if data in ROLES:
            if data != "draft" and not place.earlier:
                hint = 'leave prompt= out, so that it drafts; or write the words: prompt="Check this: {question}"'
                message = f"role '{data}' reads the stage before, and '{call.name.text}' is the first"
                self._report.error("E0402", message, option.value.span, hint)
            return data, template_for(self._prompts, data, max(len(place.earlier), 1)), None
        if data is not None:
            near = near_or_all(
                str(data), [*self._declared.prompts, *ROLES], "a text in quotes, or one of", self._report
            )
            self._report.error("E0101", f"unknown prompt '{data}'", option.value.span, near)
        return role, template, None

    def _group(self, group: Group, place: _Place) -> Parallel | None:
        self._num_groups += 1
        group_id = f"g{self._num_groups}"
        if group.kind == "answers" and place.position == "head":
            hint = "let a model read the answers: ((A & B) -> C | D)"
            self._report.error("E0303", "a '&' group gives texts and cannot be a head of a '|' group", group.span, hint)
        options = self._group_options(group, place)
        decoding = self._group_decoding(group, options)
        flows_down = {key: given for key, given in options.items() if key != "fuse"}
        if "fuse" in place.decoding:
            flows_down["fuse"] = place.decoding["fuse"]
        inner = _Place(place.earlier, place.is_last, "head" if group.kind == "fuse" else "answer", flows_down)
        if len(group.branches) == 1:
            message = "a group of one writes what its model alone would"
            self._report.warning("W0300", message, group.span, "add a branch, or drop the parentheses")
        self._check_certified(group, decoding, place)
        weights = self._weights(group)
        parts = []
        for branch, weight in zip(group.branches, weights, strict=True):
            whole = self._share if place.position == "head" else 1.0
            self._share = whole * weight
            if branch.weight_span and self._share < _LEAST_SHARE <= whole:
                message = f"a share of {self._share:.0e} of the text: it cannot change a token"
                self._report.error("E0301", message, branch.weight_span, "leave the branch out, or weigh it more")
            parts.append(self._chain(branch.chain, inner))
            self._share = whole
        branches = tuple(Branch(part, weight) for part, weight in zip(parts, weights, strict=True) if part is not None)
        if len(branches) < len(parts):
            return None
        if group.kind == "fuse":
            models = tuple(model for branch in branches for model in _heads(branch.part))
            own = options if place.position != "head" else {key: options[key] for key in options if key == "fuse"}
            self._effects.step(Step(models, is_group=True, is_first=not place.earlier), own)
        is_weighted = any(branch.weight is not None for branch in group.branches)
        label = group.label.text if group.label else None
        return Parallel(group_id, group.kind, branches, decoding, group.span, is_weighted, label)

    def _group_options(self, group: Group, place: _Place) -> dict[str, Given]:
        """Return what a group is decoded with, or its answers are; the fuser's own parameters apart."""
        values = dict(place.decoding)
        for option in group.options:
            if option.key in FUSER_KEYS and group.kind == "fuse":
                continue
            elif option.key == "prompt":
                hint = "each head has its own: (A[prompt=...] | B[prompt=...])"
                self._report.error("E0205", "option 'prompt' belongs to a model", option.span, hint)
            elif group.kind == "answers" and option.key in _FUSE_KEYS:
                hint = "a '&' group gives independent answers; only '|' groups fuse"
                self._report.error("E0205", f"option '{option.key}' belongs to a '|' group", option.span, hint)
            elif option.key not in DECODING_KEYS:
                hint = unknown_option(option.key, (*DECODING_KEYS, *FUSER_KEYS))
                self._report.error("E0200", f"unknown option '{option.word}'", option.span, hint)
            elif place.position == "head" and option.key != "fuse":
                hint = "write it behind the outermost group: the whole of it decodes as one"
                self._report.error("E0205", f"option '{option.key}' belongs to the outer group", option.span, hint)
            elif (value := self._typed(option)) is not None:
                values[option.key] = Given(value[0], option, "stage")
        return values

    def _group_decoding(self, group: Group, options: Mapping[str, Given]) -> Decoding:
        if group.kind == "answers":
            return _decoding({key: given for key, given in options.items() if key != "fuse"})
        given = {option.key: option for option in group.options if option.key in FUSER_KEYS}
        fuse = options["fuse"].value if "fuse" in options else "mean"
        return _decoding(options, fuse_options=self._fuse_options(fuse, group, given))

    def _check_certified(self, group: Group, decoding: Decoding, place: _Place) -> None:
        """Report certified candidates where they cannot serve; a model alone moves nothing and ignores the option."""
        if decoding.topk != "certified" or group.kind == "answers" or place.position == "head":
            return
        is_flat = all(isinstance(branch.chain.stages[-1], Call) for branch in group.branches)
        is_mean = fusers()[decoding.fuse].target == fusers()["mean"].target
        if is_flat and is_mean and decoding.temperature == 0:
            return
        why = f"with fuse={decoding.fuse}" if not is_mean else "that samples" if is_flat else "with groups inside"
        option = next((option for option in group.options if option.key == "topk"), None)
        self._report.error(
            "E0206",
            f"option 'topk' cannot be 'certified' in a group {why}",
            option.value.span if option else group.span,
            "certified candidates serve greedy groups of models with fuse=mean; use topk=auto",
        )

    def _fuse_options(self, fuse: str, group: Group, given: Mapping[str, Option]) -> dict[str, Any]:
        info = fusers()[fuse]
        names = [_end_name(branch) for branch in group.branches]
        inherited = {
            key: option
            for key, (option, _) in self._fuse_defaults.items()
            if key in info.parameters and fuse == (self._decoding["fuse"].value if "fuse" in self._decoding else "mean")
        }
        self._used_fuse_options |= set(inherited)
        values = {key: parameter.default for key, parameter in info.parameters.items()}
        for key, option in {**inherited, **given}.items():
            if key not in info.parameters:
                owners = ", ".join(name for name, other in fusers().items() if key in other.parameters)
                hint = f"it is an option of fuse={owners}"
                self._report.error("E0203", f"fuse={fuse} has no option '{key}'", option.span, hint)
            elif (value := fuser_option(option, info, names, self._scope)) is not None:
                values[key] = value[0]
        return values

    def _weights(self, group: Group) -> list[float]:
        """Return normalized shares, equal ones where none are written or some are wrong."""
        equal = [1 / len(group.branches)] * len(group.branches)
        written = [branch for branch in group.branches if branch.weight is not None]
        if not written:
            return equal
        if group.kind == "answers":
            span = next(branch.weight_span for branch in written if branch.weight_span)
            hint = "independent answers are not averaged; use '|', or drop the weights"
            self._report.error("E0304", "a weight in a '&' group", span, hint)
            return equal
        if len(written) < len(group.branches):
            bare = next(branch for branch in group.branches if branch.weight is None)
            hint = "give every branch of the group a weight, or none"
            self._report.error("E0300", "a branch without weight among weighted ones", bare.chain.span, hint)
            return equal
        for branch in written:
            if branch.weight is not None and branch.weight_span and not 0 < branch.weight < inf:
                self._report.error(
                    "E0301",
                    "a weight must be positive" if branch.weight <= 0 else "a weight must be finite",
                    branch.weight_span,
                    "leave a branch out instead of 0" if branch.weight <= 0 else None,
                )
                return equal
        largest = max(branch.weight or 0.0 for branch in written)  # whose sum may be beyond what a float holds
        values = [(branch.weight or 0.0) / largest for branch in written]
        return [value / sum(values) for value in values]


def _decoding(options: Mapping[str, Given], **more: Any) -> Decoding:
    return Decoding(**{key: given.value for key, given in options.items()}, **more)


def _heads(part: Part) -> list[ModelSpec]:
    """Return the models that write the text of a branch of a group."""
    match part:
        case Node():
            return [part.model]
        case Series(stages):
            return _heads(stages[-1])
        case Parallel():
            return [model for branch in part.branches for model in _heads(branch.part)]


def _end_name(branch: WrittenBranch) -> str:
    """Return the name of the model that a branch's end calls, "" for a group."""
    last: Stage = branch.chain.stages[-1]
    return last.name.text if isinstance(last, Call) else ""
