"""The flow as a directed acyclic graph: text edges between stages, token edges into fuse nodes."""

from __future__ import annotations

from dataclasses import dataclass

import networkx as nx

from flowinfer.spec import Choice, Flow, Node, Parallel, Part, Series

QUESTION, ANSWER = "question", "answer"


def build(flow: Flow) -> nx.DiGraph[str]:
    """Build the graph of a flow.

    Nodes carry `kind` (question, model, fuse, answers, answer) and `title`; models also `role`, fuse nodes `fuse`.
    Edges carry `kind`: text, from what was written to what reads it, or tokens, from a head to where it is fused, with
    the head's `weight`.
    """
    graph: nx.DiGraph[str] = nx.DiGraph(name=flow.name)
    graph.add_node(QUESTION, kind="question", title="question")
    ends = _add(graph, flow.root, (QUESTION,))
    is_vote = gives_answers(flow.root) and (len(ends) > 1 or isinstance(_last(flow.root), Choice))
    graph.add_node(ANSWER, kind="answer", title="vote" if is_vote else "answer")
    for end in ends:
        graph.add_edge(end, ANSWER, kind="text")
    return graph


@dataclass(frozen=True)
class Earlier:
    """A stage that precedes a node: the graph nodes that hold its text, and its label."""

    outputs: tuple[str, ...]
    label: str | None
    is_answers: bool
    is_round: bool = False
    """Whether it is the round before of a repeat, which has no number."""
    own: tuple[str, ...] = ()
    """Those of them that the node's own branch of a debate wrote."""


def earlier_stages(part: Part, before: tuple[Earlier, ...] = ()) -> dict[str, tuple[Earlier, ...]]:
    """Return for every model call the stages whose text it may read, first to last."""
    match part:
        case Node():
            return {part.id: before}
        case Series(stages):
            found: dict[str, tuple[Earlier, ...]] = {}
            for stage in stages:
                found |= earlier_stages(stage, before)
                before = (*before, Earlier(outputs(stage), _label(stage), gives_answers(stage)))
            return found
        case Parallel():
            return {
                name: stages for branch in part.branches for name, stages in earlier_stages(branch.part, before).items()
            }
        case Choice():
            return _of_choice(part, before)


def _of_choice(part: Choice, before: tuple[Earlier, ...]) -> dict[str, tuple[Earlier, ...]]:
    found: dict[str, tuple[Earlier, ...]] = {}
    for index, one in enumerate(part.tries):
        former = part.tries[index - 1] if index and part.kind == "repeat" else None
        if former is None:
            found |= earlier_stages(one, before)
        elif isinstance(one, Parallel) and isinstance(former, Parallel) and one.kind == "answers":
            for branch, own in zip(one.branches, former.branches, strict=True):
                last = Earlier(outputs(former), part.label, True, True, outputs(own.part))
                found |= earlier_stages(branch.part, (*before, last))
        else:
            last = Earlier(outputs(former), part.label, gives_answers(former), True)
            found |= earlier_stages(one, (*before, last))
    for judge, one in zip(part.judges, part.tries, strict=False):
        found[judge.id] = (*before, Earlier(outputs(one), None, gives_answers(one)))
    return found


def outputs(part: Part) -> tuple[str, ...]:
    """Return the graph nodes that hold a part's text: one, or one per answer of a `&` group."""
    match part:
        case Choice():
            if part.taken_late:
                return (part.id,)
            given = part.tries if part.kind == "samples" else part.tries[-1:]
            return tuple(name for one in given for name in outputs(one))
        case Node():
            return (part.id,)
        case Series(stages):
            return outputs(stages[-1])
        case Parallel():
            if part.kind == "fuse" or part.quorum:
                return (part.id,)
            return tuple(name for branch in part.branches for name in outputs(branch.part))


def _add(graph: nx.DiGraph[str], part: Part, sources: tuple[str, ...]) -> tuple[str, ...]:
    """Add a part that reads the text of `sources`; return the nodes that hold its own."""
    match part:
        case Node():
            graph.add_node(part.id, kind="model", title=part.model.name, role=part.role)
            for source in sources:
                graph.add_edge(source, part.id, kind="text")
            return (part.id,)
        case Series(stages):
            for stage in stages:
                sources = _add(graph, stage, sources)
            return sources
        case Parallel():
            ends = [_add(graph, branch.part, sources) for branch in part.branches]
            if part.kind == "answers":
                return tuple(name for end in ends for name in end)
            graph.add_node(part.id, kind="fuse", title=f"⊕ {part.decoding.fuse}", fuse=part.decoding.fuse)
            for end, branch in zip(ends, part.branches, strict=True):
                graph.add_edge(end[0], part.id, kind="tokens", weight=branch.weight)
            return (part.id,)
        case Choice():
            shown = part.tries if part.kind == "choice" else part.tries[:1]
            ends = [_add(graph, one, sources) for one in shown]
            graph.add_node(part.id, kind="choice", title=condition(part))
            for name in (name for end in ends for name in end):
                graph.add_edge(name, part.id, kind="text")
            return (part.id,)


def condition(part: Choice) -> str:
    """Return what is tried, and until when, as drawings say it."""
    rule = f"{part.rule}".replace(">=", "≥") if part.rule else ""
    if part.routes is not None:
        return f"one: by {part.routes.name}"
    if part.kind == "choice":
        return f"first: {rule}"
    if part.kind == "samples":
        return f"×{len(part.tries)} samples" + (f", {rule}" if rule else "")
    return f"×{len(part.tries)}" + (f" until {rule}" if rule else "")


def _last(part: Part) -> Part:
    return _last(part.stages[-1]) if isinstance(part, Series) else part


def _label(part: Part) -> str | None:
    return None if isinstance(part, Series) else part.label


def gives_answers(part: Part) -> bool:
    """Return whether a part may pass on several answers."""
    match part:
        case Series(stages):
            return gives_answers(stages[-1])
        case Choice():
            return part.kind == "samples" or any(map(gives_answers, part.tries))
    return isinstance(part, Parallel) and part.kind == "answers"
