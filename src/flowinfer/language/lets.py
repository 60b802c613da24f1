"""Lets before they are expanded: cycles, depth and size, each let measured once however often it is called."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from flowinfer.language.declarations import Declared
from flowinfer.language.mistakes import MOST_LEVELS
from flowinfer.language.options import Scope
from flowinfer.language.signals import MOST_ROUNDS, MOST_SAMPLES
from flowinfer.language.tree import Call, Chain, Group, Value

MOST_CALLS = 1000
"""Most model calls of one flow: lets may double it with every line."""


@dataclass(frozen=True)
class _Size:
    """Of a chain with all its lets expanded."""

    calls: int = 0
    lets: int = 0
    """Levels of lets inside lets."""
    groups: int = 0
    """Levels of groups inside groups."""


_REFUSED = _Size(calls=1)
"""Of what is not expanded: it counts, or as many of them as there are would be looked at one by one."""


class Lets:
    """Which lets of a flow can be expanded; what is wrong with the others goes into the report.

    Args:
        declared: what the file and its imports declare.
        models: names of models, for the message about a let that hides the model it means to call.
        scope: where params have values, and what is wrong is reported.
    """

    def __init__(self, declared: Declared, models: Collection[str], scope: Scope) -> None:
        self._declared, self._models, self._scope, self._report = declared, models, scope, scope.report
        self._sizes: dict[str, _Size] = {}
        self._open: list[str] = []
        self._num_groups = 0
        self._is_told = False
        self.used: set[str] = set()
        """Lets that something calls."""
        self.refused: set[str] = set()
        """Lets that contain themselves, or more than a flow can hold."""
        for name in declared.lets:
            self._let(name)
        self.is_too_large = declared.flow is not None and self._chain(declared.flow.chain).calls > MOST_CALLS

    def _let(self, name: str) -> _Size:
        if name not in self._sizes:
            self._open.append(name)
            inner = self._chain(self._declared.lets[name].chain)
            self._open.pop()
            self._sizes[name] = _Size(inner.calls, inner.lets + 1, inner.groups)
        return self._sizes[name]

    def _chain(self, chain: Chain) -> _Size:
        calls = lets = groups = 0
        for stage in chain.stages:
            size = self._group(stage) if isinstance(stage, Group) else self._call(stage)
            calls, lets, groups = calls + size.calls, max(lets, size.lets), max(groups, size.groups)
            if calls > MOST_CALLS:
                if not self._open:
                    self._too_large(stage)
                break
        return _Size(calls, lets, groups)

    def _group(self, group: Group) -> _Size:
        if self._num_groups >= MOST_LEVELS:
            self._report.error("E0022", f"nested deeper than {MOST_LEVELS} levels", group.span, "nest fewer groups")
            self.refused.update(self._open)
            return _REFUSED
        self._num_groups += 1
        sizes = [self._chain(branch.chain) for branch in group.branches]
        self._num_groups -= 1
        times = self._number(group.times, MOST_ROUNDS) if group.times else 1
        calls = sum(size.calls for size in sizes) * times * self._samples(group)
        return _Size(calls, max(size.lets for size in sizes), 1 + max(size.groups for size in sizes))

    def _call(self, call: Call) -> _Size:
        name, span = call.name.text, call.name.span
        if name not in self._declared.lets:
            return _Size(calls=self._samples(call))
        self.used.add(name)
        if call.options:
            hint = "give options to the stages inside it"
            self._report.error("E0205", f"let '{name}' takes no options", call.options[0].span, hint)
        if name in self._open:
            cycle = self._open[self._open.index(name) :]
            hint = "choose another name than the model's" if name in self._models else "break the cycle"
            message = f"let '{name}' contains itself: {' -> '.join([*cycle, name])}"
            self._report.error("E0105", message, span, hint)
            self.refused.update(cycle)
            return _REFUSED
        if name in self.refused:  # and told
            return _REFUSED
        size = self._let(name) if len(self._open) < MOST_LEVELS else _Size(lets=1)
        if len(self._open) + size.lets > MOST_LEVELS:
            self._report.error("E0022", f"lets nested deeper than {MOST_LEVELS} levels", span, "use fewer lets")
        elif self._num_groups + size.groups > MOST_LEVELS:
            self._report.error("E0022", f"nested deeper than {MOST_LEVELS} levels", span, "nest fewer groups")
        elif size.calls > MOST_CALLS:
            self._too_large(call)
        else:
            return size
        self.refused.add(name)
        return _REFUSED

    def _too_large(self, stage: Call | Group) -> None:
        if self._is_told:
            return
        self._is_told = True
        span = stage.name.span if isinstance(stage, Call) else stage.span
        hint = "use fewer lets inside lets, rounds or samples, or split the flow"
        self._report.error("E0111", f"the flow has more than {MOST_CALLS} model calls", span, hint)

    def _samples(self, stage: Call | Group) -> int:
        """Return how many samples a stage says that it draws."""
        said = next((option.value for option in stage.options if option.key == "samples"), None)
        return self._number(said, MOST_SAMPLES) if said else 1

    def _number(self, value: Value, most: int) -> int:
        """Return a whole number up to a limit, also a param's; 1 where it is none, which is told elsewhere."""
        data = self._scope.params.get(value.data) if value.kind == "parameter" else value.data
        return data if isinstance(data, int) and 1 <= data <= most else 1
