"""What a sweep is asked for: one model of its options, which its folder keeps, so that it can go on without them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from flowinfer.errors import UsageError
from flowinfer.language.examples import located
from flowinfer.language.nearness import near_or_all
from flowinfer.language.options import option_text
from flowinfer.paper.paths import STRATEGIES, Strategy


def _names(given: object) -> object:
    """Split `Qwen,Yi`."""
    return tuple(filter(None, map(str.strip, given.split(",")))) if isinstance(given, str) else given


def _strategies(given: object) -> object:
    """Return strategies by their names, in any case, each once and in the paper's order."""
    names = _names(given)
    if not isinstance(names, Iterable):
        return names
    known = {strategy.lower(): strategy for strategy in STRATEGIES}
    wanted = [str(name).lower() for name in names]
    for name, lowered in zip(names, wanted, strict=True):
        if lowered not in known:
            hint = near_or_all(str(name), STRATEGIES, "known")
            raise UsageError(f"--strategies: unknown strategy '{name}'", help=hint)
    return tuple(strategy for strategy in STRATEGIES if strategy.lower() in wanted)


def _texts(given: object) -> object:
    return {name: option_text(value) for name, value in given.items()} if isinstance(given, Mapping) else given


def _text_lists(given: object) -> object:
    return (
        {name: tuple(map(option_text, values)) for name, values in given.items()}
        if isinstance(given, Mapping)
        else given
    )


def _flow_files(given: object) -> object:
    """Find flow files, folders of them and packaged pipelines."""
    if not isinstance(given, list | tuple):
        return given
    found = [located(str(name)).expanduser() for name in given]
    for name, path in zip(given, found, strict=True):
        if not os.path.exists(path):
            raise UsageError(f"--flows: no such file or folder: '{name}'", help="give .flow files, or a folder of them")
    return tuple(str(path.resolve()) for path in found)


def _whole_paths(given: object) -> object:
    """Name files from anywhere."""
    return (
        {name: str(Path(str(path)).resolve()) for name, path in given.items()} if isinstance(given, Mapping) else given
    )


class SweepRequest(BaseModel):
    """Which flows, which questions, and how: as the command line, a Python call or a sweep's folder says it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    models: Annotated[tuple[str, ...], BeforeValidator(_names)] = ()
    """Names to wire in the paper's ways."""
    strategies: Annotated[tuple[Strategy, ...], BeforeValidator(_strategies)] = STRATEGIES
    depth: Annotated[tuple[int, ...], BeforeValidator(lambda given: (given,) if isinstance(given, int) else given)] = ()
    """How many models a path wires; all of up to three if not given."""
    flows: Annotated[tuple[str, ...], BeforeValidator(_flow_files)] = ()
    """Flow files, or folders of them."""
    params: Annotated[Mapping[str, str], BeforeValidator(_texts)] = Field(default_factory=dict)
    """For all paths: values of params, or of options of `defaults`."""
    grid: Annotated[Mapping[str, tuple[str, ...]], BeforeValidator(_text_lists)] = Field(default_factory=dict)
    """Every combination of these values, for every path."""
    datasets: Annotated[tuple[str, ...], BeforeValidator(_names)] = ()
    data: Annotated[Mapping[str, str], BeforeValidator(_whole_paths)] = Field(default_factory=dict)
    """Local files of data sets by name."""
    sample: int | None = None
    limit: int | None = None
    seed: int = 42
    answer_index: Literal[0, 1, "none"] | None = None
    few_shot: Annotated[int, Field(ge=0)] = 0
    """Worked examples above each question."""
    zoo: str | None = None
    independent: bool = False
    """Every path alone, in batch 1, sharing nothing: the paper's protocol."""
    latency: int = 0
    """Questions that are timed alone, of each path and data set."""
    batch: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    replicas: Annotated[int, Field(ge=1)] | Literal["auto"] = 1
    """Copies of all plans, each in a process of its own where there are several."""
    use_cache: bool = True
    """Take finished steps of earlier runs; without, the sweep shares its own steps only."""
    max_paths: int = 200


def make_request(**given: Any) -> SweepRequest:  # of the fields' types, if they are right
    """Return a request that can be swept, as far as that can be said without its models.

    Raises:
        UsageError: an option has no value of its kind; says which, and the cure.
    """
    request = _read(given)
    _check(request)
    return request


def going_on(before: SweepRequest, name: str, given: Mapping[str, Any]) -> SweepRequest:
    """Return what a sweep of that name was started with; only how it is timed and run may be given anew.

    Raises:
        UsageError: another option differs.
    """
    request = _read({**before.model_dump(), **given})
    for field in given.keys() - {"latency", "batch", "replicas", "max_paths"}:
        if getattr(before, field) != getattr(request, field):
            option = {"params": "--set", "use_cache": "--no-cache"}.get(field, f"--{field.replace('_', '-')}")
            raise UsageError(
                f"{option} differs from what sweep '{name}' was started with",
                help="leave it out: --resume alone goes on as before; or start a new sweep without --resume",
            )
    _check(request)
    return request


def _read(given: Mapping[str, Any]) -> SweepRequest:
    try:
        return SweepRequest.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        name, reason = first["loc"][0], first["msg"][:1].lower() + first["msg"][1:]
        raise UsageError(f"{name}={given.get(str(name))!r}: {reason}", help="`flowinfer sweep --help`") from error


def _check(request: SweepRequest) -> None:
    if not request.models and not request.flows:
        raise UsageError("nothing to sweep", help="--models Qwen,Yi,Ds wires models, --flows FOLDER takes flow files")
    if not request.datasets:
        raise UsageError("no data sets", help="--datasets gsm8k,ceval,mathematics, or paths of .jsonl files")
    for option, names in (("--models", request.models), ("--datasets", request.datasets)):
        repeated = next((name for name in names if names.count(name) > 1), None)
        if repeated is not None:
            raise UsageError(f"{option}: '{repeated}' is named twice", help="name each once")
    if request.models and not request.strategies:
        raise UsageError("--strategies is empty", help=f"known: {', '.join(STRATEGIES)}")
    for name, values in request.grid.items():
        if len(set(values)) < len(values):
            raise UsageError(f"--grid {name}={','.join(values)}: a value stands twice", help="name each once")
    if request.depth and not request.models:
        raise UsageError("--depth says how many models a path wires", help="give --models as well")
    if request.latency < 0:
        raise UsageError(f"--latency {request.latency}: expected 0 or more questions")
    if request.latency and request.independent:
        raise UsageError("--independent times every question already", help="leave out --latency")
    if request.independent and request.batch not in ("auto", 1):
        raise UsageError("--independent runs question by question", help="leave out --batch")
    if request.independent and request.replicas != 1:
        raise UsageError("--independent times every question with nothing beside it", help="leave out --replicas")
    if request.max_paths < 1:
        raise UsageError(f"--max-paths {request.max_paths}: expected at least 1")
