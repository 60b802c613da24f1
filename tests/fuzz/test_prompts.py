"""Random contents for hostile chat templates: nobody can type a mark, and the ids write the text."""

from __future__ import annotations

import random

import pytest

from flowinfer.backends.chat import ChatPrompts
from flowinfer.fusion.vocab import TokenBytes, from_json
from tests.backends import tiny
from tests.backends.test_chat import HOSTILE
from tests.fusion import replicas
from tests.fuzz.rounds import rounds

_PLAIN = "ab <|>/_[]{}▁ \n\tıſK＜｜éø小😀\U00100000\ue000"


def content(rng: random.Random, tokens: TokenBytes) -> str:
    names = [*tokens.specials, *tokens.marks, "<think>", "<|im_end|>"]
    parts = []
    for _ in range(rng.randrange(8)):
        name = rng.choice(names)
        cut = rng.randrange(len(name) + 1)
        parts.append(rng.choice([name, name[:cut], name[cut:], rng.choice(_PLAIN), name.upper()]))
    return "".join(parts)


def template(rng: random.Random, tokens: TokenBytes) -> str | None:
    if rng.random() < 0.2:
        return None
    marks = [*tokens.specials, *tokens.marks]
    body = HOSTILE[rng.choice(list(HOSTILE))]
    return "{% set c = messages[0].content %}" + rng.choice(marks) + body + rng.choice(marks)[: rng.randrange(9)]


@pytest.mark.slow
def test_nobody_can_type_a_mark() -> None:
    for seed, rng in rounds():
        name = rng.choice(list(replicas.MADE))
        tokenizer = replicas.MADE[name]()
        tokens = from_json(tokenizer.to_str())
        source, typed = template(rng, tokens), content(rng, tokens)
        prompts = ChatPrompts(tiny.wrapped(tokenizer, chat_template=source), tokens)
        known = {i for i in [*tokens.specials.values(), *tokens.marks.values()] if i in prompts._known}
        built = prompts.build(typed)
        unknown = tokens.specials.get("<unk>")
        counts = [
            [i for i in prompt.ids if i in known and i != unknown]
            for prompt in (built, prompts.build(_harmless(typed)))
        ]
        where = f"seed {seed}, {name}, template {source!r}, content {typed!r}"
        if source is None or ".split(' ')" not in source:  # as many parts as the content has
            assert counts[0] == counts[1], where
        if not tokens.losses and unknown is None:
            names = {token_id: mark.encode() for mark, token_id in tokens.specials.items()}
            assert b"".join(names.get(i) or tokens.pieces[i] or b"" for i in built.ids).decode() == built.text, where


def _harmless(text: str) -> str:
    return "".join(character if character.isspace() else "a" for character in text)
