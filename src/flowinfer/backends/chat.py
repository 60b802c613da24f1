"""Prompts as a model reads them: chat template, tokenization, and a guard against marks that somebody typed.

Whatever a question or an earlier model's answer holds is ordinary text: `<|im_end|>` ends no turn, `</think>` no
thought. Marks come from the chat template, the system text and the prefill, which are written by authors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from string import punctuation
from typing import Any, Literal
from unicodedata import normalize

import jinja2

from flowinfer.backends.base import Prompt, Turn
from flowinfer.backends.template import ChatTemplate
from flowinfer.backends.turns import read_turn
from flowinfer.errors import LoadError
from flowinfer.fusion.disguise import Disguise
from flowinfer.fusion.vocab import TokenBytes
from flowinfer.spec import THOUGHTS

_STAND_INS = range(0x100000, 0x10FF00, 0x100)
"""Blocks of private characters that can stand for the punctuation of marks."""
TEMPLATE_FAILED = "the chat template failed"
"""How a prompt's problem begins that its model's template has with it."""
_CURE = 'set chat="off" on the model to send plain prompts'


class ChatPrompts:
    """Build prompts for one tokenizer.

    The template is given the content with other characters, one for one, in place of the punctuation that marks are
    made of. So every mark in what it writes is its own, however often it repeats, measures or cuts the content; then
    the characters come back.
    """

    def __init__(
        self,
        tokenizer: Any,  # untyped in transformers
        tokens: TokenBytes,
        *,
        chat: Literal["auto", "off"] = "auto",
        system: str | None = None,
        disguise: Callable[[Any, Mapping[str, int]], Any] = Disguise,  # of its own kind of tokenizer
    ) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._template = _template(tokenizer) if chat == "auto" else None
        self._system = system
        added = self._backend.get_added_tokens_decoder()
        self._ids = {name: i for name, i in {**tokens.specials, **tokens.marks}.items() if name and i in added}
        self._known = frozenset(self._ids.values())
        self.turn = read_turn(self._template, tokens.specials)
        """What the template says about answers."""
        self.written = self.turn.inside | {mark for thought in THOUGHTS for mark in thought if mark in tokens.specials}
        """Control tokens that are text in an answer: those of its channels, and the marks of thoughts."""
        self._all = _Marks(self._ids)
        self._writable = _Marks(self._ids.keys() & {*tokens.marks, *self.written})
        """What an author may begin an answer with."""
        self._dangerous = _dangerous(self._ids)
        self._make_disguise = disguise

    def build(self, content: str, prefill: str = "", turns: Sequence[Turn] = ()) -> Prompt:
        """Return the prompt of a user's turn, ending where the answer begins, and its ids.

        Args:
            content: of that turn.
            prefill: what the answer begins with.
            turns: what was said before.
        """
        said = [*turns, Turn("user", content)]
        stand_ins = self._stand_ins("".join(turn.content for turn in said) + (self._system or ""))
        hidden = [Turn(turn.role, turn.content.translate(stand_ins.hide)) for turn in said]
        written = _as_text(hidden) if self._template is None else self._apply(self._template, hidden)
        parts = [_Part(part.text.translate(stand_ins.show), part.is_mark) for part in self._all.split(written)]
        parts += self._writable.split(prefill)
        begun = (written + prefill).rstrip()
        closes = next((thought.closes for thought in THOUGHTS if begun.endswith(thought.opens)), None)
        opener = self.turn.opener if closes is None else f"\n{closes}\n\n"  # as hybrid models' templates write it
        text = "".join(part.text for part in parts)
        return Prompt(text, tuple(self._encode(text, parts)), closes is not None, opener)

    def _encode(self, text: str, parts: list[_Part]) -> list[int]:
        """Return the ids of a text in which only some of the parts are marks."""
        is_plain = self._template is None
        marks = [self._ids[part.text] for part in parts if part.is_mark]
        if _spans(parts) == _spans(self._all.split(text)):
            encoding = self._backend.encode(text, add_special_tokens=is_plain)
            own = zip(encoding.ids, encoding.special_tokens_mask, strict=True)
            if marks == [i for i, is_frame in own if i in self._known and not is_frame]:  # a normalizer makes marks too
                return list(encoding.ids)
        text = "".join(self._disguise.names[part.text] if part.is_mark else part.text for part in parts)
        return list(self._disguise.tokenizer.encode(text, add_special_tokens=is_plain).ids)

    @cached_property
    def _disguise(self) -> Any:  # as Disguise
        return self._make_disguise(self._backend, self._ids)

    def _stand_ins(self, content: str) -> _StandIns:
        """Return characters for those of marks, from a block that the content does not use."""
        own = {ord(character) & ~0xFF for character in content if ord(character) >= _STAND_INS.start}
        block = next((block for block in _STAND_INS if block not in own), _STAND_INS.start)
        hide = {ord(character): block + index for index, character in enumerate(self._dangerous)}
        return _StandIns(hide, {stand_in: character for character, stand_in in hide.items()})

    def _apply(self, template: ChatTemplate, said: Sequence[Turn]) -> str:
        if self._system is not None:
            system = [turn.content for turn in said[:1] if turn.role == "system"]
            said = [Turn("system", "\n\n".join([self._system, *system])), *said[len(system) :]]
        try:
            return template.render([turn._asdict() for turn in said])
        except Exception as error:  # a template is a program of the checkpoint's and may fail in any way
            raise LoadError(f"{TEMPLATE_FAILED}: {error}", help=_CURE) from error


@dataclass(frozen=True)
class _Part:
    text: str
    is_mark: bool


@dataclass(frozen=True)
class _StandIns:
    hide: Mapping[int, int]
    show: Mapping[int, int]


class _Marks:
    """A set of marks, to be found in texts: of two that begin at one place the longer one, as tokenizers do."""

    def __init__(self, names: Collection[str]) -> None:
        self.names = frozenset(names)
        longest_first = sorted(self.names, key=lambda name: (-len(name), name))
        self._pattern = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None

    def split(self, text: str) -> list[_Part]:
        """Cut a text into marks and what stands between them."""
        found = self._pattern.split(text) if self._pattern else [text]
        return [_Part(part, index % 2 == 1) for index, part in enumerate(found) if part]


def _spans(parts: list[_Part]) -> list[tuple[int, int]]:
    """Return where marks begin and end."""
    ends = list(accumulate(len(part.text) for part in parts))
    return [(end - len(part.text), end) for part, end in zip(parts, ends, strict=True) if part.is_mark]


def _dangerous(marks: Collection[str]) -> str:
    """Return the characters that marks are made of, as far as text can do without them: their punctuation."""
    found = set("<>")  # also of what only looks like a mark, such as <think> where it is no token
    for mark in marks:
        own = {character for character in mark if normalize("NFKC", character) in punctuation}
        found |= own or {mark[0]}
    return "".join(sorted(found))


def _as_text(said: Sequence[Turn]) -> str:
    """Return turns as a model without a chat template reads them."""
    named = [turn.content if turn.role == "system" else f"{turn.role.title()}: {turn.content}" for turn in said[:-1]]
    return "\n\n".join([*named, said[-1].content])


def _template(tokenizer: Any) -> ChatTemplate | None:  # untyped in transformers
    """Compile the chat template, if there is one."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    try:
        return ChatTemplate(tokenizer.get_chat_template(), tokenizer.special_tokens_map)
    except (jinja2.TemplateError, ValueError, RecursionError) as error:
        raise LoadError(f"the chat template cannot be read: {error}", help=_CURE) from error
