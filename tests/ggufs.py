"""GGUF files for tests: headers written by hand, weights of zeros."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

META: Mapping[str, Any] = {
    "general.architecture": "llama",
    "general.file_type": 0,
    "llama.context_length": 512,
    "llama.block_count": 2,
    "llama.embedding_length": 8,
    "llama.attention.head_count": 2,
    "tokenizer.ggml.tokens": ["a", "b", "ab"],
    "tokenizer.chat_template": "{{ messages[0].content }}",
}
TENSORS: Mapping[str, Sequence[int]] = {"token_embd.weight": (8, 3), "output_norm.weight": (8,)}


def text(value: str) -> bytes:
    """Return a text as GGUF files hold it."""
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def value(one: Any) -> bytes:
    """Return a value with its kind before it; lists are of texts or of whole numbers."""
    if isinstance(one, list):
        inner = 8 if isinstance(one[0], str) else 5
        items = b"".join(value(item)[4:] for item in one)
        return struct.pack("<IIQ", 9, inner, len(one)) + items
    if isinstance(one, str):
        return struct.pack("<I", 8) + text(one)
    if isinstance(one, bool):
        return struct.pack("<I?", 7, one)
    return struct.pack("<If", 6, one) if isinstance(one, float) else struct.pack("<Ii", 5, one)


def write(
    path: Path,
    meta: Mapping[str, Any] = META,
    tensors: Mapping[str, Sequence[int]] = TENSORS,
    *,
    version: int = 3,
) -> Path:
    """Write a file whose tensors are float32 zeros, with folders for it."""
    infos, offset = b"", 0
    for name, shape in tensors.items():
        infos += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
        infos += struct.pack("<IQ", 0, offset)
        offset += -(-4 * math.prod(shape) // 32) * 32
    header = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(meta))
    header += b"".join(text(key) + value(one) for key, one in meta.items()) + infos
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + b"\0" * (-len(header) % 32 + offset))
    return path


def split(path: Path, count: int = 2) -> list[Path]:
    """Write a model in several files; return them."""
    parts = [path.with_name(f"{path.stem}-{number + 1:05}-of-{count:05}.gguf") for number in range(count)]
    for number, part in enumerate(parts):
        own = {"split.no": number, "split.count": count}
        write(part, {**META, **own} if number == 0 else own, {f"blk.{number}.attn_q.weight": (8, 8)})
    return parts


def ollama(store: Path, name: str = "tiny", tag: str = "latest", **layers: str) -> Path:
    """Put a model into a store as Ollama does, with further layers of text; return its weights' file."""
    digest = f"sha256:{sha256(name.encode()).hexdigest()}"
    blob = write(store / "blobs" / digest.replace(":", "-"))
    kinds = [{"mediaType": "application/vnd.ollama.image.model", "digest": digest}]
    for kind, body in layers.items():
        own = f"sha256:{sha256(body.encode()).hexdigest()}"
        (store / "blobs" / own.replace(":", "-")).write_text(body, encoding="utf-8")
        kinds.append({"mediaType": f"application/vnd.ollama.image.{kind}", "digest": own})
    folder = store.joinpath("manifests", "registry.ollama.ai", *(() if "/" in name else ("library",)), name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / tag).write_text(repr({"schemaVersion": 2, "layers": kinds}).replace("'", '"'), encoding="utf-8")
    return blob


def hub(cache: Path, repository: str = "some/repo-GGUF", name: str = "m.Q4_0.gguf") -> Path:
    """Put a model's file into a hub cache; return it."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text("abc", encoding="utf-8")
    return write(folder / "snapshots" / "abc" / name)
