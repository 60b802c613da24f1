"""What GGUF files hold, from their headers; weights stay where they are, and llama.cpp is not needed.

Files come from anywhere. Every length is compared with the file before it is believed, so that llama.cpp is given none
that is cut short. Layout: ggml's docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import math
import mmap
import os
import re
import stat
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from flowinfer.errors import LoadError
from flowinfer.stores.kinds import misfit

SUFFIX = ".gguf"
_PART = re.compile(r"(?P<stem>.*)-\d{5}-of-(?P<count>0\d{4})\.gguf", re.DOTALL)
_MOST_ITEMS = 1 << 25
"""Of one array, and tensors of one file: more than any vocabulary or network has."""
_LEAST_BYTES = 24
"""Of a header."""
_DOWNLOAD = "download it again"
_POINTER = b"version https://git-lfs"

_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
"""Kinds of metadata that are numbers, as struct reads them."""
_TEXT, _ARRAY = 8, 9

_STORED: Mapping[int, tuple[str, int, int]] = {
    **{0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2), 28: ("F64", 1, 8)},
    **{24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8)},
    **{2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34)},
    **{10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176)},
    **{14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74)},
    **{18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110)},
    **{22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 29: ("IQ1_M", 256, 56), 39: ("MXFP4", 32, 17)},
    **{
        34: ("TQ1_0", 256, 54),
        35: ("TQ2_0", 256, 66),
        9: ("Q8_1", 32, 40),
        40: ("NVFP4", 64, 36),
        41: ("Q1_0", 128, 18),
    },
}
"""Types of tensors: name, numbers of a block, bytes of a block. Of others llama.cpp knows, or says, what they are."""

_KEPT = ("F32", "F16", "BF16")
"""Types that llama.cpp computes with as they are stored, on every CPU."""

_MIXES = {
    **{0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S"},
    **{12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K"},
    **{19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL"},
    **{26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16"},
    **{36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE", 39: "NVFP4", 40: "Q1_0"},
}
"""How a file's tensors are quantized together, by `general.file_type`."""


@dataclass(frozen=True)
class Array:
    """A list among the metadata, such as all tokens; read when it is asked for."""

    path: Path
    begin: int
    """Where its first item is in the file."""
    kind: int
    count: int

    def values(self) -> list[int | float | bool | str]:
        """Return its items."""
        with _reading(self.path) as reader:
            reader.at = self.begin
            return [reader.scalar(self.kind) for _ in range(self.count)]


Value = int | float | bool | str | Array


@dataclass(frozen=True)
class Tensor:
    """One tensor in a file."""

    name: str
    type: str
    """As ggml calls it: F32, Q4_K, ..."""
    shape: tuple[int, ...]
    """As stored: what lies side by side comes first."""
    num_bytes: int
    """0 = of a type that is not known here."""


