"""End tokens: which ids end a head's answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from flowinfer.errors import LoadError
from flowinfer.fusion.vocab import TokenBytes

END_TOKENS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|end|>",
    "</s>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
)
"""Control tokens that end an answer where neither the generation config nor the chat template says otherwise."""


class Ended(Protocol):
    """What names end tokens: transformers' tokenizers and generation configs, and what stands for them."""

    @property
    def eos_token_id(self) -> Any:  # an id, several or none; a file's own words until they are checked
        """Return them."""


def eos_ids(
    tokenizer: Ended,
    generation_config: Ended | None,
    tokens: TokenBytes,
    stop_tokens: Sequence[str] = (),
    turn_end: str | None = None,
) -> frozenset[int]:
    """Collect the ids that end a head's answer: what its tokenizer, generation config and template say, and the user.

    The well-known names count too, unless the generation config lists several ends (it is complete then) or the
    template writes them inside an answer. A stop token that this vocabulary lacks is passed over: another head of the
    group may have it.

    Args:
        turn_end: the control token that the chat template writes behind an answer.
    """
    found = set(configured_ends(tokenizer, generation_config))
    names = () if _lists_ends(generation_config) else END_TOKENS
    for name in (*names, *([turn_end] if turn_end else [])):
        if name in tokens.specials and name not in tokens.writable_specials:
            found.add(tokens.specials[name])
    for name in stop_tokens:
        token_id = tokens.specials.get(name, tokens.id_of.get(name.encode()))
        if token_id is not None:
            found.add(token_id)
    return frozenset(found)


def configured_ends(tokenizer: Ended, generation_config: Ended | None) -> frozenset[int]:
    """Return the end tokens that a checkpoint's own files name."""
    configured = getattr(generation_config, "eos_token_id", None)
    found = [] if configured is None else configured if isinstance(configured, list | tuple) else [configured]
    if not all(type(i) is int and i >= 0 for i in found):
        raise LoadError(
            f"the generation config's eos_token_id holds {configured!r}, no ids of tokens",
            help="mend generation_config.json, or download it again",
        )
    own = tokenizer.eos_token_id
    return frozenset([*found, *([] if own is None else [int(own)])])


def _lists_ends(generation_config: Ended | None) -> bool:
    configured = getattr(generation_config, "eos_token_id", None)
    return configured is not None and not isinstance(configured, int) and len(configured) > 1
