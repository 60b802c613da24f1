"""The tokenizer of a checkpoint: tokenizer.json as it is, or a SentencePiece model converted and checked."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, processors

from flowinfer.backends import sentencepiece
from flowinfer.backends.plain_tokenizer import KnownTokenizer, content, understood
from flowinfer.backends.versions import installed
from flowinfer.errors import LoadError
from flowinfer.files import write_whole
from flowinfer.fusion.selfcheck import cache_folder

_BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")


_KEPT = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "additional_chat_templates/*")
"""Files that a tokenizer may be made of; weights' index and configs among them, which change as rarely."""
_VERSIONS = ("flowinfer", "transformers", "tokenizers")


def load_tokenizer(ref: str, **options: Any) -> Any:  # untyped in transformers
    """Load the tokenizer of a folder or hub id; what transformers has to make of a folder's files is kept.

    Args:
        ref: the folder or id.
        options: what transformers is told besides.
    Raises:
        LoadError: its kind is known and unsupported.
        Exception: whatever transformers raises over damaged files.
    """
    is_own = Path(ref).is_dir() and not options.get("trust_remote_code")
    if is_own and (plain := understood(Path(ref))) is not None:
        return plain
    kept = _kept_at(Path(ref)) if is_own else None
    known = _recalled(kept) if kept else None
    if known is None:
        known = _load(ref, options)
        if kept:
            _keep(known, kept)
    return known


def _kept_at(folder: Path) -> Path:
    """Return where the tokenizer of a folder as it is now is kept."""
    files = sorted({path for pattern in _KEPT for path in folder.glob(pattern)})
    stats = [(str(path), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in files]
    code = [Path(one).read_text("utf-8") for one in (__file__, sentencepiece.__file__)]
    told = json.dumps([stats, code, [installed(name) for name in _VERSIONS]])
    return cache_folder() / "tokenizers" / f"{hashlib.sha256(told.encode()).hexdigest()}.known.json"


def _recalled(path: Path) -> KnownTokenizer[Tokenizer] | None:
    """Read what is kept; None where nothing is, or that is damaged."""
    try:
        told = json.loads(path.read_bytes())
        return KnownTokenizer(Tokenizer.from_str(told.pop("backend")), **told)
    except FileNotFoundError:
        return None
    except Exception:  # whatever tokenizers raises over a damaged file: it is made anew
        return None


def _keep(made: Any, path: Path) -> None:  # a tokenizer of transformers
    """Keep what is asked of a tokenizer, where it is plain data."""
    if getattr(made, "backend_tokenizer", None) is None:
        return
    with suppress(OSError, TypeError, ValueError):
        template = made.get_chat_template() if made.chat_template else None
        told = {"chat_template": template, "eos_token_id": made.eos_token_id}
        told["special_tokens_map"] = made.special_tokens_map
        if json.loads(json.dumps(told)) == told:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps(told | {"backend": made.backend_tokenizer.to_str()}).encode())


def _load(ref: str, options: dict[str, Any]) -> Any:  # untyped in transformers
    from flowinfer.backends.their_tokenizers import PreTrainedTokenizerFast

    if _find(ref, "tokenizer.json", options):
        # some configs name a class that would rebuild it wrongly
        return PreTrainedTokenizerFast.from_pretrained(ref, **options)
    for name in ("tokenizer.model", "spiece.model"):
        if path := _find(ref, name, options):
            return _from_sentencepiece(ref, path, options)
    ranks = sorted(Path(ref).glob("*.tiktoken")) if Path(ref).is_dir() else []
    if ranks or _find(ref, "tiktoken.model", options):
        _refuse_ranks(ranks[0].name if ranks else "tiktoken.model")
    from flowinfer.backends.theirs import AutoTokenizer

    return AutoTokenizer.from_pretrained(ref, **options)


def _find(ref: str, name: str, options: dict[str, Any]) -> Path | None:
    folder = Path(ref)
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    from flowinfer.backends.their_tokenizers import cached_file

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
    from flowinfer.backends.their_tokenizers import PreTrainedTokenizerFast

    beside = {name: found for name in _BESIDE if (found := _find(ref, name, options))}
    config = json.loads(beside[_BESIDE[0]].read_text(encoding="utf-8")) if _BESIDE[0] in beside else {}
    named = {int(i): content(token) for i, token in (config.get("added_tokens_decoder") or {}).items()}
    tokenizer = sentencepiece.convert(path, named)
    begin = content(config.get("bos_token") or "<s>")
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
