"""The flow as a directed acyclic graph: text edges between stages, token edges into fuse nodes."""

from __future__ import annotations

from dataclasses import dataclass

import networkx as nx

from flowinfer.spec import Flow, Node, Parallel, Part, Series

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
    is_vote = isinstance(_last(flow.root), Parallel) and len(ends) > 1
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


def earlier_stages(part: Part, before: tuple[Earlier, ...] = ()) -> dict[str, tuple[Earlier, ...]]:
    """Return for every model call the stages whose text it may read, first to last."""
    match part:
        case Node():
            return {part.id: before}
        case Series(stages):
            found: dict[str, tuple[Earlier, ...]] = {}
            for stage in stages:
                found |= earlier_stages(stage, before)
                before = (*before, Earlier(outputs(stage), _label(stage), _is_answers(stage)))
            return found
        case Parallel():
            return {
                name: stages for branch in part.branches for name, stages in earlier_stages(branch.part, before).items()
            }


def outputs(part: Part) -> tuple[str, ...]:
    """Return the graph nodes that hold a part's text: one, or one per answer of a `&` group."""
    match part:
        case Node():
            return (part.id,)
        case Series(stages):
            return outputs(stages[-1])
        case Parallel():
            if part.kind == "fuse":
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


def _last(part: Part) -> Part:
    return _last(part.stages[-1]) if isinstance(part, Series) else part


def _label(part: Part) -> str | None:
    return None if isinstance(part, Series) else part.label


def _is_answers(part: Part) -> bool:
    return isinstance(part, Parallel) and part.kind == "answers"
