"""Zoos: which short name means which model.

A zoo is a TOML file of the user's, or a registered one. Which zoo serves a flow is decided, in this order, by
`--zoo`, `FLOWINFER_ZOO`, the file's `defaults { zoo=... }`, the zoo `paper` where a CUDA device and its weights are
there, and last `lab`, the small trained models that ship with the package.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError
from rapidfuzz import process

from flowinfer.checkpoint import read_folder, refuse_incomplete
from flowinfer.errors import DataError, LoadError, UsageError
from flowinfer.files import MOST_FLOW_BYTES, read_text
from flowinfer.output.secrets import MASK, is_secret_name, shown
from flowinfer.registry import backends, load, zoos
from flowinfer.spec import ELSEWHERE, QUANTIZATIONS, Decoding, ModelSpec
from flowinfer.stores.gguf import SUFFIX, read_gguf
from flowinfer.stores.ollama import OLLAMA
from flowinfer.stores.refs import HUB, is_stored, locate, refuse_missing_template
from flowinfer.stores.stored import NotHere

_LAB_NOTE = (
    "lab zoo: three models of about 4 M parameters that know only the lab's own kinds of items; for real models"
    " --zoo paper or --zoo FILE.toml (docs/language.md, Zoos)"
)


_OWN_HEADERS = ("host", "content-length", "content-type", "connection", "transfer-encoding", "accept-encoding")
_OWN_FIELDS = (
    *("model", "messages", "stream", "stream_options", "n", "max_tokens", "max_completion_tokens"),
    *("temperature", "top_p", "seed", "stop"),
)
"""What a request to an endpoint says by itself."""


@dataclass(frozen=True)
class Zoo:
    """Models by short name, and why this zoo was chosen."""

    name: str
    """Registered name, or the path of its file."""
    models: Mapping[str, ModelSpec]
    why: str = ""
    note: str | None = None
    """What a user must know before believing its answers."""


def select_zoo(
    *,
    explicit: str | None = None,
    declared: str | None = None,
    environment: Mapping[str, str] | None = None,
    base: Path | None = None,
) -> Zoo:
    """Choose the zoo of a flow.

    Args:
        explicit: what `--zoo` said: a registered name or the path of a TOML file.
        declared: what the flow's defaults say; a path is relative to `base`.
        environment: the process environment, os.environ by default.
        base: folder of the flow file.
    """
    environment = os.environ if environment is None else environment
    if explicit:
        return load_zoo(explicit, why="--zoo")
    if named := environment.get("FLOWINFER_ZOO"):
        return load_zoo(named, why="FLOWINFER_ZOO")
    if declared:
        return load_zoo(declared, why="the flow's defaults", base=base)
    paper = load_zoo("paper", why="a CUDA device is there and its weights are in the hub cache")
    if _can_run_here(paper, environment):
        return paper
    return load_zoo("lab", why="the default")


def load_zoo(name: str, *, why: str = "", base: Path | None = None) -> Zoo:
    """Load a zoo by registered name or by path of its TOML file.

    Raises:
        UsageError: no such name or file.
        DataError: the file is malformed.
    """
    if name in zoos():
        target = load(zoos()[name])
        zoo = target() if callable(target) else read_zoo(Path(str(target)), name=name)
        return Zoo(name, zoo.models, why, zoo.note)
    path = (base or Path()) / name
    if os.path.isdir(path) and os.path.isfile(path / "zoo.toml"):
        path = path / "zoo.toml"
    if os.path.isfile(path):  # unlike Path.is_file, it is False for names too long
        return Zoo(name, read_zoo(path).models, why)
    near = None if path.suffix else process.extractOne(name, list(zoos()), score_cutoff=60)
    hint = f"did you mean '{near[0]}'?" if near else f"known zoos: {', '.join(zoos())}; or give a TOML file"
    raise UsageError(f"unknown zoo '{name}': no registered zoo and no file of that name", help=hint)


def read_zoo(path: Path, *, name: str | None = None) -> Zoo:
    """Read a zoo file: tables [models.NAME] whose keys are the options of a `model` declaration.

    Raises:
        DataError: where, what and the cure.
    """
    try:
        document = tomllib.loads(read_text(path, most_bytes=MOST_FLOW_BYTES))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise DataError(f"{path}: not a valid TOML file: {reason}") from error
    tables = document.pop("models", None)
    if document:
        raise DataError(
            f"{path}: unexpected key '{next(iter(document))}'", help="a zoo holds tables [models.NAME] only"
        )
    if not isinstance(tables, dict) or not tables:
        raise DataError(f"{path}: no models", help='write [models.NAME] and ref = "hub id or folder"')
    return Zoo(name or str(path), {key: _model(path, key, table) for key, table in tables.items()})


def resolve_ref(ref: str, base: Path) -> str:
    """Make a reference to a local folder or file absolute; a hub id, and a name of a store, stay as they are."""
    if is_stored(ref):
        return ref
    try:
        local = Path(ref).expanduser()
    except RuntimeError:  # "~nobody"
        return ref
    local = local if local.is_absolute() else base / local
    is_path = ref.startswith((".", "/", "~")) or ref.endswith(SUFFIX) or os.path.isdir(local)
    return os.path.realpath(local) if is_path else ref


def is_missing(spec: ModelSpec) -> bool:
    """Return whether a local model's reference is a path that is not there, or can be neither path nor hub id.

    What is missing of a GGUF file, `damage` tells.
    """
    is_there = os.path.isdir if spec.backend == "hf" else os.path.exists
    if backends()[spec.backend].is_elsewhere or spec.backend == "gguf" or is_there(spec.ref):
        return False
    return os.path.isabs(spec.ref) or spec.ref.count("/") > 1


def damage(spec: ModelSpec) -> LoadError | None:
    """Return what is wrong with a local model's files: names, config and headers are read, nothing is loaded.

    None where nothing is, or where none of them is here and the hub may have them.
    """
    from flowinfer.machine import hub_folder

    try:
        if spec.backend == "gguf":
            stored = locate(spec.ref, spec.revision)
            refuse_missing_template(stored, read_gguf(stored.path), chat=spec.chat, system=spec.system)
        if spec.backend != "hf":
            return None
        folder = Path(spec.ref) if os.path.isdir(spec.ref) else hub_folder(spec.ref, revision=spec.revision)
        if folder is not None:
            read_folder(folder)
            refuse_incomplete(folder)
    except LoadError as error:
        may_come = isinstance(error, NotHere) and spec.ref.startswith(HUB)
        return None if may_come else error
    return None


def _model(path: Path, key: str, table: object) -> ModelSpec:
    if not isinstance(table, dict):
        raise DataError(f"{path}: [models.{key}] must be a table", help=f'[models.{key}]\nref = "..."')
    if "name" in table:
        raise DataError(f"{path}: [models.{key}] has a key 'name'", help="the table's title is the name")
    try:
        spec = ModelSpec(name=key, **table)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        known = [field for field in ModelSpec.model_fields if field != "name"]
        near = process.extractOne(where, known, score_cutoff=60) if first["type"] == "extra_forbidden" else None
        message = first["msg"].removeprefix("Value error, ")
        message = "unknown key" if first["type"] == "extra_forbidden" else message[:1].lower() + message[1:]
        message = f"must be {message}" if where == "device" and "ctx" in first else message
        hint = f"did you mean '{near[0]}'?" if near else f"keys: {', '.join(known)}"
        raise DataError(f"{path}: [models.{key}] '{where}': {message}", help=hint) from error
    spec = spec.model_copy(update={"ref": resolve_ref(spec.ref, path.parent)})
    for problem in unfit(spec):
        raise DataError(f"{path}: [models.{key}] {problem.message}", help=problem.help)
    return spec


@dataclass(frozen=True)
class Unfit:
    """Why a model's options do not go together."""

    code: str
    option: str
    """The option to look at."""
    message: str
    help: str


