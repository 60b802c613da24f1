"""The table of docs/tokenizers.md: what flowinfer makes of tokenizers, each from a folder or a replica.

    python benchmarks/tokenizer_table.py ../shared/data/tokenizers/* src/flowinfer/lab/zoo/* > table.md

A folder needs tokenizer.json or a SentencePiece model, and may have tokenizer_config.json, generation_config.json and a
chat template. Replicas are small tokenizers of the same structure that the tests make (tests/fusion/replicas.py).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerFast

from flowinfer.backends.chat import ChatPrompts
from flowinfer.backends.tokenizers import load_tokenizer
from flowinfer.errors import LoadError
from flowinfer.fusion.ends import configured_ends, eos_ids
from flowinfer.fusion.vocab import token_bytes

HEADER = ("tokenizer", "checked on", "ids", "result", "changes text", "control, marks", "in answers", "ends")


def main(folders: list[Path]) -> None:
    """Print the table."""
    rows = [HEADER, ("---",) * len(HEADER), *from_folders(folders), *from_replicas()]
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))


def from_folders(folders: list[Path]) -> Iterator[tuple[str, ...]]:
    """Yield a row for each folder that holds a tokenizer."""
    for folder in folders:
        if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
            continue
        try:
            shell = load_tokenizer(str(folder))
        except LoadError as error:
            yield (folder.name, "its own files", "", f"refused: {error.message}", *[""] * 4)
            continue
        templates = sorted(folder.glob("*.jinja"))
        if templates:
            shell.chat_template = templates[0].read_text(encoding="utf-8")
        has_config = (folder / "generation_config.json").is_file()
        yield row(folder.name, "its own files", shell, GenerationConfig.from_pretrained(folder) if has_config else None)


def from_replicas() -> Iterator[tuple[str, ...]]:
    """Yield a row for each replica of the tests, where the tests are at hand."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from tests.fusion import replicas

    for name, make in replicas.MADE.items():
        is_oss = name == "gpt-oss"
        template = replicas.HARMONY if is_oss else None
        end = "<|return|>" if is_oss else None
        shell = PreTrainedTokenizerFast(tokenizer_object=make(), chat_template=template, eos_token=end)
        yield row(name, "structure only (replica)", shell, None)


def row(name: str, checked: str, shell: Any, generation: GenerationConfig | None) -> tuple[str, ...]:
    """Return what one tokenizer gives."""
    try:
        tokens = token_bytes(shell)
        turn = ChatPrompts(shell, tokens).turn
    except LoadError as error:
        return (name, checked, "", f"refused: {error.message}", *[""] * 4)
    ends = configured_ends(shell, generation)
    tokens = tokens.writing(token for token in turn.inside if tokens.specials[token] not in ends)
    missing = f", {len(tokens.missing_bytes)} bytes missing" if tokens.missing_bytes else ""
    names = {token_id: token for token, token_id in tokens.specials.items()}
    found = sorted(names.get(i, str(i)) for i in eos_ids(shell, generation, tokens, turn_end=turn.end))
    counts = f"{len(tokens.specials)}, {len(tokens.marks)}"
    inside = quoted(sorted(tokens.writable_specials))
    losses = "; ".join(tokens.losses) or "no"
    return (name, checked, f"{len(tokens.pieces):,}", f"bytes exact{missing}", losses, counts, inside, quoted(found))


def quoted(names: list[str]) -> str:
    """Return names as code in a cell of a table."""
    return " ".join(f"`{name.replace('|', chr(92) + '|')}`" for name in names) or "none"


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
