"""Tables of routes for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from flowinfer.language.check import check
from flowinfer.language.routes import DataSet, Example, HeldOut, Member, Outcome, Table, as_text
from flowinfer.language.routing import identity
from flowinfer.spec import written
from flowinfer.zoo import Zoo
from tests.zoos import NAMES

PLAIN = 'defaults { prompts="plain" }\n'


def outcome(accuracy: float, tokens: float = 10) -> Outcome:
    return Outcome(accuracy=accuracy, interval=(0, 1), tokens=tokens, calls=1, seconds=None)


def table(
    flows: Sequence[str],
    examples: Mapping[str, str],
    *,
    pays: bool = True,
    tokens: Sequence[float] | None = None,
    before: str = PLAIN,
    zoo: Zoo | str = NAMES,
) -> Table:
    """Return a table of some flows.

    Args:
        examples: question -> for each flow 1 or 0.
        before: what stands before each flow's text.
    """
    costs = tokens or [10.0] * len(flows)
    checked = [check(before + flow, zoo=zoo) for flow in flows]
    members = [
        Member(flow=written(flow.root), identity=identity(flow.root, flow.prompts), outcome=outcome(0.5, cost))
        for flow, cost in zip(checked, costs, strict=True)
    ]
    held = HeldOut(
        folds=5,
        route=outcome(0.7),
        picked=(1,) * len(flows),
        best=0,
        last=len(flows) - 1,
        oracle=outcome(0.9),
        gained=9 if pays else 1,
        lost=1,
        p_value=0.02 if pays else 1.0,
        pays=pays,
    )
    return Table(
        rule="as tests make it",
        neighbours=3,
        members=tuple(members),
        learned_on=(DataSet(name="made up", questions=len(examples), left_out=0),),
        held_out=held,
        examples=tuple(Example(question=question, right=right) for question, right in examples.items()),
    )


def write(path: Path, made: Table) -> Path:
    """Write a table's file."""
    path.write_text(as_text(made), "utf-8")
    return path
