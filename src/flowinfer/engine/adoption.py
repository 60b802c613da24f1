"""Results of steps under other names: a step of another plan, or of the same group written in another order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flowinfer.planning.plan import Step, members
from flowinfer.results import StepResult


def ordered(result: StepResult, nodes: Sequence[str]) -> StepResult:
    """Return a result with its heads and prompts in the order of these nodes."""
    heads = {head.node: head for head in result.heads}
    return result.model_copy(
        update={
            "heads": tuple(heads[node] for node in nodes if node in heads),
            "prompts": {node: result.prompts[node] for node in nodes if node in result.prompts},
        }
    )


def renamed(result: StepResult, nodes: Sequence[str], step: Step) -> StepResult | None:
    """Return a result as that of another step; None where its heads and prompts cannot be that step's.

    Nor can a group's be that was made before anybody looked whether heads begin with a space, where they may disagree.

    Args:
        result: whose heads and prompts stand in the order of `nodes`.
        nodes: the step's nodes, in that order.
        step: under whose ids, and in whose order, the heads shall stand.
    """
    names = dict(zip(result.prompts, nodes, strict=False))
    if step.decoding.lstrip_first == "auto" and result.lstripped is None and not _begin_alike(result):
        return None
    if len(result.prompts) != len(nodes) or any(head.node not in names for head in result.heads):
        return None
    return moved(result, names, step)


def _begin_alike(result: StepResult) -> bool:
    """Return whether all prompts end alike: in white space, or in one character."""
    ends = {"\n" if prompt[-1:].isspace() else prompt[-1:] for prompt in result.prompts.values()}
    return len(ends) <= 1


def moved(result: StepResult, names: Mapping[str, str], step: Step) -> StepResult:
    """Return a result as that of another step, node by node.

    Args:
        names: node of the result -> node of the step.
    """
    models = {member.node: member.model for member in members(step.source)}
    heads = {
        names[head.node]: head.model_copy(update={"node": names[head.node], "model": models[names[head.node]]})
        for head in result.heads
    }
    prompts = {names[node]: text for node, text in result.prompts.items()}
    return result.model_copy(
        update={
            "step": step.id,
            "heads": tuple(heads[node] for node in models if node in heads),
            "prompts": {node: prompts[node] for node in models if node in prompts},
        }
    )