def unfit(spec: ModelSpec) -> list[Unfit]:
    """Return what of a model's options its backend cannot serve, or would leave unused."""
    if spec.backend not in backends():
        return [Unfit("E0207", "backend", f"unknown backend '{spec.backend}'", f"one of: {', '.join(backends())}")]
    return [*_unserved(spec), *_unheeded(spec)]


def _unserved(spec: ModelSpec) -> Iterator[Unfit]:
    """Yield what this backend refuses, or what another option of the model makes useless."""
    if spec.backend == "openai" and not spec.base_url:
        hint = 'base_url="http://localhost:8000/v1"'
        yield Unfit("E0207", "backend", "backend 'openai' needs a base_url", hint)
    if spec.backend == "openai" and spec.base_url and not re.match(r"https?://[^/?#\s]", spec.base_url, re.I):
        message = f"base_url '{spec.base_url}' is no address: it begins with neither http:// nor https://"
        yield Unfit("E0207", "base_url", message, 'base_url="http://localhost:8000/v1"')
    if spec.backend == "remote" and not re.fullmatch(ELSEWHERE, spec.base_url or ""):
        place = "base_url" if spec.base_url else "backend"
        yield Unfit("E0207", place, "backend 'remote' needs the HOST:PORT of a head as base_url", 'device="gpu2:7070"')
    if spec.api_key_env is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", spec.api_key_env):
        hint = 'export MY_KEY=... and api_key_env="MY_KEY"; a key itself never stands in a flow or zoo'
        yield Unfit("E0207", "api_key_env", "'api_key_env' must be the name of an environment variable", hint)
    elif spec.api_key_env is not None and f"//{MASK}@" in (spec.base_url or ""):
        message = "'api_key_env' names a key, and base_url holds a user too: an endpoint takes one of them"
        yield Unfit("E0207", "api_key_env", message, "leave one out")
    backend = backends()[spec.backend]
    if not isinstance(spec.device, str) and not backend.splits and backend.heeds("device"):
        hint = 'name one device: device="cuda:0"'
        yield Unfit("E0207", "device", f"backend '{spec.backend}' keeps a model on one device", hint)
    yield from _misused_headers(spec.headers)
    yield from _misused_body(spec.extra_body)
    yield from _misused_names(spec)
    if spec.system is not None and spec.chat == "off" and backend.heeds("chat"):
        hint = "leave out chat=off, or write the message into the prompt"
        yield Unfit("E0207", "system", "option 'system' needs the chat template that 'chat=off' switches off", hint)
    if spec.backend != "hf":
        return
    if spec.quantization and not isinstance(spec.device, str):
        hint = f"name one device, or leave the quantization '{spec.quantization}' out"
        yield Unfit("E0207", "device", "a model that is quantized while it loads stays on one device", hint)
    if spec.quantization not in (None, *QUANTIZATIONS):
        hint = f"one of: {', '.join(QUANTIZATIONS)}; a checkpoint that is stored quantized needs no option"
        yield Unfit("E0207", "quantization", f"unknown quantization '{spec.quantization}'", hint)
    elif spec.quantization and spec.device == "cpu":
        hint = "declare a CUDA device, or leave the quantization out"
        yield Unfit("E0207", "quantization", f"quantization '{spec.quantization}' needs a GPU, not device=cpu", hint)


