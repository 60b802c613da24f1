"""What can be plugged in: fusers, backends, tasks and zoos, built-in or from other packages.

Every entry is named as "module:object" and imported on use, so that looking names up costs nothing. Other packages
register through the entry points `flowinfer.fusers`, `.backends`, `.tasks` and `.zoos`; a fuser may carry its
parameters as an attribute `parameters`, a backend `text_only`, `options` and `splits` (see BackendInfo).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Literal

from flowinfer.errors import UsageError
from flowinfer.spec import COSTS, GGUF_OPTIONS, RENAMED, Decoding, ModelSpec

ParameterType = Literal["float", "int", "str", "model"]


@dataclass(frozen=True)
class Parameter:
    """One typed option of a fuser."""

    type: ParameterType
    """`model` is the name of a head of the group."""
    doc: str
    default: float | int | str | None = None
    """None = must be given."""
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    """What a text may be; () = any."""


@dataclass(frozen=True)
class FuserInfo:
    """How several next-token distributions become one."""

    name: str
    target: str
    doc: str
    parameters: Mapping[str, Parameter] = field(default_factory=dict)


@dataclass(frozen=True)
class BackendInfo:
    """What loads a model."""

    name: str
    target: str
    doc: str
    text_only: bool = False
    """Whether it gives texts but no next-token distributions."""
    options: frozenset[str] | None = None
    """Options of models and steps that it heeds; None: all that a backend of its kind is given."""
    splits: bool = False
    """Whether it can lay a model's layers over several GPUs."""
    elsewhere: bool = False
    """Whether its models lie in other processes, though they give distributions."""

    @property
    def is_elsewhere(self) -> bool:
        """Return whether its models take no memory here; an endpoint's do not."""
        return self.elsewhere or self.text_only

    def heeds(self, option: str) -> bool:
        """Return whether an option of a model or step does anything with it."""
        if option in _ALWAYS_HEEDED:
            return True
        if self.options is not None:
            return option in self.options
        return not self.text_only or option in TEXT_OPTIONS or option in ModelSpec.model_fields


@dataclass(frozen=True)
class TaskInfo:
    """A data set by name."""

    name: str
    target: str
    doc: str


@dataclass(frozen=True)
class ZooInfo:
    """A zoo by name: its target is a path of a TOML file or a function that returns one."""

    name: str
    target: str
    doc: str


TEXT_OPTIONS = frozenset({"max_tokens", "temperature", "top_p", "seed", "stop"})
"""What every text model is asked with; the other options of a step need next-token distributions."""

_ALWAYS_HEEDED = ("name", "ref", "backend", "think")
"""What names a model, and what the engine does itself."""

_ENDPOINT_OPTIONS = ("base_url", "api_key_env", "parallel", "headers", "extra_body", *COSTS)
_LOCAL_OPTIONS = frozenset([*Decoding.model_fields, *ModelSpec.model_fields]) - {*_ENDPOINT_OPTIONS, *GGUF_OPTIONS}
_GGUF_OPTIONS = frozenset([*Decoding.model_fields, "revision", "device", "chat", "system", *GGUF_OPTIONS])

Info = FuserInfo | BackendInfo | TaskInfo | ZooInfo

_FUSERS = "flowinfer.fusion.fusers"

BUILT_IN_FUSERS = (
    FuserInfo("mean", f"{_FUSERS}:Mean", "weighted mean of the distributions (the paper's equation 7)"),
    FuserInfo("weighted", f"{_FUSERS}:Mean", "the mean, with the weights written in the group"),
    FuserInfo("geometric", f"{_FUSERS}:Geometric", "weighted geometric mean, renormalized"),
    FuserInfo(
        "power",
        f"{_FUSERS}:Power",
        "power mean (sum w q^a)^(1/a): a=1 mean, a near 0 geometric, large a maximum",
        {"a": Parameter("float", "exponent, not 0", 0.5, -64.0, 64.0)},
    ),
    FuserInfo(
        "unite",
        f"{_FUSERS}:Unite",
        "mean over the union of each head's top k candidates (UniTE)",
        {"k": Parameter("int", "candidates of each head", 10, 1)},
    ),
    FuserInfo(
        "gated",
        f"{_FUSERS}:Gated",
        "the primary head alone where its top probability exceeds tau, else the mean (GaC)",
        {
            "tau": Parameter("float", "threshold on the primary head's top probability", 0.5, 0.0, 2.0),
            "primary": Parameter("model", "the head that may decide alone; first listed if not given", ""),
        },
    ),
    FuserInfo(
        "drop",
        f"{_FUSERS}:Drop",
        "a head counts only where its favourite is among another head's top n (EVA)",
        {"n": Parameter("int", "candidates of the other heads", 20, 1)},
    ),
    FuserInfo(
        "entropy",
        f"{_FUSERS}:Entropy",
        "mean weighted at each step by each head's certainty, 1 / entropy of its top candidates",
        {"k": Parameter("int", "candidates that the entropy is taken over", 50, 2)},
    ),
    FuserInfo("vote", f"{_FUSERS}:Vote", "majority of the heads' favourites; the mean breaks ties"),
    FuserInfo(
        "sharpen",
        f"{_FUSERS}:Sharpen",
        "mean in which a short key inherits the mass of the candidates that start with it (SAFE)",
        {
            "k": Parameter("int", "candidates looked at", 10, 1),
            "floor": Parameter("float", "least probability of a key that inherits", 0.1, 0.0, 1.0),
        },
    ),
    FuserInfo(
        "safe",
        f"{_FUSERS}:Safe",
        "one head writes ahead, the others verify; the mean only where they disagree, between tokens of all (SAFE)",
        {
            "tau": Parameter(
                "float", "probability below which a verifying head disagrees; 0 never, above 1 always", 0.5, 0.0, 2.0
            ),
            "writer": Parameter(
                "model", "the head that writes; that of most weight if not given, of equals the first by name", ""
            ),
            "ahead": Parameter(
                "int", "most tokens written before the others verify them; no matter to the text", 16, 1, 16
            ),
        },
    ),
    FuserInfo(
        "byte",
        f"{_FUSERS}:Bytewise",
        "mean or product over bytes: each head says how likely each next byte is, in whatever tokens it writes it",
        {
            "mix": Parameter(
                "str", "how the heads' bytes become one: mean or product", "mean", choices=("mean", "product")
            ),
            "covers": Parameter(
                "int", "ways to write the text that are followed in each head; 0 all, 1 the likeliest", 0, 0
            ),
        },
    ),
)

