"""The tokenizer of a checkpoint: tokenizer.json as it is, or a SentencePiece model converted and checked."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from tokenizers import processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils.hub import cached_file

from flowinfer.backends.sentencepiece import convert
from flowinfer.errors import LoadError

_BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")


def load_tokenizer(ref: str, **options: Any) -> Any:  # untyped in transformers
    """Load the tokenizer of a folder or hub id.

    Args:
        ref: the folder or id.
        options: what transformers is told besides.
    Raises:
        LoadError: its kind is known and unsupported.
        Exception: whatever transformers raises over damaged files.
    """
    if _find(ref, "tokenizer.json", options):
        # some configs name a class that would rebuild it wrongly
        return PreTrainedTokenizerFast.from_pretrained(ref, **options)
    for name in ("tokenizer.model", "spiece.model"):
        if path := _find(ref, name, options):
            return _from_sentencepiece(ref, path, options)
    ranks = sorted(Path(ref).glob("*.tiktoken")) if Path(ref).is_dir() else []
    if ranks or _find(ref, "tiktoken.model", options):
        _refuse_ranks(ranks[0].name if ranks else "tiktoken.model")
    return AutoTokenizer.from_pretrained(ref, **options)


def _find(ref: str, name: str, options: dict[str, Any]) -> Path | None:
    folder = Path(ref)
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    found = cached_file(ref, name, revision=options.get("revision"), _raise_exceptions_for_missing_entries=False)
    return Path(found) if found else None


def _refuse_ranks(name: str) -> None:
    raise LoadError(
        f"{name} holds tiktoken ranks, which do not say how the tokenizer cuts words",
        help="give the model a tokenizer.json; newer models of the same family bring one (Qwen1.5 and later, Llama-3)",
    )


def _from_sentencepiece(ref: str, path: Path, options: dict[str, Any]) -> Any:  # untyped in transformers
    """Write the converted tokenizer beside the checkpoint's own settings, and let transformers read them together."""
    with path.open("rb") as file:
        if file.read(1) != b"\n":  # what every SentencePiece model begins with, and no base64
            _refuse_ranks(path.name)
    beside = {name: found for name in _BESIDE if (found := _find(ref, name, options))}
    config = json.loads(beside[_BESIDE[0]].read_text(encoding="utf-8")) if _BESIDE[0] in beside else {}
    named = {int(i): _content(token) for i, token in (config.get("added_tokens_decoder") or {}).items()}
    tokenizer = convert(path, named)
    begin = _content(config.get("bos_token") or "<s>")
    adds_begin = config.get("add_bos_token", str(config.get("tokenizer_class")).startswith(("Llama", "Gemma")))
    if adds_begin and (begin_id := tokenizer.token_to_id(begin)) is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, begin_id)]
        )
    with tempfile.TemporaryDirectory(prefix="flowinfer-") as folder:
        for name, found in beside.items():
            shutil.copyfile(found, Path(folder, name))
        tokenizer.save(str(Path(folder, "tokenizer.json")))
        return PreTrainedTokenizerFast.from_pretrained(folder)


def _content(token: Any) -> str:  # a name, or a mapping that holds it
    return str(token["content"] if isinstance(token, dict) else token)
