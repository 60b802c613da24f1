"""Paired tests: each path against the best single model, and against its own reversal."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from flowinfer.report.evidence import Evidence, QuestionSet, Wiring, best
from flowinfer.runs.stats import Paired, holm, paired

Kind = Literal["single", "reversal"]
_SWAPPED = {"SI": "SI", "PI": "PI", "S2P": "P2S", "P2S": "S2P"}
ALL = "all sets"


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


def comparisons(evidence: Evidence) -> list[Comparison]:
    """Return all comparisons, Holm-corrected over the paths of one kind on one question set."""
    places: list[QuestionSet | None] = list(evidence.datasets)
    found: list[Comparison] = []
    for place in [*places, None] if len(places) > 1 else places:
        pairs: dict[Kind, list[tuple[Wiring, Wiring]]] = {
            "single": _against_single(evidence, place),
            "reversal": reversals(evidence, evidence.wirings),
        }
        for kind, wirings in pairs.items():
            made = [one for pair in wirings if (one := _compare(evidence, kind, *pair, place))]
            adjusted = holm([one.counts.p_value for one in made])
            found += [replace(one, p_holm=p_value) for one, p_value in zip(made, adjusted, strict=True)]
    return found


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
    cells = [cell for one in evidence.datasets if (cell := evidence.cell(wiring, one))]
    return {f"{cell.dataset}/{question}": right for cell in cells for question, right in cell.verdicts.items()}


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


def reversals(evidence: Evidence, wirings: Sequence[Wiring]) -> list[tuple[Wiring, Wiring]]:
    """Return each of some paths with its reversal, each pair once."""
    pairs: list[tuple[Wiring, Wiring]] = []
    for wiring in wirings:
        other = reversal(evidence, wiring)
        if other and other.key != wiring.key and (other, wiring) not in pairs:
            pairs.append((wiring, other))
    return pairs


def counts(evidence: Evidence, first: Wiring, second: Wiring) -> Paired:
    """Compare two paths on the questions of all sets that both answered."""
    return paired(verdicts(evidence, first, None), verdicts(evidence, second, None))


def _against_single(evidence: Evidence, dataset: QuestionSet | None) -> list[tuple[Wiring, Wiring]]:
    single = best_single(evidence, dataset)
    return [(wiring, single) for wiring in evidence.wirings if single and wiring.strategy != "single"]


def _compare(
    evidence: Evidence, kind: Kind, first: Wiring, second: Wiring, dataset: QuestionSet | None
) -> Comparison | None:
    one, two = verdicts(evidence, first, dataset), verdicts(evidence, second, dataset)
    if not any(question in two for question in one):
        return None
    gained = tuple(question for question, right in one.items() if right and two.get(question) is False)
    lost = tuple(question for question, right in one.items() if not right and two.get(question))
    return Comparison(kind, first, second, dataset, gained, lost, paired(one, two))