BUILT_IN_BACKENDS = (
    BackendInfo(
        "hf",
        "flowinfer.backends.hf:load",
        "any decoder-only transformers model, hub id or folder",
        options=_LOCAL_OPTIONS,
        splits=True,
    ),
    BackendInfo(
        "gguf",
        "flowinfer.backends.gguf.load:load",
        "a GGUF file, computed by llama.cpp",
        options=_GGUF_OPTIONS,
    ),
    BackendInfo(
        "openai",
        "flowinfer.backends.openai:load",
        "any OpenAI-compatible endpoint: text only",
        text_only=True,
        options=TEXT_OPTIONS | {*_ENDPOINT_OPTIONS, "system"},
    ),
    BackendInfo(
        "remote",
        "flowinfer.remote.client:load",
        "a head in another process or on another host, started by `flowinfer head`",
        options=frozenset([*Decoding.model_fields, "base_url", "api_key_env"]),
        elsewhere=True,
    ),
)

_DATASETS = Path(__file__).parent / "tasks" / "datasets.toml"
"""Where the data sets are declared."""

BUILT_IN_ZOOS = (
    ZooInfo("lab", "flowinfer.zoo:lab_zoo", "three small trained models that ship with the package"),
    ZooInfo("paper", "flowinfer.zoo:paper_zoo", "the paper's three models from the hub, 7-9 B parameters"),
    ZooInfo("toy", "flowinfer.zoos.toy:zoo", "three random-weight models built on the spot: answers are noise"),
)


@cache
def fusers() -> Mapping[str, FuserInfo]:
    """Return all fusers by name."""
    return {info.name: info for info in BUILT_IN_FUSERS} | {
        point.name: FuserInfo(point.name, point.value, _origin(point), getattr(_import(point), "parameters", {}))
        for point in entry_points(group="flowinfer.fusers")
    }


@cache
def backends() -> Mapping[str, BackendInfo]:
    """Return all backends by name."""
    return {info.name: info for info in BUILT_IN_BACKENDS} | {
        point.name: _backend(point) for point in entry_points(group="flowinfer.backends")
    }


@cache
def tasks() -> Mapping[str, TaskInfo]:
    """Return all tasks by name."""
    declared = tomllib.loads(_DATASETS.read_text(encoding="utf-8"))
    known = (TaskInfo(name, f"flowinfer.tasks.declared:TASKS.{name}", one["doc"]) for name, one in declared.items())
    return {info.name: info for info in known} | {
        point.name: TaskInfo(point.name, point.value, _origin(point)) for point in entry_points(group="flowinfer.tasks")
    }


@cache
def zoos() -> Mapping[str, ZooInfo]:
    """Return all named zoos."""
    return {info.name: info for info in BUILT_IN_ZOOS} | {
        point.name: ZooInfo(point.name, point.value, _origin(point)) for point in entry_points(group="flowinfer.zoos")
    }


def load(info: Info) -> object:
    """Import what an entry names.

    Raises:
        UsageError: it cannot be imported, with the reason.
    """
    module, _, name = info.target.partition(":")
    try:
        target: object = import_module(module)
        for part in name.split("."):
            target = getattr(target, part)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"'{info.name}' cannot be loaded from '{info.target}': {error}") from error
    return target


def _backend(point: EntryPoint) -> BackendInfo:
    target = _import(point)
    named = getattr(target, "options", None)
    options = None if named is None else frozenset(RENAMED.get(option, option) for option in named)
    unknown = sorted((options or frozenset()) - {*Decoding.model_fields, *ModelSpec.model_fields})
    if unknown:
        raise UsageError(
            f"plug-in '{point.name}' of {_origin(point)} heeds an option that there is not: '{unknown[0]}'",
            help="update or uninstall that package",
        )
    is_text = bool(getattr(target, "text_only", False))
    splits = bool(getattr(target, "splits", False))
    return BackendInfo(point.name, point.value, _origin(point), is_text, options, splits)


def _import(point: EntryPoint) -> object:
    try:
        return point.load()
    except Exception as error:  # a plug-in may fail in any way; the user must learn whose it is
        raise UsageError(
            f"plug-in '{point.name}' of {_origin(point)} cannot be loaded: {error}",
            help="update or uninstall that package",
        ) from error


def _origin(point: EntryPoint) -> str:
    return f"package '{point.dist.name}'" if point.dist else "another package"