def _misused_names(spec: ModelSpec) -> Iterator[Unfit]:
    """Yield what a local model's reference does not go with."""
    is_stored_file = is_stored(spec.ref) or spec.ref.endswith(SUFFIX)
    if spec.backend == "hf" and is_stored_file:
        message = f"'{shown(spec.ref)}' is a GGUF file, which backend 'hf' does not read"
        yield Unfit("E0207", "ref", message, "write backend=gguf")
    is_local = spec.backend in ("hf", "gguf") and (os.path.exists(spec.ref) or spec.ref.startswith(OLLAMA))
    if spec.revision and is_local:
        hint = "leave it out, or name the hub id"
        yield Unfit("E0207", "revision", f"a local folder has no revision '{spec.revision}'", hint)


def _unheeded(spec: ModelSpec) -> Iterator[Unfit]:
    """Yield the options that ask for something of which the backend takes no notice."""
    backend = backends()[spec.backend]
    for option in sorted(spec.model_fields_set):
        if backend.heeds(option) or getattr(spec, option) == _default(option):
            continue
        if option == "base_url" and re.fullmatch(ELSEWHERE, spec.base_url or ""):
            message = f"'{spec.base_url}' is a head elsewhere, and backend '{spec.backend}' loads a model here"
            yield Unfit("E0207", "device", message, "leave the backend out: it is the head's to know")
            continue
        owners = [name for name, other in backends().items() if other.heeds(option)]
        cure = f", or write backend={' or '.join(owners)}" if owners else ""
        message = f"option '{option}' does nothing: backend '{spec.backend}' takes no notice of it"
        yield Unfit("E0208", option, message, f"leave it out{cure}")


