"""A tokenizer whose marks go by other names, so that nobody can type them.

Markup of a chat template is written with the secret names; everything else is ordinary text, whatever it looks like:
one encoding of the whole prompt, with each token where the tokenizer itself would put it.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping
from typing import Any

from tokenizers import Tokenizer


class Disguise:
    """A copy of a tokenizer in which some tokens have secret names.

    Args:
        tokenizer: the model's own, left as it is.
        marks: added tokens by their names.
    """

    def __init__(self, tokenizer: Tokenizer, marks: Mapping[str, int]) -> None:
        nonce = secrets.token_hex(8)  # nobody can type what nobody knows; the ids do not depend on it
        self.names = {mark: f"\ue000{nonce}.{index}\ue001" for index, mark in enumerate(marks)}
        self.tokenizer = Tokenizer.from_str(json.dumps(_renamed(json.loads(tokenizer.to_str()), self.names)))
        for mark, token_id in marks.items():
            assert self.tokenizer.token_to_id(self.names[mark]) == token_id, f"{mark!r} has another id in the copy"


def _renamed(document: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Rename added tokens in a tokenizer.json, and their namesakes in the vocabulary, which no text then reaches."""
    for token in document["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = document["model"]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(piece, piece): token_id for piece, token_id in vocabulary.items()}
    else:
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocabulary]
    if model.get("unk_token") is not None:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        model["merges"] = list(_without(model["merges"], names))
    return document


def _without(merges: Iterable[Any], names: Mapping[str, str]) -> Iterable[Any]:
    """Leave out the merges that make, or are made of, a renamed piece."""
    for merge in merges:
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        if names.keys().isdisjoint((left, right, left + right)):
            yield merge
