"""What runs only where it is needed: choice groups, repeats, debates and samples, from written to checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from flowinfer.errors import Span
from flowinfer.language import signals
from flowinfer.language.effects import Given
from flowinfer.language.groups import weights
from flowinfer.language.nearness import near_or_all
from flowinfer.language.options import Scope
from flowinfer.language.prompts import prompt_set
from flowinfer.language.routing import Picking, picking
from flowinfer.language.templates import Earlier
from flowinfer.language.tree import Call, Group, Option
from flowinfer.spec import Choice, Decoding, Node, Parallel, Part, Rule

if TYPE_CHECKING:
    from flowinfer.language.resolve import Resolver


@dataclass(frozen=True)
class Round:
    """One turn of a repeat."""

    number: int
    """From 1."""
    late: frozenset[str]
    """Fields that only later rounds have: a prompt that shows one of them is used from round 2 on."""


@dataclass(frozen=True)
class Place:
    """Where a stage stands."""

    earlier: tuple[Earlier, ...]
    """The stages whose text it may read, first to last."""
    is_last: bool
    position: Literal["serial", "head", "answer"]
    decoding: Mapping[str, Given]
    """Options that flow down to it."""
    round: Round | None = None
    """Of the repeat around it, where there is one."""


class Choices:
    """Resolve them.

    Args:
        resolver: resolves what is in them.
        scope: values of params.
    """

    def __init__(self, resolver: Resolver, scope: Scope) -> None:
        self._resolver, self._scope, self._report = resolver, scope, scope.report
        self.tables: dict[Span, Picking] = {}
        """What groups pick by, by their place."""

    def choice(self, group: Group, place: Place) -> Choice | None:
        """Resolve members of which one answers."""
        name = self._resolver.new_id("g")
        self._refuse_head(group, place, "a '/' group gives the text of one member")
        pick = next((option for option in group.options if option.key == "pick"), None)
        found = None if pick else signals.condition(group, "accept", self._scope)
        if found is None and not any(option.key in signals.KEYS for option in group.options):
            hint = 'say by what an answer is accepted: (A / B)[accept=confidence, at=0.9], or [pick="routes.json"]'
            self._report.error("E0305", "a '/' group without accept", group.span, hint)
        weights(group, self._report)
        inner = self._inside(group, place, ("accept", "at", "pick"))
        parts = [self._resolver.chain(branch.chain, inner) for branch in group.branches]
        tries = tuple(part for part in parts if part is not None)
        label = group.label.text if group.label else None
        if pick is not None:
            return self._picked(group, pick, Choice(name, "choice", tries, Rule("pick"), group.span, label))
        if found is None or len(tries) < len(parts):
            return None
        for part in tries[:-1]:
            signals.check_signal(found, part, self._scope)
        judges = self._judges(found, tries, place)
        return Choice(name, "choice", tries, found.rule, group.span, label, judges)

    def _picked(self, group: Group, pick: Option, choice: Choice) -> Choice | None:
        """Give a choice the table that it picks by; None after a problem. Which flow is which member is told later."""
        for option in group.options:
            if option.key in ("accept", "at"):
                hint = "keep pick, which chooses before anything runs, or accept, which tries one after another"
                self._report.error("E0305", f"option '{option.key}' beside 'pick'", option.span, hint)
        if group.span not in self.tables:
            found = picking(pick, self._resolver.folder_of(pick.span), self._scope)
            if found is None:
                return None
            self.tables[group.span] = found
        table = self.tables[group.span]
        if len(choice.tries) < len(group.branches):
            return None
        return replace(choice, routes=table.table.ordered(table.name, range(len(table.table.members))))

    def repeat(self, group: Group, place: Place) -> Choice | None:
        """Resolve a part that runs several times: its rounds, one after another."""
        name, times = self._resolver.new_id("r"), signals.rounds(group, self._scope)
        self._refuse_head(group, place, "a repeat gives texts")
        found = signals.condition(group, "until", self._scope)
        options = tuple(option for option in group.options if option.key not in ("until", "at"))
        body = replace(group, times=None, label=None, options=options)
        if times > 1 and group.kind == "answers":
            for option in [option for option in options if option.key in signals.QUORUM_KEYS]:
                hint = "put the group into the repeat with another stage, as in ((A & B & C)[min=2] -> D)*3"
                self._report.error(
                    "E0309", f"option '{option.key}' in a debate: each reads the others", option.span, hint
                )
        label = group.label.text if group.label else None
        is_debate = group.kind == "answers"
        late = frozenset(("own", "answers") if is_debate else ()) | (frozenset() if place.earlier else {"prev"})
        last = Earlier(label, signals.gives_answers(group), is_round=True, is_debate=is_debate)
        tries: list[Part | None] = []
        for number in range(1, times + 1):
            earlier = place.earlier if number == 1 else (*place.earlier, last)
            turn = Round(number, late if times > 1 else frozenset())
            here = replace(place, earlier=earlier, round=turn, position="serial")
            if len(group.branches) > 1 or group.branches[0].weight is not None:
                tries.append(self._resolver.stage(body, here))
            else:
                tries.append(self._resolver.chain(group.branches[0].chain, self._inside(body, here, ())))
        rounds = tuple(part for part in tries if part is not None)
        if len(rounds) < len(tries):
            return None
        if found is not None:
            signals.check_signal(found, rounds[0], self._scope)
        judges = self._judges(found, rounds, place) if found is not None else ()
        return Choice(name, "repeat", rounds, found.rule if found else None, group.span, label, judges)

    def samples(self, stage: Call | Group, place: Place) -> Choice | None:
        """Resolve what writes several answers to one prompt."""
        name, found = self._resolver.new_id("r"), signals.samples(stage, self._scope)
        rest = tuple(option for option in stage.options if option.key not in signals.SAMPLE_KEYS)
        plain = replace(stage, options=rest, label=None)
        parts = [self._resolver.stage(plain, place) for _ in range(found.count if found else 1)]
        tries = tuple(part for part in parts if part is not None)
        if found is None or len(tries) < len(parts):
            return None
        if isinstance(tries[0], Node | Parallel) and tries[0].decoding.temperature == 0:
            hint = "let them differ: temperature=0.8"
            self._report.error("E0308", "samples at temperature 0 are all the same", found.span, hint)
        elif isinstance(tries[0], Node | Parallel) and tries[0].decoding.by == "likelihood":
            hint = "leave samples out: the likeliest letter is one"
            self._report.error("E0308", "samples by likelihood are all the same", found.span, hint)
        label = stage.label.text if stage.label else None
        return Choice(name, "samples", tries, found.rule, stage.span, label)

    def _refuse_head(self, group: Group, place: Place, what: str) -> None:
        if place.position == "head":
            hint = "let a model read it: ((A / B) -> C | D)"
            self._report.error("E0303", f"{what} and cannot be a head of a '|' group", group.span, hint)

    def _inside(self, group: Group, place: Place, own: Sequence[str]) -> Place:
        """Return the place of what stands in a group that passes its options on to it, save its own."""
        plain = replace(group, options=tuple(option for option in group.options if option.key not in own))
        return replace(place, position="serial", decoding=self._resolver.group_options(plain, place))

    def _judges(self, found: signals.Condition, tries: Sequence[Part], place: Place) -> tuple[Node, ...]:
        """Return a call of the model that says yes or no to each part but the last."""
        if found.judge is None:
            return ()
        name, models = found.judge.text, self._resolver.models
        self._resolver.used_models.add(name)
        if name not in models:
            hint = near_or_all(name, list(models), "known models")
            self._report.error("E0100", f"unknown model '{name}'", found.judge.span, hint)
            return ()
        template = prompt_set(self._resolver.prompts).judge
        self._resolver.refuse_wordless(template, found.span)
        taken = ("temperature", "top_p", "stop", "prefill", "fuse")
        decoding = Decoding(**{key: given.value for key, given in place.decoding.items() if key not in taken})
        judges = []
        for _ in tries[:-1]:
            judges.append(Node(self._resolver.new_id("n"), models[name], "verify", template, decoding, found.span))
        return tuple(judges)
