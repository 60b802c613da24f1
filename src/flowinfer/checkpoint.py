"""What a model folder holds, from its file names, config and the headers of its weight files; nothing is loaded.

Folders come from anywhere. What is not as it should be is said here, before a library opens it that would wait for a
pipe, follow a path out of the folder, or make room for a network of a billion layers.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from flowinfer.errors import LoadError, UnreadableFile
from flowinfer.files import read_text
from flowinfer.packing import packing_of

INDEX = "model.safetensors.index.json"
_READ = (".json", ".jinja", ".model", ".safetensors", ".txt", ".tiktoken")
"""What libraries open of a folder."""
_TOKENIZERS = ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken")
_MOST_HEADER_BYTES = 100_000_000
_LAYERS = re.compile(r"(.*_)?layers?")
_EXPERTS = re.compile(r"(.*_)?experts")
_FEW = 1000
"""Layers or experts that no file has to hold: some configs name more than there are."""
_SLACK = 50_000_000
"""Numbers of a network that no file has to hold, such as tables of positions."""
_DOWNLOAD = "download it again"


@dataclass(frozen=True)
class Held:
    """What weight files hold."""

    files: tuple[Path, ...]
    shapes: Mapping[str, tuple[int, ...]]
    """The shape of every tensor."""

    @property
    def num_numbers(self) -> int:
        """Numbers in all tensors; of packed ones, each may stand for several weights."""
        return sum(map(math.prod, self.shapes.values()))

    @property
    def num_bytes(self) -> int:
        """Size of the files."""
        return sum(path.stat().st_size for path in self.files)


def read_folder(folder: Path) -> Held:
    """Return what the weight files of a folder hold.

    Raises:
        LoadError: a file of the folder is damaged, missing or no file at all, its config is beyond what it holds,
            or its weights are packed as flowinfer does not read them.
    """
    _refuse_special_files(folder)
    config = read_config(folder)
    held = Held((files := weight_files(folder)), {name: shape for file in files for name, shape in _shapes(file)})
    if files and config is not None:
        _refuse_absurd(config, held)
        packing_of(config, held.shapes)
    return held


def read_config(folder: Path) -> Mapping[str, Any] | None:  # whose values may be of any JSON type
    """Return a folder's parsed config.json, None where it has none.

    Raises:
        LoadError: it is damaged.
    """
    return _json(folder / "config.json") if (folder / "config.json").exists() else None


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return a folder's weight files: those of its index, or all.

    Raises:
        LoadError: the index is damaged, names what lies outside the folder, or what is not there.
    """
    index = folder / INDEX
    if not index.exists() or (folder / "model.safetensors").exists():
        return tuple(sorted(folder.glob("*.safetensors")))
    named = _json(index).get("weight_map")
    shards = sorted(set(map(str, named.values()))) if isinstance(named, dict) else []
    if not shards:
        raise LoadError(f"{index} names no weight files", help=_DOWNLOAD)
    for shard in shards:
        if {PurePosixPath(shard).name, PureWindowsPath(shard).name} != {shard}:
            raise LoadError(f"{index} names '{shard}', which lies outside the folder", help=_DOWNLOAD)
        if not (folder / shard).is_file():
            raise LoadError(f"{folder / shard} is missing; {INDEX} names it", help="the download is incomplete")
    return tuple(folder / shard for shard in shards)


def refuse_incomplete(folder: Path) -> None:
    """Refuse a folder that has no weights, or no tokenizer.

    Raises:
        LoadError: with the cure.
    """
    if not any(folder.glob("*.safetensors")):
        cure = "convert the weights with save_pretrained(safe_serialization=True)"
        raise LoadError(f"no .safetensors file in {folder}", help=cure)
    if not any(any(folder.glob(pattern)) for pattern in _TOKENIZERS):
        cure = "save the model's tokenizer beside its weights (tokenizer.save_pretrained)"
        raise LoadError(f"no tokenizer in {folder}", help=cure)


def refuse_larger(num_parameters: int, held: Held, config: Mapping[str, Any]) -> None:
    """Refuse a network that is much larger than the weight files that there are for it: room is made for it first.

    Args:
        num_parameters: of the network that the config describes.
        held: what the weight files hold; nothing = they are not there yet.
        config: says whether weights are packed, up to 16 in one number.
    Raises:
        LoadError: with both figures.
    """
    most = held.num_numbers * (16.0 if "quantization_config" in config else 1.5) + _SLACK
    if held.files and num_parameters > most:
        raise LoadError(
            f"config.json describes a network of {num_parameters / 1e6:,.1f} M parameters, "
            f"the weight files hold {held.num_numbers / 1e6:,.1f} M",
            help="config.json is damaged or another model's",
        )


def _refuse_special_files(folder: Path) -> None:
    """Refuse pipes, devices, folders and broken links under the names of files, which a library may wait for."""
    for pattern in ("*", "additional_chat_templates/*"):
        for path in sorted(folder.glob(pattern)):
            if path.suffix in _READ and not path.is_file():
                kind = "a folder" if path.is_dir() else "no regular file" if path.exists() else "a link to nothing"
                raise LoadError(f"{path} is {kind}", help=_DOWNLOAD)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_text(path))
    except UnreadableFile as error:
        raise LoadError(error.message, help=_DOWNLOAD) from error
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise LoadError(f"{path} is no JSON: {reason}", help=_DOWNLOAD) from error
    if not isinstance(found, dict):
        raise LoadError(f"{path} is no JSON object", help=_DOWNLOAD)
    return found


def _shapes(path: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and shapes from the header of a weight file."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size - 8, _MOST_HEADER_BYTES):
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if end > size - 8 - length:
            raise ValueError(f"it ends {end - (size - 8 - length):,} bytes too early")
        found = [(name, tuple(map(int, entry["shape"]))) for name, entry in header.items()]
        if any(min(shape, default=0) < 0 or math.prod(shape) > 8 * size for _, shape in found):
            raise ValueError("its header tells of more than it holds")
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror}", help="see who may read it") from error
    except (struct.error, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        told = str(error) if str(error).startswith(("it ", "its ")) else "its header cannot be read"
        raise LoadError(f"{path} is damaged: {told}", help=_DOWNLOAD) from error
    yield from found


def _refuse_absurd(config: Mapping[str, Any], held: Held) -> None:
    """Refuse counts of layers and experts that the weight files cannot hold: a network of them is built first."""
    widest = max((max(shape, default=0) for shape in held.shapes.values()), default=0)
    limits = ((_LAYERS, len(held.shapes)), (_EXPERTS, widest))
    left: list[tuple[str, Any]] = list(config.items())
    while left:
        name, value = left.pop()
        if isinstance(value, dict):
            left += [(f"{name}.{key}", part) for key, part in value.items()]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            last = name.rpartition(".")[2]
            limit = next((max(most, _FEW) for kind, most in limits if kind.fullmatch(last)), None)
            if limit is not None and not value <= limit:
                raise LoadError(
                    f"config.json says {name} = {value}, the weight files hold {len(held.shapes)} tensors",
                    help="config.json is damaged or another model's",
                )
