"""A tokenizer's files, read without transformers where each of their entries is one whose effect is known.

transformers takes seconds to be imported and adds little to a tokenizer.json: what its config names is mostly in it
already. Where it is not, or anything else stands there, transformers reads them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from tokenizers import Tokenizer, processors

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_EXTRA = ("additional_special_tokens", "extra_special_tokens")
_IDLE = (
    *("add_bos_token", "add_eos_token", "backend", "clean_up_tokenization_spaces", "errors", "is_local", "legacy"),
    *("local_files_only", "model_max_length", "name_or_path", "sp_model_kwargs", "spaces_between_special_tokens"),
    *("tokenizer_class", "use_default_system_prompt"),
)
"""What changes nothing beside a tokenizer.json, or only what transformers does after it: decoding, cutting."""
_NO = ("add_prefix_space", "split_special_tokens")
"""What changes nothing if it is false."""
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")
Backend = TypeVar("Backend")
"""What cuts texts into ids."""


@dataclass(frozen=True)
class KnownTokenizer(Generic[Backend]):
    """What is asked of a tokenizer of transformers, by one that is not imported or, in a GGUF file, never was there."""

    backend_tokenizer: Backend
    chat_template: str | None
    special_tokens_map: Mapping[str, Any]
    eos_token_id: int | None

    def get_chat_template(self) -> str | None:
        """Return the template."""
        return self.chat_template


def understood(folder: Path) -> KnownTokenizer[Tokenizer] | None:
    """Return the tokenizer of a folder as transformers makes it; None where that is transformers' to say."""
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
        if _is_told_elsewhere(folder, config) or not _is_plain(config):
            return None
        backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
        named = {key: content(config[key]) for key in _NAMED if config.get(key) is not None}
        template = folder / "chat_template.jinja"
        text = template.read_text("utf-8") if template.is_file() else config.get("chat_template")
        if backend.truncation or backend.padding or not _are_there(backend, config, named.values()):
            return None
    except Exception:  # whatever tokenizers raises over a damaged file: transformers says what is wrong
        return None
    if backend.post_processor is None:
        backend.post_processor = processors.TemplateProcessing(single="$A:0", pair="$A:0 $B:1")
    eos = named.get("eos_token")
    return KnownTokenizer(backend, text or None, named, None if eos is None else backend.token_to_id(eos))


def _is_told_elsewhere(folder: Path, config: Mapping[str, Any]) -> bool:
    """Return whether other files say something about special tokens, or there are several templates."""
    is_whole = "added_tokens_decoder" in config  # then these older files are not read
    older = () if is_whole else ("special_tokens_map.json", "added_tokens.json")
    return any((folder / name).exists() for name in (*older, "additional_chat_templates"))


def _is_plain(config: Mapping[str, Any]) -> bool:
    """Return whether every entry is known."""
    known = (*_NAMED, *_EXTRA, *_IDLE, *_NO, "added_tokens_decoder", "chat_template")
    return (
        all(key in known for key in config)
        and not any(config.get(key) for key in _NO)
        and isinstance(config.get("chat_template"), str | None)
        and all(isinstance(config.get(key), list | None) for key in _EXTRA)
        and all(isinstance(one, str) for key in _EXTRA for one in config.get(key) or ())
    )


def _are_there(backend: Tokenizer, config: Mapping[str, Any], named: Iterable[str]) -> bool:
    """Return whether all tokens that a config names are in the tokenizer as the config would add them."""
    held = {token.content: (token, number) for number, token in backend.get_added_tokens_decoder().items()}
    extra = [one for key in _EXTRA for one in config.get(key) or ()]
    if not {*named, *extra} <= held.keys() or not all(held[one][0].special for one in (*named, *extra)):
        return False
    if any(getattr(held[one][0], flag) for one in extra for flag in _FLAGS[:-1]):
        return False
    listed = config.get("added_tokens_decoder") or {}
    return all(_is_same(held.get(one["content"]), int(number), one) for number, one in listed.items())


def _is_same(held: tuple[Any, int] | None, number: int, told: Mapping[str, Any]) -> bool:  # tokenizers' AddedToken
    """Return whether an added token of a config is one that the tokenizer has."""
    if held is None or held[1] != number or told.keys() != {"content", *_FLAGS}:
        return False
    return all(getattr(held[0], flag) == told[flag] for flag in _FLAGS)


def content(token: Any) -> str:  # a name, or a mapping that holds it
    """Return a token's text."""
    return str(token["content"] if isinstance(token, dict) else token)
