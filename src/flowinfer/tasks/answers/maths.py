"""Mathematics answers, found by the kind of the reference."""

from __future__ import annotations

from dataclasses import dataclass

from flowinfer.tasks.answers.bounds import has_only_bounds, holds_bound
from flowinfer.tasks.answers.finding import Reader, find
from flowinfer.tasks.answers.kinds import Gold
from flowinfer.tasks.answers.readers import read_boxed, read_stretch
from flowinfer.tasks.answers.sentences import is_broken_off, is_refusal, sentences, without_checks
from flowinfer.tasks.answers.text import Found, Text

_MAX_WHOLE = 1_500


def find_maths(text: Text, gold: Gold) -> Found:
    """Find what a text gives as an answer of a reference's kind."""
    hears_denials = gold.kind not in ("truth", "words", "letter")
    return find(text, _Mathematics(gold=gold, question=gold.question, hears_denials=hears_denials))


@dataclass(frozen=True, kw_only=True)
class _Mathematics(Reader):
    gold: Gold
    hears_after_box: bool = False

    @property
    def _takes_no_bound(self) -> bool:
        return self.gold.kind in ("number", "expression")

    def boxed(self, box: Text) -> Found:
        return Found(read_boxed(box.string, self.gold), "ok", "boxed", box.span())

    def announced(self, text: Text, tails: list[Text]) -> Found | None:
        for tail in reversed(tails):
            if self._takes_no_bound and holds_bound(tail.string, self.question):
                continue
            if (shown := read_stretch(tail.string, self.gold, is_anchored=True)) is not None:
                return Found(shown, "ok", "anchor", tail.span())
        return None

    def closing(self, text: Text) -> Found:
        if self.gold.kind not in ("truth", "letter", "words") and is_broken_off(text):
            return Found(None, "truncated", "none", None)
        told = list(sentences(without_checks(text)))
        whole = text.part(max(0, len(text.string) - _MAX_WHOLE), len(text.string))
        is_read_whole = told or self.gold.kind in ("truth", "words")  # else it is all comments and suppositions
        last = [("whole", whole)] if is_read_whole else []  # for answers over several lines
        for rule, part in [*(("sentence", part) for part in reversed(told)), *last]:
            if self._takes_no_bound and has_only_bounds(part.string, self.question):
                continue
            if self.gold.kind not in ("truth", "words") and is_refusal(part.string):
                break
            if (shown := read_stretch(part.string, self.gold, is_anchored=False)) is not None:
                return Found(shown, "ok", rule, part.span())
        return Found(None, "no_answer", "none", None)
