"""Routes of a choice group: the table that `pick` names, and which of its flows is which member.

A table is learned from runs of whole flows. Member k of a group stands for the flow in which the group is replaced by
that member, and is found in the table by what decides its texts: models, prompts, options, wiring.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from flowinfer.errors import DataError, Span
from flowinfer.language.options import Scope
from flowinfer.language.reporter import Reporter
from flowinfer.language.routes import Table, read
from flowinfer.language.tree import Option
from flowinfer.spec import Branch, Choice, Decoding, ModelSpec, Node, Parallel, Part, Routes, Series, written


@dataclass(frozen=True)
class Picking:
    """The table that a group names."""

    table: Table
    name: str
    """Of the file, as written."""
    span: Span
    """Of that."""


def picking(option: Option, folder: Path, scope: Scope) -> Picking | None:
    """Read the table that `pick` names; None after reporting what is wrong.

    Args:
        folder: that its path is relative to.
    """
    name, span = scope.data(option.value), option.value.span
    if not isinstance(name, str) or option.value.kind == "word" or not name.strip():
        if name is not None:
            hint = 'a file that flowinfer route wrote: pick="routes.json"'
            scope.report.error("E0201", f"option 'pick' must be a path in quotes, found {option.value.raw}", span, hint)
        return None
    try:
        return Picking(read(folder / name, name), name, span)
    except DataError as error:
        scope.report.error("E0310", error.message, span, error.help)
        return None


def matched(root: Part, prompts: str, tables: dict[Span, Picking], report: Reporter) -> Part:
    """Return a flow whose groups know which of their tables' flows each member is; mistakes go into the report.

    Args:
        prompts: name of the flow's prompt set.
        tables: by the place of the group.
    """
    routes: dict[Span, Routes | None] = {}
    for group in _routed(root):
        if group.span not in routes:
            routes[group.span] = _columns(root, prompts, group, tables[group.span], report)
    return _changed(root, lambda group: replace(group, routes=routes[group.span]) if group.routes else group)


def _columns(root: Part, prompts: str, group: Choice, picked: Picking, report: Reporter) -> Routes | None:
    """Return a table as one group picks by it; None after reporting that it is of other flows."""
    table, named = picked.table, f"'{picked.name}'"
    members = [_changed(root, partial(_member_of, group.span, index)) for index in range(len(group.tries))]
    order = _order(table, [(identity(member, prompts), written(member)) for member in members])
    hint = f"learn it from runs of these members: flowinfer route RUNS -o {picked.name}"
    known = ", ".join(member.flow for member in table.members)
    missing = next((index for index, column in enumerate(order) if column is None), None)
    if missing is not None or len(order) < len(table.members):
        message = f"{named} chooses among {len(table.members)} flows, and this group has {len(order)} members"
        if missing is not None:
            message = (
                f"with member {missing + 1} the flow is '{written(members[missing])}', which {named} does not know"
            )
        report.error("E0311", message, picked.span, f"{hint}; it is of {known}")
        return None
    columns = [column for column in order if column is not None]
    for column, member in zip(columns, members, strict=True):
        if table.members[column].identity != identity(member, prompts):
            message = f"{named} knows '{written(member)}' with other models, prompts or options than here"
            report.warning("W0306", message, picked.span, hint)
            break
    if not table.held_out.pays:
        best = table.members[table.held_out.best].flow
        message = f"{named} is no better than '{best}' alone, by its own figures"
        report.warning("W0305", message, picked.span, f"use '{best}', or learn it from more questions")
    return table.ordered(picked.name, columns)


def _order(table: Table, wanted: Sequence[tuple[str, str]]) -> list[int | None]:
    """Return the column of each member, given by identity and text: its own, else that of the same words."""
    left = dict(enumerate(table.members))
    found: list[int | None] = [None] * len(wanted)
    for kind in (0, 1):
        for index, key in enumerate(wanted):
            if found[index] is None:
                same = (column for column, one in left.items() if (one.identity, one.flow)[kind] == key[kind])
                if (column := next(same, None)) is not None:
                    found[index] = column
                    del left[column]
    return found


def _member_of(span: Span, index: int, group: Choice) -> Part:
    """Return a member of the group of that place, with the group's label; other groups as they are."""
    if group.routes is None or group.span != span:
        return group
    member = group.tries[index]
    if group.label is None:
        return member
    if not isinstance(member, Series):
        return replace(member, label=group.label)
    last = member.stages[-1]
    assert not isinstance(last, Series), "a chain in a chain is part of it"
    return Series((*member.stages[:-1], replace(last, label=group.label)))


