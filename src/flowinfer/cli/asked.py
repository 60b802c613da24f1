"""What a run was asked for, kept in its folder so that `exec --resume RUN` needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from flowinfer.errors import UsageError

if TYPE_CHECKING:
    from flowinfer.spec import Flow

_ONE_OF = ("limit", "sample", "ids")


class Asked(BaseModel):
    """The options of `exec` over a data set; files by their whole paths."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    """The flow's file, or what messages call it; its text is in pipeline.flow."""
    base: str
    """Folder that the flow's imports are relative to."""
    zoo: str
    sets: Mapping[str, str]
    dataset: str
    data: Mapping[str, str]
    limit: int | None
    sample: int | None
    seed: int
    ids: tuple[str, ...] | None
    answer_index: Literal["0", "1", "none"] | None = None
    few_shot: int = 0
    batch: int | Literal["auto"]
    replicas: int | Literal["auto"] = 1
    engine: Literal["auto", "packed", "reference"]
    use_cache: bool
    url: str | None = None
    """Of the server that answers."""
    model: str | None = None
    api_key_env: str | None = None


def zoo_of(flow: Flow, base: str) -> str:
    """Return what names a flow's zoo from anywhere."""
    from flowinfer.registry import zoos

    if flow.zoo in zoos():
        return flow.zoo
    named = Path(flow.zoo).expanduser()
    return str((Path(base) / named if flow.zoo_why == "the flow's defaults" else named).resolve())


def asked_of(path: Path) -> Asked:
    """Return what a run's folder says that it was asked for.

    Raises:
        UsageError: it says nothing, or not all.
    """
    from flowinfer.runs.store import info

    said = info(path).data
    if said.get("sweep"):
        raise UsageError(f"run '{path.name}' is part of a sweep", help=f"flowinfer sweep --resume {said['sweep']}")
    try:
        return Asked.model_validate(said.get("asked", {}))
    except ValidationError as error:
        missing = ", ".join(sorted({str(one["loc"][0]) for one in error.errors() if one["loc"]}))
        raise UsageError(
            f"run '{path.name}' does not say what it was asked for: {missing}",
            help="give the flow and all options that it was started with, beside --resume",
        ) from error


def chosen(given: Mapping[str, Any], before: Asked) -> dict[str, Any]:
    """Return options: those that are given, and the run's for the others."""
    found = {name: getattr(before, name) if value is None else value for name, value in given.items()}
    if any(given[name] is not None for name in _ONE_OF):  # they exclude each other
        found |= {name: given[name] for name in _ONE_OF}
    return found
