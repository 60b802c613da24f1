"""What a group is made of: its branches' shares, the parameters of its fuser, the models that write its text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import inf
from typing import Any

from flowinfer.language.effects import Given
from flowinfer.language.options import Scope, fuser_option
from flowinfer.language.reporter import Reporter
from flowinfer.language.tree import Call, Group, Let, Option
from flowinfer.registry import backends, fusers
from flowinfer.spec import Decoding, ModelSpec, Node, Parallel, Part, Series


class FuseOptions:
    """Parameters of fusers: a group's own, those of `defaults` where it fuses as `defaults` say, else the usual ones.

    Args:
        defaults: those of `defaults`, with their places.
        decoding: options of `defaults`.
        scope: values of params.
        lets: that branches may be named by.
    """

    def __init__(
        self,
        defaults: Mapping[str, tuple[Option, Any]],
        decoding: Mapping[str, Given],
        scope: Scope,
        lets: Mapping[str, Let],
    ) -> None:
        self._decoding, self._scope, self._report, self._lets = decoding, scope, scope.report, lets
        self.written = {key: option for key, (option, _) in defaults.items()}
        """Those of `defaults`."""
        self.used: set[str] = set()
        """Of them, those that some group takes."""

    def of(self, fuse: str, group: Group, given: Mapping[str, Option]) -> dict[str, Any]:
        """Return the parameters of one group's fuser."""
        info = fusers()[fuse]
        models = self._models(group)
        usual = self._decoding["fuse"].value if "fuse" in self._decoding else "mean"
        taken = {key: option for key, option in self.written.items() if key in info.parameters and fuse == usual}
        self.used |= set(taken)
        values = {key: parameter.default for key, parameter in info.parameters.items()}
        for key, option in (taken | dict(given)).items():
            if key not in info.parameters:
                owners = ", ".join(name for name, other in fusers().items() if key in other.parameters)
                own = f"; fuse={fuse} has {', '.join(info.parameters)}" if info.parameters else ""
                hint = f"it is an option of fuse={owners}{own}"
                self._report.error("E0203", f"fuse={fuse} has no option '{key}'", option.span, hint)
            elif (value := fuser_option(option, info, list(models), self._scope)) is not None:
                values[key] = models[value[0]] if info.parameters[key].type == "model" else value[0]
        return values

    def _models(self, group: Group) -> dict[str, str]:
        """Return the models that a group's branches end in, by their names and by the lets that stand for them."""
        models: dict[str, str] = {}
        for branch in group.branches:
            names, last = list[str](), branch.chain.stages[-1]
            while isinstance(last, Call) and last.name.text not in names:  # a let that names itself is told elsewhere
                names.append(last.name.text)
                if last.name.text in self._lets:
                    last = self._lets[last.name.text].chain.stages[-1]
            models |= {name: names[-1] for name in names} if isinstance(last, Call) else {}
        return models


def check_certified(group: Group, decoding: Decoding, report: Reporter) -> None:
    """Report certified candidates where they cannot serve; a model alone moves nothing and ignores the option."""
    if decoding.topk != "certified":
        return
    is_flat = all(isinstance(branch.chain.stages[-1], Call) for branch in group.branches)
    is_mean = fusers()[decoding.fuse].target == fusers()["mean"].target
    if is_flat and is_mean and decoding.temperature == 0:
        return
    why = f"with fuse={decoding.fuse}" if not is_mean else "that samples" if is_flat else "with groups inside"
    option = next((option for option in group.options if option.key == "topk"), None)
    report.error(
        "E0206",
        f"option 'topk' cannot be 'certified' in a group {why}",
        option.value.span if option else group.span,
        "certified candidates serve greedy groups of models with fuse=mean; use topk=auto",
    )


def check_outermost(group: Parallel, report: Reporter) -> None:
    """Report a fuser that says how a whole text is written inside a group that is written in another way."""
    for inner in _inner_groups(group):
        if loop_of(inner.decoding) not in (None, loop_of(group.decoding)):
            message = f"fuse={inner.decoding.fuse} inside a group with fuse={group.decoding.fuse}"
            report.error("E0206", message, inner.span, f"write it behind the outer group: [fuse={inner.decoding.fuse}]")


def check_losses(group: Parallel, report: Reporter) -> None:
    """Report groups that are to go on without heads that are lost, where none can be, or nothing could go on."""
    for one in [group, *_inner_groups(group)]:
        if one.quorum is None:
            continue
        if not any(backends()[model.backend].is_elsewhere for branch in one.branches for model in heads(branch.part)):
            hint = 'leave it out; a head that may be lost has device="HOST:PORT"'
            report.error("E0309", "option 'min' in a '|' group whose heads are all in this process", one.span, hint)
        elif group.decoding.by == "likelihood" or loop_of(group.decoding):
            how = "by=likelihood" if group.decoding.by == "likelihood" else f"fuse={group.decoding.fuse}"
            hint = "leave min out: the questions under way then fail where a head is lost"
            report.error("E0309", f"option 'min' with {how}, which needs all heads to the end", one.span, hint)


def loop_of(decoding: Decoding) -> str | None:
    """Return the fuser of a group that decodes in a loop of its own: byte, or safe; None where it does not."""
    target = fusers()[decoding.fuse].target
    return next((name for name in ("byte", "safe") if fusers()[name].target == target), None)


def _inner_groups(group: Parallel) -> Iterator[Parallel]:
    """Yield the groups that write with others in a group."""
    for branch in group.branches:
        end = branch.part
        while isinstance(end, Series):
            end = end.stages[-1]
        if isinstance(end, Parallel):
            yield end
            yield from _inner_groups(end)


def weights(group: Group, report: Reporter, *, votes: bool = False) -> list[float]:
    """Return normalized shares, equal ones where none are written or some are wrong.

    Args:
        votes: whether it is a `&` group that votes.
    """
    equal = [1 / len(group.branches)] * len(group.branches)
    written = [branch for branch in group.branches if branch.weight is not None]
    if not written:
        return equal
    if group.kind == "choice":
        span = next(branch.weight_span for branch in written if branch.weight_span)
        report.error(
            "E0304", "a weight in a '/' group", span, "one member answers; order them, the first is tried first"
        )
        return equal
    if group.kind == "answers" and not votes:
        span = next(branch.weight_span for branch in written if branch.weight_span)
        hint = "votes are weighted, at the end of a flow; use '|', or drop the weights"
        report.error("E0304", "a weight in a '&' group that does not vote", span, hint)
        return equal
    if len(written) < len(group.branches):
        bare = next(branch for branch in group.branches if branch.weight is None)
        hint = "give every branch of the group a weight, or none"
        report.error("E0300", "a branch without weight among weighted ones", bare.chain.span, hint)
        return equal
    for branch in written:
        if branch.weight is not None and branch.weight_span and not 0 < branch.weight < inf:
            report.error(
                "E0301",
                "a weight must be positive" if branch.weight <= 0 else "a weight must be finite",
                branch.weight_span,
                "leave a branch out instead of 0" if branch.weight <= 0 else None,
            )
            return equal
    largest = max(branch.weight or 0.0 for branch in written)  # whose sum may be beyond what a float holds
    values = [(branch.weight or 0.0) / largest for branch in written]
    return [value / sum(values) for value in values]


def heads(part: Part) -> list[ModelSpec]:
    """Return the models that write the text of a branch of a group."""
    match part:
        case Node():
            return [part.model]
        case Series(stages):
            return heads(stages[-1])
        case Parallel():
            return [model for branch in part.branches for model in heads(branch.part)]
    return []  # a choice gives texts and is no head
