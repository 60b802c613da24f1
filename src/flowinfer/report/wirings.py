"""Tell from a run's plan which of the paper's wirings its flow is, without its zoo or models."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from flowinfer.language.options import option_text
from flowinfer.language.texts import quote
from flowinfer.paper.paths import Strategy
from flowinfer.spec import Decoding

_Json = Mapping[str, Any]
_LONGEST_NAME = 120
_UNLIKE = ("stop", "stop_tokens", "fuse_options")
"""Decoding options that are lists or tables: written out only where they are not empty."""


@dataclass(frozen=True)
class Form:
    """What a flow is."""

    strategy: Strategy | None
    models: tuple[str, ...]
    flow: str
    name: str


@dataclass(frozen=True)
class Whole:
    """A flow as one writes it."""

    flow: str
    """On one line, with its options, weights and labels, and its file's lets in their places."""
    beside: str
    """Options that the steps that answer had otherwise, from `defaults` or `--set`; "" where there are none."""

    def __str__(self) -> str:
        return f"{self.flow}  with {self.beside}" if self.beside else self.flow


def of_plan(plan: _Json, source: str) -> Form:
    """Return the form of a plan; where it is none of the paper's, its flow is named by its text."""
    steps: Sequence[_Json] = plan["steps"]
    models = tuple(member["model"] for step in steps for member in _members(step["source"]))
    strategy = _strategy(plan)
    flow = " -> ".join(_written(step) for step in steps) if _is_chain(plan) else _one_line(source)
    return Form(strategy, models, flow, flow)


def whole_of(plan: _Json, source: str) -> Whole:
    """Return a run's flow with all that its text says of it, and what its plan has besides."""
    text = _flow_text(source)
    answering = [step["decoding"] for step in plan["steps"] if step["id"] in plan["answer"]["steps"]]
    usual = Decoding.model_validate({}).model_dump(mode="json", exclude={"fuse_options"})
    found = {key: [one.get(key, value) for one in answering] for key, value in usual.items()}
    found |= {key: [value] for key, value in answering[0].get("fuse_options", {}).items()}
    given = {
        key: values[0]
        for key, values in found.items()
        if values[0] != usual.get(key) and all(one == values[0] for one in values)
    }
    told = [f"{key}={_option(value)}" for key, value in given.items() if not re.search(rf"\b{key}=", text)]
    return Whole(text, ", ".join(told))


def _option(value: Any) -> str:  # JSON
    if isinstance(value, list):
        return "[" + ", ".join(map(_option, value)) + "]"
    is_word = not isinstance(value, str) or re.fullmatch(r"[A-Za-z][\w.-]*", value)
    return option_text(value) if is_word else quote(value)


def settings_of(plan: _Json) -> dict[str, str]:
    """Return what decides a plan's texts besides its flow, as text: values that steps differ in are listed."""
    seen: dict[str, list[str]] = {"prompts": [str(plan.get("prompts", ""))]}
    for step in plan["steps"]:
        for key, value in step["decoding"].items():
            if key in _UNLIKE and not value:
                continue
            seen.setdefault(key, []).append(str(value))
    for name, model in plan["models"].items():
        ref = "/".join(str(model.get("ref")).split("/")[-2:])
        seen[name] = [f"{ref}@{model.get('revision') or '-'}/{model.get('dtype')}"]
    return {key: " ".join(dict.fromkeys(values)) for key, values in seen.items()}


def _strategy(plan: _Json) -> Strategy | None:
    if not _is_chain(plan) or not all(_is_plain(step["source"]) for step in plan["steps"]):
        return None
    fused = [_is_fused(step["source"]) for step in plan["steps"]]
    match fused:
        case [False]:
            return "single"
        case [True]:
            return "PI"
        case [False, True]:
            return "S2P"
        case [True, False]:
            return "P2S"
    return None if any(fused) else "SI"


def _is_chain(plan: _Json) -> bool:
    """Whether every head of each step reads the step before, and the last one's text is the answer, come what may."""
    steps: Sequence[_Json] = plan["steps"]
    for before, step in pairwise(steps):
        for member in _members(step["source"]):
            if not any(before["id"] in ids for ids in member["fields"].values()):
                return False
    return bool(plan["answer"]["kind"] == "text") and not plan.get("selections")


def _is_plain(source: _Json) -> bool:
    """Whether a source is one model, or an equal mean of models."""
    if not _is_fused(source):
        return True
    weights = {round(inner["weight"] * len(source["sources"]), 9) for inner in source["sources"]}
    flat = not any(_is_fused(inner) for inner in source["sources"])
    return flat and source["fuse"] == "mean" and len(weights) == 1


def _is_fused(source: _Json) -> bool:
    return "sources" in source


def _members(source: _Json) -> Iterator[_Json]:
    if not _is_fused(source):
        yield source
        return
    for inner in source["sources"]:
        yield from _members(inner)


def _written(step: _Json) -> str:
    source = step["source"]
    if _is_plain(source):
        return str(step["title"])
    return _group(source)


def _group(source: _Json) -> str:
    if not _is_fused(source):
        return str(source["model"])
    equal = len({round(inner["weight"], 9) for inner in source["sources"]}) == 1
    parts = [_group(inner) + ("" if equal else f":{inner['weight']:.3g}") for inner in source["sources"]]
    fuse = "" if source["fuse"] == "mean" else f"[fuse={source['fuse']}]"
    return f"({' | '.join(parts)}){fuse}"


def _one_line(source: str) -> str:
    """Return the flow of a file as a name, however long it is."""
    return _flow_text(source)[:_LONGEST_NAME]


def _flow_text(source: str) -> str:
    """Return the flow of a file, without its declarations, on one line; the whole text where none can be read."""
    from flowinfer.language.formatting import format_statement
    from flowinfer.language.syntax import parse
    from flowinfer.language.tree import FlowStatement, Let, expanded

    statements = parse(source).statements
    lets = {one.name.text: one.chain for one in statements if isinstance(one, Let)}
    flows = [replace(one, chain=expanded(one.chain, lets)) for one in statements if isinstance(one, FlowStatement)]
    lines = [line.strip() for line in (format_statement(flows[-1]) if flows else source).split("\n")]
    return " ".join(line for line in lines if line)
