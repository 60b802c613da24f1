"""Paired tests: each path against the best single model, and against its own reversal."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from flowinfer.report.evidence import Evidence, QuestionSet, Wiring, best
from flowinfer.report.table import Column, Entry, Number, Table, Text
from flowinfer.runs.stats import Paired, holm, paired

Kind = Literal["single", "reversal"]
_SWAPPED = {"SI": "SI", "PI": "PI", "S2P": "P2S", "P2S": "S2P"}
ALL = "all sets"
LEVEL = 0.05


@dataclass(frozen=True)
class Comparison:
    """A path against another on the same questions."""

    kind: Kind
    wiring: Wiring
    other: Wiring
    dataset: QuestionSet | None
    """None: the questions of all sets together."""
    gained: tuple[str, ...]
    """Questions that only the path got right."""
    lost: tuple[str, ...]
    """Questions that only the other got right."""
    counts: Paired
    p_holm: float = 1.0

    @property
    def n(self) -> int:
        """Return how many questions both answered."""
        counts = self.counts
        return counts.both + counts.first_only + counts.second_only + counts.neither

    @property
    def points(self) -> float:
        """Return the path's accuracy less the other's."""
        return (self.counts.first_only - self.counts.second_only) / self.n if self.n else 0.0


def comparisons(evidence: Evidence) -> list[Comparison]:
    """Return all comparisons, Holm-corrected over the paths of one kind on one question set."""
    pairs: list[tuple[Kind, list[tuple[Wiring, Wiring]], QuestionSet | None]] = []
    places: list[QuestionSet | None] = list(evidence.datasets)
    for place in [*places, None] if len(places) > 1 else places:
        pairs.append(("single", _against_single(evidence, place), place))
        pairs.append(("reversal", _against_reversal(evidence), place))
    found: list[Comparison] = []
    for kind, wirings, place in pairs:
        made = [_compare(evidence, kind, first, second, place) for first, second in wirings]
        known = [one for one in made if one is not None and one.n > 0]
        adjusted = holm([one.counts.p_value for one in known])
        found += [replace(one, p_holm=p_value) for one, p_value in zip(known, adjusted, strict=True)]
    return found


def table(found: Sequence[Comparison], kind: Kind) -> Table | None:
    """Return the comparisons of a kind as a table."""
    rows = [_row(one) for one in found if one.kind == kind]
    if not rows:
        return None
    columns = [
        Column("task", "task"),
        Column("strategy", "strategy"),
        Column("path", "path"),
        Column("against", "against"),
        Column("n", "questions"),
        Column("gained", "only the path right"),
        Column("lost", "only the other right"),
        Column("points", "points"),
        Column("p", "McNemar p"),
        Column("p_holm", "p, Holm"),
    ]
    notes = ["exact McNemar test on the questions that both answered; Holm's correction over the rows of one task"]
    if kind == "single":
        title = "Against the best single model"
        notes.append("best single: the most accurate on these same questions, which favours it")
    else:
        title = "Against the reversal"
        notes.append("reversal: the flow read from right to left, so a -> (b | c) meets (c | b) -> a")
    caption = "Each path paired question by question."
    return Table(f"tests-{kind}", title, caption, tuple(columns), tuple(rows), tuple(notes), is_long=True)


def reversal(evidence: Evidence, wiring: Wiring) -> Wiring | None:
    """Return the path whose flow is this one's read from right to left."""
    if wiring.strategy not in _SWAPPED:
        return None
    wanted = (_SWAPPED[wiring.strategy], wiring.models[::-1])
    return next((other for other in evidence.wirings if (other.strategy, other.models) == wanted), None)


def verdicts(evidence: Evidence, wiring: Wiring, dataset: QuestionSet | None) -> Mapping[str, bool]:
    """Return question -> right; for all sets together the question is named with its set."""
    if dataset is not None:
        cell = evidence.cell(wiring, dataset)
        return cell.verdicts if cell else {}
    return {
        f"{one.key}/{question}": is_right
        for one in evidence.datasets
        if (cell := evidence.cell(wiring, one))
        for question, is_right in cell.verdicts.items()
    }


def best_single(evidence: Evidence, dataset: QuestionSet | None) -> Wiring | None:
    """Return the most accurate single model, over all sets by its mean."""
    if dataset is not None:
        return best(evidence, evidence.of("single"), dataset)
    means: dict[str, float] = {}
    for wiring in evidence.of("single"):
        cells = [evidence.whole(wiring, one) for one in evidence.datasets]
        shares = [cell.accuracy for cell in cells if cell and cell.accuracy is not None]
        if len(shares) == len(evidence.datasets):
            means[wiring.key] = statistics.fmean(shares)
    return max(evidence.of("single"), key=lambda w: means.get(w.key, -1.0)) if means else None


def _against_single(evidence: Evidence, dataset: QuestionSet | None) -> list[tuple[Wiring, Wiring]]:
    single = best_single(evidence, dataset)
    if single is None:
        return []
    return [(wiring, single) for wiring in evidence.wirings if wiring.strategy != "single"]


def _against_reversal(evidence: Evidence) -> list[tuple[Wiring, Wiring]]:
    pairs: list[tuple[Wiring, Wiring]] = []
    for wiring in evidence.wirings:
        other = reversal(evidence, wiring)
        if other and other.key != wiring.key and (other, wiring) not in pairs:
            pairs.append((wiring, other))
    return pairs


def _compare(
    evidence: Evidence, kind: Kind, first: Wiring, second: Wiring, dataset: QuestionSet | None
) -> Comparison | None:
    one, two = verdicts(evidence, first, dataset), verdicts(evidence, second, dataset)
    if not one or not two:
        return None
    common = [question for question in one if question in two]
    gained = tuple(question for question in common if one[question] and not two[question])
    lost = tuple(question for question in common if two[question] and not one[question])
    return Comparison(kind, first, second, dataset, gained, lost, paired(one, two))


def _row(one: Comparison) -> tuple[Entry, ...]:
    place = f"#diff/{one.dataset.key}/{one.wiring.key}/{one.other.key}" if one.dataset else None
    return (
        Text(one.dataset.label if one.dataset else ALL),
        Text(one.wiring.strategy or "other"),
        Text(one.wiring.name, is_flow=True, target=place),
        Text(one.other.name, is_flow=True),
        Number(one.n, "count"),
        Number(one.counts.first_only, "count"),
        Number(one.counts.second_only, "count"),
        Number(one.points, "points"),
        Number(one.counts.p_value, "p"),
        Number(one.p_holm, "p", is_marked=one.p_holm < LEVEL),
    )