@dataclass(frozen=True)
class Gguf:
    """A model in one GGUF file, or in several that belong together."""

    parts: tuple[Path, ...]
    """First to last."""
    metadata: Mapping[str, Value]
    tensors: tuple[Tensor, ...]

    @cached_property
    def num_bytes(self) -> int:
        """Size of the files."""
        return sum(part.stat().st_size for part in self.parts)

    @cached_property
    def read_bytes(self) -> int:
        """Bytes that a forward of one token reads, about: of experts only those that are used."""
        used, experts = self.whole("expert_used_count") or 1, self.whole("expert_count") or 1
        sizes = (one.num_bytes * used // experts if "_exps." in one.name else one.num_bytes for one in self.tensors)
        return sum(sizes)

    @cached_property
    def shared_bytes(self) -> int:
        """Bytes that processes which map the file share; llama.cpp may rearrange other matrices, in copies of each."""
        kept = (one for one in self.tensors if one.type in _KEPT or one.name == "token_embd.weight")
        return sum(one.num_bytes for one in kept)

    @property
    def num_parameters(self) -> int:
        """Numbers in all tensors."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    @property
    def architecture(self) -> str:
        """What kind of network it is: llama, qwen2, ..."""
        return self.text("general.architecture") or "?"

    @property
    def quantization(self) -> str:
        """How its weights are stored: Q4_K_M, F16, ...; where the file does not say, what most bytes are."""
        stated = self.metadata.get("general.file_type")
        sizes = Counter[str]()
        for tensor in self.tensors:
            sizes[tensor.type] += tensor.num_bytes
        most = sizes.most_common(1)[0][0] if sizes else "?"
        return _MIXES.get(stated, most) if isinstance(stated, int) else most

    @property
    def is_float32(self) -> bool:
        """Whether all its weights are exact numbers of 32 bits."""
        return all(tensor.type == "F32" for tensor in self.tensors)

    @property
    def context_length(self) -> int | None:
        """Most tokens of a text that it was made for."""
        return self.whole("context_length")

    @property
    def chat_template(self) -> str | None:
        """Its chat template in Jinja, None where it has none."""
        return self.text("tokenizer.chat_template")

    def text(self, key: str) -> str | None:
        """Return a text of the metadata, None where it is none."""
        found = self.metadata.get(key)
        return found if isinstance(found, str) else None

    def whole(self, key: str) -> int | None:
        """Return a whole number of its architecture's metadata; of one for each layer, the largest; None = none."""
        found = self.metadata.get(f"{self.architecture}.{key}")
        values = found.values() if isinstance(found, Array) and 0 < found.count < 10_000 else [found]
        wholes = [value for value in values if isinstance(value, int) and not isinstance(value, bool) and value > 0]
        return max(wholes, default=None)


def read_gguf(path: Path) -> Gguf:
    """Return what a model's files hold.

    Args:
        path: of its file; where it lies in several, of any of them.
    Raises:
        LoadError: a file is damaged, cut short, missing, no GGUF file that llama.cpp reads, or of no language model;
            with the cure.
    """
    metadata, tensors = _header(path)
    if other := misfit(metadata):
        raise LoadError(f"{path} {other[0]}", help=other[1])
    count = metadata.get("split.count", 1)
    if not isinstance(count, int) or count <= 1:
        if not tensors:
            raise LoadError(f"{path} holds a vocabulary and no weights", help=_DOWNLOAD)
        return Gguf((path,), metadata, tensors)
    parts = _parts(path, count)
    headers = [_header(part) for part in parts]
    return Gguf(parts, headers[0][0], tuple(tensor for _, own in headers for tensor in own))


def part_names(name: str) -> list[str]:
    """Return the names of all files of a model by that of one of them; of one that is not split, its own."""
    if (match := _PART.fullmatch(name)) is None:
        return [name]
    count = int(match["count"])
    return [f"{match['stem']}-{number:05}-of-{count:05}{SUFFIX}" for number in range(1, count + 1)]


def _parts(path: Path, count: int) -> tuple[Path, ...]:
    names = part_names(path.name)
    if len(names) != count:
        raise LoadError(
            f"{path} is one of {count} files of a model, and its name does not say which",
            help=f"keep the names that they were made with: ...-00001-of-{count:05}{SUFFIX}",
        )
    parts = tuple(map(path.with_name, names))
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise LoadError(f"{parts[0]}: of its {count} files '{missing[0]}'{more} is missing", help="download them all")
    return parts


def _header(path: Path) -> tuple[Mapping[str, Value], tuple[Tensor, ...]]:
    try:
        found = os.stat(path)
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror or error}", help="see who may read it") from error
    return _header_of(path, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=64)
def _header_of(path: Path, changed: int, size: int) -> tuple[Mapping[str, Value], tuple[Tensor, ...]]:
    """Read a header once, however many ask: checking, planning and loading do, and vocabularies are long."""
    with _reading(path) as reader:
        num_tensors, num_keys = reader.begin()
        metadata: dict[str, Value] = {}
        for _ in range(num_keys):
            key = reader.text()
            if key in metadata:
                raise _Damaged(f"its metadata names '{key[:60]}' twice")
            metadata[key] = reader.value()
        entries = [reader.tensor() for _ in range(num_tensors)]
        _refuse_short(reader, metadata, entries)
        return metadata, tuple(tensor for tensor, _ in entries)


