"""Signals: what a text is accepted by, computed from the results of the steps that wrote it and nothing else."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from flowinfer.language.samples import certainty, draws_left
from flowinfer.results import StepResult
from flowinfer.spec import Rule

Reader = Callable[[Sequence[str]], Sequence[str | None]]
"""Gives the answer of each text; None where it gives none."""

_SAID = re.compile(r"\b(?:yes|no)\b|是的?|否|不(?:是|正确|对)|没有|正确|对", re.IGNORECASE)
_YES = ("yes", "是", "是的", "正确", "对")


@dataclass(frozen=True)
class Trial:
    """How a candidate was judged."""

    value: float | None
    """Of the signal; None where the candidate was passed over because it could not be accepted."""
    is_accepted: bool = False
    skips: int = 0
    """Candidates after it that cannot be accepted either, whatever they say."""


@dataclass(frozen=True)
class Pick:
    """What routes say of a question, before anything runs."""

    scores: tuple[float, ...]
    """Of each member, how likely it is right."""
    member: int
    """The likeliest; of equals the cheapest, then the first."""


def by_text(texts: Sequence[str]) -> tuple[str | None, ...]:
    """Take each text for its own answer."""
    return tuple(text.strip() or None for text in texts)


def judged(
    rule: Rule, former: Sequence[StepResult], results: Sequence[StepResult], said: str | None, read: Reader
) -> Trial:
    """Judge a candidate.

    Args:
        rule: signal and threshold.
        former: of the candidate before it; none for the first.
        results: of the steps whose texts it is.
        said: what the model wrote that was asked about it, where the rule asks one.
        read: finds the answers of texts.
    """
    if rule.signal == "enough":
        counts = Counter(answer for answer in read([one.passed_on for one in results]) if answer is not None)
        value = certainty(counts)
        return Trial(value, value >= rule.at, 0 if value >= rule.at else draws_left(counts, rule.at) - 1)
    if rule.signal == "judge" and said is None:  # nobody is asked about the last one
        return Trial(None)
    value = _value(rule, former, results, said, read)
    return Trial(value, value >= rule.at)


def _value(
    rule: Rule, former: Sequence[StepResult], results: Sequence[StepResult], said: str | None, read: Reader
) -> float:
    match rule.signal:
        case "confidence" | "lead" | "agreement":
            return fmean(getattr(one, rule.signal) or 0.0 for one in results)
        case "judge":
            return float(says_yes(said or ""))
    answers = read([one.passed_on for one in results])
    counts = Counter(answer for answer in answers if answer is not None)
    most, votes = counts.most_common(1)[0] if counts else (None, 0)
    match rule.signal:
        case "votes":
            return votes / len(answers)
        case "agree":
            return float(votes == len(answers))
        case "unchanged":
            before = read([one.passed_on for one in former]) if former else ()
            return float(most is not None and _winner(before) == most)
    return float(votes > 0)  # answered


def _winner(answers: Sequence[str | None]) -> str | None:
    counts = Counter(answer for answer in answers if answer is not None)
    return counts.most_common(1)[0][0] if counts else None


def says_yes(text: str) -> bool:
    """Return whether the last yes or no of a text, English or Chinese, is a yes."""
    found = _SAID.findall(text)
    return bool(found) and found[-1].lower() in _YES