def _default(option: str) -> object:
    return ModelSpec.model_fields[option].get_default(call_default_factory=True)


def _misused_headers(headers: Mapping[str, str]) -> Iterator[Unfit]:
    for name, value in headers.items():
        if not re.fullmatch(r"[\w!#$%&'*+.^`|~-]+", name, re.ASCII) or not re.fullmatch(r"[ -~]*", value):
            message = f"option 'headers' has no header of HTTP: '{name[:40]}'"
            yield Unfit("E0207", "headers", message, "names and values of printable ASCII characters")
        elif name.lower() in _OWN_HEADERS:
            yield Unfit(
                "E0207", "headers", f"option 'headers' cannot have '{name}', which every request has", "leave it out"
            )
        elif "$" not in value and is_secret_name(name):
            hint = f'name the variable of the environment that holds it: headers = {{ "{name}" = "$NAME" }}'
            yield Unfit("E0207", "headers", f"option 'headers' would hold a secret, '{name}'", hint)
        elif shown(value) != value:
            hint = "name the variable of the environment that holds it: $NAME"
            yield Unfit("E0207", "headers", f"option 'headers' would hold a secret in '{name}'", hint)


def _misused_body(body: Mapping[str, object]) -> Iterator[Unfit]:
    own = [key for key in body if key in _OWN_FIELDS]
    if own:
        hint = "it is an option of the stage or of the model" if own[0] in Decoding.model_fields else "leave it out"
        message = f"option 'extra_body' cannot have '{own[0]}', which every request has"
        yield Unfit("E0207", "extra_body", message, hint)
    try:
        json.dumps(body, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        hint = "texts, numbers, true and false, lists and tables of these"
        yield Unfit("E0207", "extra_body", "option 'extra_body' holds what JSON has no form for", hint)
        return
    if (name := _secret_in(body)) is not None:
        hint = "api_key_env, or headers with $NAME, name the variable of the environment that holds it"
        yield Unfit("E0207", "extra_body", f"option 'extra_body' would hold a secret, '{name}'", hint)


def _secret_in(data: object, name: str = "") -> str | None:
    """Return the name of something in plain data that is, or looks like, a secret."""
    match data:
        case str():
            return name if is_secret_name(name) or shown(data) != data else None
        case Mapping():
            return next(filter(None, (_secret_in(value, str(key)) for key, value in data.items())), None)
        case list() | tuple():
            return next(filter(None, (_secret_in(value, name) for value in data)), None)
    return None


def paper_zoo() -> Zoo:
    """Return the paper's table 1: Qwen, Ds and Yi from the hub."""
    return read_zoo(Path(__file__).parent / "zoos" / "paper.toml", name="paper")


def lab_zoo() -> Zoo:
    """Return the three small models that ship with the package."""
    return replace(read_zoo(Path(__file__).parent / "zoos" / "lab" / "zoo.toml", name="lab"), note=_LAB_NOTE)


def _can_run_here(zoo: Zoo, environment: Mapping[str, str]) -> bool:
    from flowinfer.machine import cuda_device_count, hub_folder

    folders = [hub_folder(spec.ref, environment, spec.revision) for spec in zoo.models.values()]
    return all(folders) and cuda_device_count() > 0