def _routed(part: Part) -> list[Choice]:
    """Return the groups of a part that pick by routes, in order."""
    match part:
        case Series(stages):
            return [group for stage in stages for group in _routed(stage)]
        case Parallel():
            return [group for branch in part.branches for group in _routed(branch.part)]
        case Choice():
            return ([part] if part.routes else []) + [group for one in part.tries for group in _routed(one)]
    return []


def _changed(part: Part, change: Callable[[Choice], Part]) -> Part:
    """Return a part with its choices changed, the outer ones first; chains in chains become one."""
    match part:
        case Series(stages):
            found = [_changed(stage, change) for stage in stages]
            flat = [one for stage in found for one in (stage.stages if isinstance(stage, Series) else (stage,))]
            return Series(tuple(flat))
        case Parallel():
            branches = tuple(replace(branch, part=_changed(branch.part, change)) for branch in part.branches)
            return replace(part, branches=branches)
        case Choice():
            other = change(part)
            if not isinstance(other, Choice) or other.span != part.span:
                return _changed(other, change)
            return replace(other, tries=tuple(_changed(one, change) for one in other.tries))
    return part


def identity(root: Part, prompts: str) -> str:
    """Return a digest of all that decides a flow's texts, on whichever machine it runs.

    Args:
        prompts: name of its prompt set, which says how several answers are joined.
    """
    text = json.dumps({"prompts": prompts, "flow": _plain(root)}, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _plain(part: Part) -> list[Any] | dict[str, Any]:
    """Return what decides a part's text as plain data, without the ids that its place in the flow gives it."""
    match part:
        case Node():
            decoding = _decoding(part.decoding)
            return {"model": _model(part.model), "template": part.template, "decoding": decoding, "label": part.label}
        case Series(stages):
            return [_plain(stage) for stage in stages]
        case Parallel():
            branches = [_branch(branch) for branch in part.branches]
            if part.kind == "fuse":  # whose order does not count
                branches.sort(key=lambda one: json.dumps(one, sort_keys=True))
            return {
                "kind": part.kind,
                "branches": branches,
                "decoding": _decoding(part.decoding),
                "label": part.label,
                "quorum": str(part.quorum) if part.quorum else None,
            }
        case Choice():
            return {
                "kind": part.kind,
                "tries": [_plain(one) for one in part.tries],
                "rule": str(part.rule),
                "judges": [_plain(one) for one in part.judges],
                "label": part.label,
                **({"routes": part.routes.digest} if part.routes else {}),
            }


def _branch(branch: Branch) -> dict[str, Any]:
    return {"part": _plain(branch.part), "weight": branch.weight}


def _model(model: ModelSpec) -> dict[str, Any]:
    """Return what of a model decides its texts; of a folder's path only the end, which other machines share."""
    said = _unusual(model.decisive(), ModelSpec(name="x", ref="").decisive())
    return said | {"ref": "/".join(model.ref.split("/")[-2:])}


def _decoding(decoding: Decoding) -> dict[str, Any]:
    return _unusual(decoding.decisive(), Decoding.model_validate({}).decisive())


def _unusual(said: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is not as ever: an option that is new does not make a table one of other flows."""
    return {key: value for key, value in said.items() if key not in usual or usual[key] != value}
