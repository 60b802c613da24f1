"""What a chat template says about an answer: which control tokens stand in it, and which one ends it."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from itertools import takewhile

import jinja2

from flowinfer.backends.template import ChatTemplate

_QUESTION, _ANSWER, _THOUGHT = "one", "two", "three"


@dataclass(frozen=True)
class Turn:
    """An answer as the template writes it into a conversation."""

    inside: frozenset[str] = frozenset()
    """Control tokens between the place where an answer begins and the end of its text (channels of gpt-oss)."""
    opener: str = ""
    """What then stands before an answer without a thought, if control tokens belong to it."""
    end: str | None = None
    """The control token behind the answer."""


def read_turn(template: ChatTemplate | None, specials: Collection[str]) -> Turn:
    """Let the template write an answer, and look where control tokens stand."""
    if template is None or not specials:
        return Turn()
    pattern = re.compile("|".join(re.escape(name) for name in sorted(specials, key=len, reverse=True)))
    try:
        thoughtful = _answer(template, {"thinking": _THOUGHT, "reasoning_content": _THOUGHT})
        plain = _answer(template, {})
        framing = _framing(template, pattern)
    except Exception:  # a template that takes no answer, or fails altogether: prompts say so when they are built
        return Turn()
    before, _, after = thoughtful.rpartition(_ANSWER)
    inside = frozenset(pattern.findall(before)) - framing
    follows = pattern.search(after)
    end = follows[0] if follows and follows[0] not in inside else None
    opener = plain.rpartition(_ANSWER)[0]
    return Turn(inside, opener if inside.intersection(pattern.findall(opener)) else "", end)


def _framing(template: ChatTemplate, pattern: re.Pattern[str]) -> frozenset[str]:
    """Return the control tokens of a question where the template ends prompts with one: answers have them too."""
    question = [{"role": "user", "content": _QUESTION}]
    begun, bare = (template.render(question, add_generation_prompt=opens) for opens in (True, False))
    return frozenset(pattern.findall(bare) if begun == bare else ())


def _answer(template: ChatTemplate, thought: dict[str, str]) -> str:
    """Return what a template writes from the place on where an answer begins."""
    question = {"role": "user", "content": _QUESTION}
    begun = template.render([question])
    answer = {"role": "assistant", "content": _ANSWER, **thought}
    whole = template.render([question, answer], add_generation_prompt=False)
    if _ANSWER not in whole:
        raise jinja2.TemplateError("the template leaves answers out")
    shared = takewhile(lambda pair: pair[0] == pair[1], zip(begun, whole, strict=False))
    return whole[sum(1 for _ in shared) :]
