"""From written stages to checked ones: names, roles, prompts, options and weights by place in the flow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from flowinfer.errors import Span
from flowinfer.language import signals
from flowinfer.language.choices import Choices, Place
from flowinfer.language.declarations import Declared
from flowinfer.language.effects import Effects, Given, Step
from flowinfer.language.groups import FuseOptions, check_certified, check_losses, check_outermost, heads, weights
from flowinfer.language.lets import Lets
from flowinfer.language.nearness import near_or_all
from flowinfer.language.options import (
    DECODING_KEYS,
    FUSER_KEYS,
    Scope,
    check_unique,
    speculation_problem,
    typed,
    unknown_option,
)
from flowinfer.language.prompts import (
    BUILT_IN_FIELDS,
    LOOP_FIELDS,
    ROLES,
    is_field,
    names_in,
    role_for,
    template_for,
    with_values,
)
from flowinfer.language.routing import matched
from flowinfer.language.templates import Earlier, TemplateCheck, earliest_read, shows_item
from flowinfer.language.tree import Call, Chain, Group, Option, Stage, Value
from flowinfer.registry import backends, fusers
from flowinfer.spec import Branch, Decoding, ModelSpec, Node, Parallel, Part, Role, Series, nodes

_NODE_KEYS = ("prompt", *(key for key in DECODING_KEYS if key != "fuse"))
_FUSE_KEYS = ("fuse", *FUSER_KEYS)
_LEAST_SHARE = 1e-9
"""Of the whole text, below which a branch's weight is refused: float32 keeps no more than seven digits."""


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
        self._declared, self.models, self._scope = declared, models, scope
        self._report = scope.report
        self._decoding, self.prompts = decoding, prompts
        self._fuse = FuseOptions(fuse_options, decoding, scope, declared.lets)
        self._num_of = {"n": 0, "g": 0, "r": 0}
        """By kind of id: nodes, groups, repeats."""
        self._choices = Choices(self, scope)
        self._share = 1.0
        """Of what is being resolved, in the text of the outermost group around it."""
        self._templates = TemplateCheck(self._report, scope)
        self._effects = Effects(self._report)
        self._reads: dict[str, int] = {}
        """Node whose prompt is its own -> index of the earliest stage that it reads; too high where it reads none."""
        self._labels: dict[str, Span] = {}
        self._lets = Lets(declared, models, scope)
        self.used_lets = self._lets.used
        self.used_models: set[str] = set()
        self.used_prompts: set[str] = set()

    def root(self) -> Part | None:
        """Resolve the flow; problems go into the report."""
        if self._declared.flow is None or self._lets.is_too_large:
            return None
        place = Place((), True, "serial", self._decoding)
        root = self.chain(self._declared.flow.chain, place)
        if root is not None and self._choices.tables and not self._report.has_errors:
            root = matched(root, self.prompts, self._choices.tables, self._report)
        self._effects.report(self._declared.flow.span, self._fuse.written, self._fuse.used)
        if root is not None and not self._report.has_errors:
            self._check_question(root, self._declared.flow.span)
        return root

    def new_id(self, kind: Literal["n", "g", "r"]) -> str:
        """Return the next id of a node, a group or a repeat."""
        self._num_of[kind] += 1
        return f"{kind}{self._num_of[kind]}"

    def folder_of(self, span: Span) -> Path:
        """Return the folder of the file that a place is in: paths there are relative to it."""
        return self._declared.bases[span.file]

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

    def chain(self, chain: Chain, place: Place) -> Part | None:
        """Resolve a chain at its place; None after a problem."""
        stages = self._flatten(chain)
        parts: list[Part] = []
        earlier = place.earlier
        for index, stage in enumerate(stages):
            is_end = index == len(stages) - 1
            is_last = place.is_last and is_end
            decoding = place.decoding if is_end or place.position != "head" else self._decoding
            if not is_last:  # what defaults or --set say of it is meant for the answer
                decoding = {key: given for key, given in decoding.items() if key != "by" or given.origin == "stage"}
            here = Place(earlier, is_last, place.position if is_end else "serial", decoding, place.round)
            part = self.stage(stage, here)
            if part is not None:
                if index:  # a branch's first stage is judged with its whole group
                    self._check_reads(part, stage.span, earlier)
                parts += part.stages if isinstance(part, Series) else [part]
            label = stage.label.text if stage.label else None
            earlier = (*earlier, Earlier(label, signals.gives_answers(stage)))
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

    def stage(self, stage: Stage, place: Place) -> Part | None:
        """Resolve a stage at its place; None after a problem."""
        if stage.label and (place.round is None or place.round.number == 1):
            self._check_label(stage.label.text, stage.label.span)
        check_unique(stage.options, self._report)
        if isinstance(stage, Group) and stage.times is not None:
            return self._choices.repeat(stage, place)
        is_drawn = any(option.key in signals.SAMPLE_KEYS for option in stage.options)
        if is_drawn and place.position != "head" and (isinstance(stage, Call) or stage.kind == "fuse"):
            return self._choices.samples(stage, place)
        if isinstance(stage, Call):
            return self._node(stage, place)
        return self._choices.choice(stage, place) if stage.kind == "choice" else self._group(stage, place)

    def _check_label(self, label: str, span: Span) -> None:
        if label in (*BUILT_IN_FIELDS, *LOOP_FIELDS) or label.startswith("result_"):
            self._report.error("E0109", f"label '{label}' is the name of a field", span, "choose another label")
        elif not is_field(label):
            hint = "use letters, digits, '_', '.' and '-', so that {label} can stand in a prompt"
            self._report.error("E0109", f"label '{label}' cannot be a field", span, hint)
        elif label in self._labels:
            first = self._labels[label]
            hint = f"first used in line {first.line}, column {first.column}"
            self._report.error("E0109", f"label '{label}' is used twice", span, hint)
        self._labels.setdefault(label, span)

    def _node(self, call: Call, place: Place) -> Node | None:
        node_id = self.new_id("n")
        name = call.name.text
        model = self.models.get(name)
        self.used_models.add(name)
        if model is None:
            known = [*self.models, *self._declared.lets]
            hint = None if self._report.is_full else near_or_all(name, known, "known models")
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

    def _node_options(self, call: Call, place: Place) -> dict[str, Given]:
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
        problem = speculation_problem(option.word, value[0], self.models)
        if problem:
            self._report.error(problem.code, problem.message, option.value.span, problem.help)
        return None if problem else value

    def _prompt(self, call: Call, place: Place) -> tuple[Role, str, str | None]:
        role = role_for(len(place.earlier), is_last=place.is_last)
        template = template_for(self.prompts, role, len(place.earlier))
        option = next((option for option in call.options if option.key == "prompt"), None)
        if option is None:
            self.refuse_wordless(template, call.span)
            return role, template, None
        data = self._scope.data(option.value)
        is_text = option.value.kind in ("string", "parameter") and data is not None
        if is_text and not str(data).strip():
            self._report.error("E0201", "option 'prompt' must say something", option.value.span, "such as {question}")
            return role, template, None
        if is_text and data not in self._declared.prompts and data not in ROLES:
            own = self._own_template(str(data), option.value, place, option.value.span)
            return (role, template, None) if own is None else (role, own, None)
        if data in self._declared.prompts:
            self.used_prompts.add(data)
            declared = self._declared.prompts[data]
            text = str(self._scope.data(declared.template))
            own = self._own_template(text, declared.template, place, option.value.span)
            return (role, template, None) if own is None else (role, own, str(data))
        if data in ROLES:
            if data != "draft" and not place.earlier:
                hint = 'leave prompt= out, so that it drafts; or write the words: prompt="Check this: {question}"'
                message = f"role '{data}' reads the stage before, and '{call.name.text}' is the first"
                self._report.error("E0402", message, option.value.span, hint)
            template = template_for(self.prompts, data, max(len(place.earlier), 1))
            self.refuse_wordless(template, option.value.span)
            return data, template, None
        if data is not None:
            known = [*self._declared.prompts, *ROLES]
            near = None if self._report.is_full else near_or_all(str(data), known, "a text in quotes, or one of")
            self._report.error("E0101", f"unknown prompt '{data}'", option.value.span, near)
        return role, template, None

    def _own_template(self, text: str, written: Value, place: Place, use: Span) -> str | None:
        """Return a prompt of the flow's own, checked; None where it is for later rounds than this one."""
        turn = place.round
        if turn is not None and turn.number == 1 and turn.late & names_in(text):
            return None
        checked = self._templates.check(text, written, place.earlier, use, has_rounds=turn is not None)
        if turn is None or "round" not in names_in(checked):  # or its braces are not paired, which is told
            return checked
        return with_values(checked, {"round": str(turn.number)})

    def refuse_wordless(self, template: str, place: Span) -> None:
        """Report a stage that reads others' texts and that the prompt set has no words for."""
        if not template:
            hint = 'write them: prompt="{question} {prev}", or choose a prompt set that has some: plain'
            message = f"prompts={self.prompts} has no words for a stage that reads what others wrote"
            self._report.error("E0405", message, place, hint)

    def _group(self, group: Group, place: Place) -> Parallel | None:
        group_id = self.new_id("g")
        if group.kind == "answers" and place.position == "head":
            hint = "let a model read the answers: ((A & B) -> C | D)"
            self._report.error("E0303", "a '&' group gives texts and cannot be a head of a '|' group", group.span, hint)
        quorum = signals.quorum(group, self._scope)
        group = replace(group, options=tuple(one for one in group.options if one.key not in signals.QUORUM_KEYS))
        options = self.group_options(group, place)
        decoding = self._group_decoding(group, options)
        flows_down = {key: given for key, given in options.items() if key != "fuse"}
        if "fuse" in place.decoding:
            flows_down["fuse"] = place.decoding["fuse"]
        position: Literal["head", "answer"] = "head" if group.kind == "fuse" else "answer"
        inner = Place(place.earlier, place.is_last, position, flows_down, place.round)
        if len(group.branches) == 1:
            message = "a group of one writes what its branch alone would"
            self._report.warning("W0300", message, group.span, "add a branch, or drop the parentheses")
        if group.kind == "fuse" and place.position != "head":
            check_certified(group, decoding, self._report)
        shares = weights(group, self._report, votes=place.is_last)
        parts = []
        for branch, weight in zip(group.branches, shares, strict=True):
            whole = self._share if place.position == "head" else 1.0
            self._share = whole * weight
            if branch.weight_span and self._share < _LEAST_SHARE <= whole:
                message = f"a share of {self._share:.0e} of the text: it cannot change a token"
                self._report.error("E0301", message, branch.weight_span, "leave the branch out, or weigh it more")
            parts.append(self.chain(branch.chain, inner))
            self._share = whole
        branches = tuple(Branch(part, weight) for part, weight in zip(parts, shares, strict=True) if part is not None)
        if len(branches) < len(parts):
            return None
        if group.kind == "fuse":
            models = tuple(model for branch in branches for model in heads(branch.part))
            own = options if place.position != "head" else {key: options[key] for key in options if key == "fuse"}
            self._effects.step(Step(models, is_group=True, is_first=not place.earlier), own)
        is_weighted = any(branch.weight is not None for branch in group.branches)
        label = group.label.text if group.label else None
        kind: Literal["fuse", "answers"] = "fuse" if group.kind == "fuse" else "answers"
        resolved = Parallel(group_id, kind, branches, decoding, group.span, is_weighted, label, quorum)
        if kind == "fuse" and place.position != "head":
            check_outermost(resolved, self._report)
            check_losses(resolved, self._report)
        return resolved

    def group_options(self, group: Group, place: Place) -> dict[str, Given]:
        """Return what a group is decoded with, or its answers are; the fuser's own parameters apart."""
        values = dict(place.decoding)
        for option in group.options:
            if option.key in FUSER_KEYS and group.kind == "fuse":
                continue
            elif option.key == "prompt":
                hint = "each head has its own: (A[prompt=...] | B[prompt=...])"
                self._report.error("E0205", "option 'prompt' belongs to a model", option.span, hint)
            elif group.kind != "fuse" and option.key in _FUSE_KEYS:
                hint = "a '&' group gives independent answers; only '|' groups fuse"
                hint = hint if group.kind == "answers" else "one member of a '/' group answers; only '|' groups fuse"
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
        return _decoding(options, fuse_options=self._fuse.of(fuse, group, given))


def _decoding(options: Mapping[str, Given], **more: Any) -> Decoding:
    return Decoding(**{key: given.value for key, given in options.items()}, **more)
