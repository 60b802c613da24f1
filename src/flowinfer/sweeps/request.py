"""What a sweep is asked for, as plain data that its folder keeps, so that it can go on without being told again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flowinfer.errors import DataError, UsageError
from flowinfer.language.options import did_you_mean
from flowinfer.paper.paths import STRATEGIES, Strategy


class SweepRequest(BaseModel):
    """Which flows, which questions, and how."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    models: tuple[str, ...] = ()
    """Names to wire in the paper's ways."""
    strategies: tuple[Strategy, ...] = STRATEGIES
    depth: tuple[int, ...] = ()
    """How many models a path wires; all of up to three if not given."""
    flows: tuple[str, ...] = ()
    """Flow files, or folders of them."""
    params: Mapping[str, str] = Field(default_factory=dict)
    """For all paths: values of params, or of options of `defaults`."""
    grid: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    """Every combination of these values, for every path."""
    datasets: tuple[str, ...] = ()
    data: Mapping[str, str] = Field(default_factory=dict)
    """Local files of data sets by name."""
    sample: int | None = None
    limit: int | None = None
    seed: int = 42
    answer_index: Literal[0, 1, "none"] | None = None
    zoo: str | None = None
    independent: bool = False
    """Every path alone, in batch 1, sharing nothing: the paper's protocol."""
    latency: int = 0
    """Questions that are timed alone, of each path and data set."""
    batch: int | Literal["auto"] = "auto"
    use_cache: bool = True
    """Take finished steps of earlier runs; without, the sweep shares its own steps only."""
    max_paths: int = 200


def strategies_named(names: Sequence[str]) -> tuple[Strategy, ...]:
    """Return strategies by their names, in any case.

    Raises:
        UsageError: one is unknown.
    """
    known = {strategy.lower(): strategy for strategy in STRATEGIES}
    for name in names:
        if name.lower() not in known:
            hint = did_you_mean(name, STRATEGIES) or f"known: {', '.join(STRATEGIES)}"
            raise UsageError(f"--strategies: unknown strategy '{name}'", help=hint)
    wanted = {known[name.lower()] for name in names}
    return tuple(strategy for strategy in STRATEGIES if strategy in wanted)


def make_request(**given: Any) -> SweepRequest:  # of the fields' types, if they are right
    """Return a request.

    Raises:
        UsageError: an option has no value of its kind.
    """
    try:
        return SweepRequest(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name, reason = first["loc"][0], first["msg"][:1].lower() + first["msg"][1:]
        raise UsageError(f"{name}={given.get(str(name))!r}: {reason}", help="`flowinfer sweep --help`") from error


def check_request(request: SweepRequest) -> None:
    """Refuse what cannot be swept whatever the models are.

    Raises:
        UsageError: says which option, and the cure.
    """
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
    if request.max_paths < 1:
        raise UsageError(f"--max-paths {request.max_paths}: expected at least 1")


def from_settings(settings: Mapping[str, Any], where: Path) -> SweepRequest:
    """Return the request that a sweep's folder keeps.

    Raises:
        DataError: it is damaged.
    """
    try:
        return SweepRequest.model_validate(settings)
    except ValidationError as error:
        raise DataError(f"{where}: damaged settings", help="start a new sweep") from error
