"""Mathematics answers, found and compared by the kind of the reference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from flowinfer.results import Score
from flowinfer.tasks.answers.compare import is_same
from flowinfer.tasks.answers.finding import Reader, find
from flowinfer.tasks.answers.kinds import Gold, read_gold
from flowinfer.tasks.answers.readers import read_boxed, read_stretch
from flowinfer.tasks.answers.sentences import is_broken_off, is_refusal, sentences, without_checks
from flowinfer.tasks.answers.text import Found, Text

_MAX_WHOLE = 1_500


def judge_maths(text: Text, reference: str, question: str) -> Score:
    """Score an output against a reference of any kind."""
    gold = read_gold(reference, question)
    hears_denials = gold.kind not in ("truth", "words", "letter")
    found = find(text, _Mathematics(gold=gold, question=question, hears_denials=hears_denials))
    is_right = found.value is not None and is_same(found.value, gold)
    return Score(correct=is_right, extracted=found.value, status=found.status, rule=found.rule, span=found.span)


@dataclass(frozen=True, kw_only=True)
class _Mathematics(Reader):
    gold: Gold
    hears_after_box: bool = False

    def boxed(self, box: Text) -> Found:
        return Found(read_boxed(box.string, self.gold), "ok", "boxed", box.span())

    def announced(self, text: Text, tails: list[Text]) -> Found | None:
        for tail in reversed(tails):
            if (shown := read_stretch(tail.string, self.gold, is_anchored=True)) is not None:
                return Found(shown, "ok", "anchor", tail.span())
        return None

    def closing(self, text: Text) -> Found:
        if self.gold.kind not in ("truth", "letter", "words") and is_broken_off(text):
            return Found(None, "truncated", "none", None)
        for rule, part in _closing(text):
            if self.gold.kind not in ("truth", "words") and is_refusal(part.string):
                break
            if (shown := read_stretch(part.string, self.gold, is_anchored=False)) is not None:
                return Found(shown, "ok", rule, part.span())
        return Found(None, "no_answer", "none", None)


def _closing(text: Text) -> Iterator[tuple[str, Text]]:
    """Yield sentences from the last to the first, then the whole text for answers over several lines."""
    for part in reversed(list(sentences(without_checks(text)))):
        yield "sentence", part
    yield "whole", text.part(max(0, len(text.string) - _MAX_WHOLE), len(text.string))