def _refuse_short(reader: _Reader, metadata: Mapping[str, Value], entries: list[tuple[Tensor, int]]) -> None:
    """Refuse a file that ends before its last tensor does."""
    step = metadata.get("general.alignment", 32)
    if not isinstance(step, int) or step < 1 or step & (step - 1):
        raise _Damaged("its tensors begin at multiples of no number")
    begin = -(-reader.at // step) * step
    end = max((begin + offset + tensor.num_bytes for tensor, offset in entries), default=0)
    if end > reader.size:
        raise _Damaged(f"it ends {end - reader.size:,} bytes too early")


class _Damaged(Exception):
    """A header says what cannot be; says what, in words that follow the file's name."""


class _Foreign(Exception):
    """A file is whole and not of this kind."""

    def __init__(self, told: str, cure: str) -> None:
        super().__init__(told)
        self.cure = cure


class _Reader:
    """A file's header, read from its beginning on."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self._data, self.size = path, data, len(data)
        self.at = 0

    def begin(self) -> tuple[int, int]:
        """Read magic and version; return the numbers of tensors and of metadata.

        Raises:
            _Damaged: it is no GGUF file.
            _Foreign: it is of a version that llama.cpp does not read, or stands for a file.
        """
        if self._data[: len(_POINTER)] == _POINTER:
            raise _Foreign("is a pointer of Git LFS, which stands for the file", "git lfs pull, in its folder")
        if self._data[:4] != b"GGUF":
            raise _Damaged("it does not begin as GGUF files do")
        self.at = 4
        version = self.number("<I")
        if version not in (2, 3):
            kind = "big-endian" if version & 0xFFFF == 0 else f"of version {version}"
            raise _Foreign(f"is {kind}; llama.cpp reads versions 2 and 3, little-endian", "convert the model anew")
        return self._count(self.number("<Q"), 24), self._count(self.number("<Q"), 13)

    def number(self, form: str) -> int:
        """Read a number that struct has a form for."""
        found: int = struct.unpack_from(form, self._data, self.at)[0]
        self.at += struct.calcsize(form)
        return found

    def text(self) -> str:
        """Read a text; bytes that are no UTF-8, which some vocabularies hold, become marks."""
        return self._data[self._skip_text() : self.at].decode("utf-8", "replace")

    def scalar(self, kind: int) -> int | float | bool | str:
        """Read a value that is no list."""
        if kind == _TEXT:
            return self.text()
        if kind not in _NUMBERS:
            raise _Damaged(f"its metadata holds a kind of value, {kind}, that there is not")
        return self.number(_NUMBERS[kind])

    def value(self) -> Value:
        """Read a value's kind and the value; of a list, where it is."""
        kind = self.number("<I")
        if kind != _ARRAY:
            return self.scalar(kind)
        inner, count = self.number("<I"), self.number("<Q")
        if inner != _TEXT and inner not in _NUMBERS:
            raise _Damaged(f"its metadata holds a list of a kind, {inner}, that there is not")
        width = 8 if inner == _TEXT else struct.calcsize(_NUMBERS[inner])
        found = Array(self.path, self.at, inner, self._count(count, width))
        if inner == _TEXT:
            for _ in range(count):
                self._skip_text()
        else:
            self.at += count * width
        return found

    def tensor(self) -> tuple[Tensor, int]:
        """Read what is said of a tensor, and where its bytes begin behind the header."""
        name, num_axes = self.text(), self.number("<I")
        if not 0 <= num_axes <= 4:
            raise _Damaged(f"its tensor '{name[:60]}' has {num_axes} axes")
        shape = tuple(self.number("<Q") for _ in range(num_axes))
        kind, offset = self.number("<I"), self.number("<Q")
        title, block, width = _STORED.get(kind, (f"type {kind}", 1, 0))
        count = math.prod(shape)
        if count > 8 * self.size or (shape and shape[0] % block):
            raise _Damaged(f"its tensor '{name[:60]}' has a shape that cannot be: {' x '.join(map(str, shape))}")
        return Tensor(name, title, shape, count // block * width), offset

    def _skip_text(self) -> int:
        """Go past a text; return where it begins."""
        length = self.number("<Q")
        begin, self.at = self.at, self.at + length
        if self.at > self.size:
            raise _Damaged("its header is longer than the file")
        return begin

    def _count(self, count: int, least_bytes: int) -> int:
        """Return a number of things, each of so many bytes at least."""
        if count > _MOST_ITEMS or count * least_bytes > self.size - self.at:
            raise _Damaged("its header tells of more than it holds")
        return count


@contextmanager
def _reading(path: Path) -> Iterator[_Reader]:
    """Map a regular file into memory; nothing waits for pipes.

    Raises:
        LoadError: it cannot be read, or what was found there cannot be.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        with open(os.open(path, flags), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise _Damaged("it is no regular file")
            if found.st_size < _LEAST_BYTES:
                raise _Damaged(f"it has {found.st_size} bytes")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                yield _Reader(path, data)
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror or error}", help="see who may read it") from error
    except _Foreign as error:
        raise LoadError(f"{path} {error}", help=error.cure) from error
    except (_Damaged, struct.error, ValueError, OverflowError) as error:
        told = str(error) if isinstance(error, _Damaged) else "its header cannot be read"
        raise LoadError(f"{path} is damaged: {told}", help=_DOWNLOAD) from error
