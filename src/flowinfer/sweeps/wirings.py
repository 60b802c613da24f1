"""From a request to the flows of a sweep: the paper's wirings and files, at every point of a grid."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from flowinfer.errors import Diagnostic, FlowError, UsageError
from flowinfer.language.check import check, read_flow
from flowinfer.language.declarations import Loader
from flowinfer.language.nearness import did_you_mean, near_or_all
from flowinfer.language.options import DECODING_KEYS
from flowinfer.paper.paths import Strategy, paths, strategy_of
from flowinfer.planning.plain import fingerprint
from flowinfer.planning.plan import compile
from flowinfer.spec import RENAMED, Flow, nodes, written
from flowinfer.sweeps.request import SweepRequest
from flowinfer.sweeps.weights import parse_weights, weighted
from flowinfer.zoo import select_zoo

_SHORT = {"fuser": "fuse"}
"""Other names of grid keys."""
_OPTIONS = (*DECODING_KEYS, "prompts")


@dataclass(frozen=True)
class Wiring:
    """One flow of a sweep."""

    key: str
    """p01, p02, ..."""
    strategy: Strategy | None
    models: tuple[str, ...]
    flow: str
    """As one line."""
    name: str
    """For tables."""
    settings: Mapping[str, str]
    """Its point of the grid, and what is set for all."""
    checked: Flow


@dataclass(frozen=True)
class _Source:
    """A flow's text before a point of the grid is chosen."""

    text: str
    file: str
    base: Path
    name: str
    params: tuple[str, ...] | None
    """Which a flow file declares; None for a flow that was made here."""


def wirings(request: SweepRequest) -> list[Wiring]:
    """Return a sweep's flows, checked; combinations that come to the same plan stand once.

    Raises:
        FlowError: with all errors of all flow files.
        UsageError: a name or option is wrong, or there are too many.
    """
    sources = [*_generated(request), *_files(request)]
    count = len(sources) * math.prod(len(values) for values in request.grid.values())
    if count > request.max_paths:
        _refuse_many(count, request)
    points = list(_points(request, sources))
    made: dict[str, Wiring] = {}
    found: list[Diagnostic] = []
    for source in sources:
        for point in points:
            try:
                wiring = _wiring(source, point, request)
            except FlowError as error:
                found += [diagnostic for diagnostic in error.diagnostics if diagnostic not in found]
                continue
            made.setdefault(f"{wiring.flow}\n{fingerprint(compile(wiring.checked))}", wiring)
    if found:
        raise FlowError(found)
    digits = max(2, len(str(len(made))))
    return [replace(wiring, key=f"p{number:0{digits}}") for number, wiring in enumerate(made.values(), start=1)]


def _generated(request: SweepRequest) -> list[_Source]:
    if not request.models:
        return []
    _check_names(request)
    depths = _depths(request)
    count = sum(
        len(request.models) if strategy == "single" else sum(math.perm(len(request.models), depth) for depth in depths)
        for strategy in request.strategies
    )
    if count > request.max_paths:
        _refuse_many(count, request)
    texts: list[str] = []
    for depth in depths:
        wired = [s for s in request.strategies if s == "single" or depth >= (2 if s in ("SI", "PI") else 3)]
        texts += [path.flow for path in paths(request.models, wired, depth=depth)]
    if not texts:
        raise UsageError(
            f"strategies {', '.join(request.strategies)} cannot wire {max(depths)} models",
            help="SI and PI take at least 2 models, S2P and P2S at least 3",
        )
    return [_Source(text, "<sweep>", Path(), text, None) for text in dict.fromkeys(texts)]


def _check_names(request: SweepRequest) -> None:
    zoo = select_zoo(explicit=request.zoo)
    for name in request.models:
        if name not in zoo.models:
            hint = near_or_all(name, zoo.models, "its models")
            raise UsageError(f"--models: unknown model '{name}' in zoo '{zoo.name}'", help=hint)


def _depths(request: SweepRequest) -> tuple[int, ...]:
    most = len(request.models)
    for depth in request.depth:
        if not 1 <= depth <= most:
            raise UsageError(f"--depth {depth}: expected 1 to {most}, the number of models")
    return tuple(sorted(set(request.depth))) or (min(most, 3),)


def _refuse_many(count: int, request: SweepRequest) -> None:
    raise UsageError(
        f"{count} paths are more than --max-paths {request.max_paths}",
        help=f"--max-paths {count} allows them; fewer models, strategies, grid values or a lower --depth make less",
    )


def _files(request: SweepRequest) -> list[_Source]:
    sources = []
    for given in request.flows:
        path = Path(given)
        found = sorted(path.glob("*.flow")) if path.is_dir() else [path]
        if not found:
            raise UsageError(f"--flows: no .flow files in '{given}'")
        for file in found:
            text = read_flow(file)
            params = tuple(Loader(text, str(file), file.parent).load().params)
            sources.append(_Source(text, str(file), file.parent, file.stem, params))
    return sources


def _points(request: SweepRequest, sources: Sequence[_Source]) -> Iterator[dict[str, str]]:
    """Yield every combination of the grid's values."""
    grid = {_SHORT.get(key, key): values for key, values in request.grid.items()}
    known = {*_OPTIONS, *RENAMED, "weights", *(name for source in sources for name in source.params or ())}
    for key in (*grid, *request.params):
        if key not in known:
            for source in sources:
                check(source.text, file=source.file, zoo=request.zoo, base=source.base)  # a broken file comes first
            hint = did_you_mean(key, known) or f"options: {', '.join(('weights', *_OPTIONS))}; or a param of a flow"
            raise UsageError(f"{'--grid' if key in grid else '--set'} {key}: no such option or param", help=hint)
        if key in grid and key in request.params:
            raise UsageError(f"'{key}' stands both in --set and in --grid", help="leave it out of one")
    for value in grid.get("weights", ()):
        parse_weights(value)
    for values in product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def _about_grid(error: UsageError, point: Mapping[str, str]) -> UsageError:
    """Return an error about `--set` as one about the option that gave the value."""
    for key in point:
        if error.message.startswith(f"--set {key}="):
            name = next((long for long, short in _SHORT.items() if short == key), key)
            return UsageError(f"--grid {name}{error.message.removeprefix(f'--set {key}')}", help=error.help)
    return error


def _wiring(source: _Source, point: Mapping[str, str], request: SweepRequest) -> Wiring:
    usable = {*_OPTIONS, *RENAMED, *(source.params or ())}
    settings = {**request.params, **point}
    text, shown = source.text, dict(point)
    if (weights := settings.get("weights")) is not None:
        if source.params is not None:
            raise UsageError("--grid weights: a flow file has its own weights", help="write them there: (A:2 | B:1)")
        text = weighted(text, weights)
        if text == source.text:
            shown.pop("weights", None)
    overrides = {key: value for key, value in settings.items() if key in usable}
    try:
        flow = check(text, file=source.file, zoo=request.zoo, overrides=overrides, base=source.base)
    except UsageError as error:
        raise _about_grid(error, point) from error
    known = strategy_of(flow)
    line = known.flow if known else written(flow.root)
    if "|" not in line:
        shown.pop("fuse", None)
    suffix = ", ".join(f"{key}={value}" for key, value in shown.items() if key in usable or key == "weights")
    name = f"{source.name} [{suffix}]" if suffix else source.name
    models = known.models if known else tuple(dict.fromkeys(node.model.name for node in nodes(flow.root)))
    used = {key: value for key, value in settings.items() if key in overrides or key in shown}
    return Wiring("", known.strategy if known else None, models, line, name, used, replace(flow, name=name))
