"""Mathematics answers, found and compared by the kind of the reference."""

from __future__ import annotations

import re
from collections.abc import Iterator

from flowinfer.results import Score
from flowinfer.tasks.answers.anchors import anchored, is_broken_off
from flowinfer.tasks.answers.boxes import boxed, ends_in_box
from flowinfer.tasks.answers.compare import is_same
from flowinfer.tasks.answers.corrections import corrected, revised
from flowinfer.tasks.answers.kinds import Gold, read_gold
from flowinfer.tasks.answers.readers import read_boxed, read_stretch
from flowinfer.tasks.answers.sentences import is_refusal, sentences, without_checks
from flowinfer.tasks.answers.text import Text

_MAX_WHOLE = 1_500


def judge_maths(text: Text, reference: str, question: str) -> Score:
    """Score an output against a reference of any kind; what follows a correction is heard first."""
    gold = read_gold(reference, question)
    score = _nothing("no_answer")
    for part in corrected(text, hears_denials=gold.kind not in ("truth", "words", "letter")):
        score = _judge(part, gold)
        if score.status == "ok" or (score.status == "truncated" and part is not text):
            break
    return score


def _judge(text: Text, gold: Gold) -> Score:
    box = _last_boxes(text)
    if ends_in_box(text):
        return _nothing("truncated")
    if box is not None:
        rest = revised(text, text.places.index(box.places[-1]) + 1)
        later = _judge(rest, gold) if rest is not None else None
        if later is not None and later.status == "ok":
            return later
        return _score("boxed", box, read_boxed(box.string, gold), gold)
    for tail in reversed(list(anchored(text))):
        shown = read_stretch(tail.string, gold, is_anchored=True)
        if shown is not None:
            return _score("anchor", tail, shown, gold)
    if gold.kind not in ("truth", "letter", "words") and is_broken_off(text):
        return _nothing("truncated")
    for rule, part in _closing(text):
        if gold.kind not in ("truth", "words") and is_refusal(part.string):
            break
        shown = read_stretch(part.string, gold, is_anchored=False)
        if shown is not None:
            return _score(rule, part, shown, gold)
    return _nothing("no_answer")


def _closing(text: Text) -> Iterator[tuple[str, Text]]:
    """Yield sentences from the last to the first, then the whole text for answers over several lines."""
    for part in reversed(list(sentences(without_checks(text)))):
        yield "sentence", part
    yield "whole", text.part(max(0, len(text.string) - _MAX_WHOLE), len(text.string))


_BETWEEN = re.compile(
    r"\}[\s$\\)(]*(?:text\{)?\s*(?:,|and|or|和|或|与|、|,\s*and)\s*\}?[\s$\\()]*(?P<name>[a-zA-Z]\s*=\s*)?\$?boxed\{"
)
_NAMED_BEFORE = re.compile(r"([a-zA-Z])\s*=\s*\\?$")


def _last_boxes(text: Text) -> Text | None:
    """Return the last box, with those right before it that it continues: \\boxed{2} and \\boxed{3}."""
    found = boxed(text)
    if not found:
        return None
    first = last = found[-1]
    at = text.places.index
    for earlier in reversed(found[:-1]):
        between = text.string[at(earlier.places[-1]) + 1 : at(first.places[0])]
        if not _BETWEEN.fullmatch(between.replace("\\boxed", "boxed")):
            break
        first = earlier
    if first is last:
        return last
    whole = text.part(at(first.places[0]), at(last.places[-1]) + 1)
    joined = _BETWEEN.sub(lambda match: f" , {match['name'] or ''}", whole.string.replace("\\boxed", "boxed"))
    before = _NAMED_BEFORE.search(text.string[: at(first.places[0])].removesuffix("\\boxed{"))
    joined = f"{before[1]} = {joined}" if before and "=" in joined else joined
    return Text(joined, [whole.places[0]] * (len(joined) - 1) + [whole.places[-1]])


def _score(rule: str, part: Text, shown: str, gold: Gold) -> Score:
    return Score(correct=is_same(shown, gold), extracted=shown, status="ok", rule=rule, span=part.span())


def _nothing(status: str) -> Score:
    if status == "truncated":
        return Score(correct=False, extracted=None, status="truncated", rule="none", span=None)
    return Score(correct=False, extracted=None, status="no_answer", rule="none", span=None)
