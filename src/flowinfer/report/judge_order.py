"""Does the order of the models matter: Cochran's Q over the orders, and each order against its reversal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flowinfer.paper.claims import Claim
from flowinfer.paper.tables import LEVEL
from flowinfer.report import compare
from flowinfer.report.evidence import Cell, Evidence, Wiring, deviation
from flowinfer.report.inference import Cochran, cochran_q
from flowinfer.report.judged import Judged, Verdict, p_text, percent
from flowinfer.runs.stats import holm

_ENOUGH = 24
"""Verdicts on telling questions from which on Q follows its chi-square well (Tate and Brown 1970)."""


@dataclass(frozen=True)
class _Orders:
    """A strategy's orders on the question sets that all of them answered whole."""

    wirings: tuple[Wiring, ...]
    sets: dict[str, list[Cell]]
    """Label -> a cell for each order."""

    def tests(self) -> list[tuple[Cochran, str]]:
        """Return Cochran's Q on each question set, and over all of them together (last), with a sentence on it."""
        rows = {label: _rows(cells) for label, cells in self.sets.items()}
        parts = {label: [self.sets[label]] for label in rows}
        if len(rows) > 1:
            rows[compare.ALL] = [row for own in rows.values() for row in own]
            parts[compare.ALL] = list(self.sets.values())
        found = [(label, cochran_q(own)) for label, own in rows.items() if own]
        return [(test, f"{label}: {self._range(parts[label])}; {_q(test)}.") for label, test in found]

    def _range(self, sets: Sequence[Sequence[Cell]]) -> str:
        """Return from where to where the orders reach, and their deviation."""
        reached = []
        for wiring, cells in zip(self.wirings, zip(*sets, strict=True), strict=True):
            reached.append((sum(cell.correct for cell in cells) / sum(cell.n for cell in cells), wiring.name))
        low, high = min(reached), max(reached)
        if low[0] == high[0]:
            return f"all {len(self.wirings)} orders reach {percent(low[0])}"
        spread = 100 * (deviation([value for value, _ in reached]) or 0.0)
        return f"from {percent(low[0])} ({low[1]}) to {percent(high[0])} ({high[1]}), deviation {spread:.1f} points"


def differ(evidence: Evidence, claim: Claim) -> Judged | None:
    """What a strategy reaches depends on the order of its models."""
    orders = _orders(evidence, claim)
    if len(orders.wirings) < 2:
        return None
    tested = orders.tests()
    sentences = [sentence for _, sentence in tested] + _reversals(evidence, orders.wirings)
    if not tested:
        num = len(orders.wirings)
        sentences.append(f"0 question sets were answered whole by all {num} orders, so nothing is tested.")
    is_told = bool(tested) and tested[-1][0].p_value < LEVEL
    return Judged("holds" if is_told else "cannot be told", tuple(sentences))


def agree(evidence: Evidence, claim: Claim) -> Judged | None:
    """A strategy does not depend on the order: the same texts, question by question, else verdicts by Cochran's Q."""
    orders = _orders(evidence, claim)
    if len(orders.wirings) < 2:
        return None
    equal = [is_equal for cells in orders.sets.values() for is_equal in _equal_texts(cells)]
    same, num, tested = sum(equal), len(equal), orders.tests()
    in_all = f"in all {len(orders.wirings)} orders"
    sentences = [f"{same} of {num} questions have the same answer, letter by letter, {in_all}."]
    sentences += [sentence for _, sentence in tested]
    verdict: Verdict = "cannot be told"
    if num and same == num:
        verdict = "holds"
    elif tested and tested[-1][0].p_value < LEVEL:
        verdict = "does not hold"
    elif num:
        sentences.append(
            f"{num - same} answers differ between orders, but no test at the level {LEVEL} finds the verdicts unequal."
        )
    return Judged(verdict, tuple(sentences))


def _orders(evidence: Evidence, claim: Claim) -> _Orders:
    wirings = evidence.of(*claim.kinds)
    sets = {one.label: [cell for w in wirings if (cell := evidence.whole(w, one))] for one in evidence.datasets}
    return _Orders(wirings, {label: cells for label, cells in sets.items() if len(cells) == len(wirings)})


def _rows(cells: Sequence[Cell]) -> list[list[bool]]:
    common = [question for question in cells[0].verdicts if all(question in cell.verdicts for cell in cells)]
    return [[cell.verdicts[question] for cell in cells] for question in common]


def _equal_texts(cells: Sequence[Cell]) -> list[bool]:
    answers = [{record.question.id: record.trace.answer for record in cell.records} for cell in cells]
    common = [question for question in answers[0] if all(question in own for own in answers)]
    return [len({own[question] for own in answers}) == 1 for question in common]


def _q(test: Cochran) -> str:
    if not test.num_telling:
        return f"no question tells the orders apart (0 telling questions, {test.degrees} degrees)"
    rough = ", a rough approximation at so few" if test.num_telling * (test.degrees + 1) < _ENOUGH else ""
    counts = f"{test.degrees} degrees, {test.num_telling} telling questions"
    return f"Cochran's Q = {test.q:.2f}, {counts}, {p_text(test.p_value)}{rough}"


def _reversals(evidence: Evidence, wirings: Sequence[Wiring]) -> list[str]:
    """Return a sentence on the order that differs most from its own reversal, over all questions."""
    pairs = compare.reversals(evidence, wirings)
    if not pairs:
        return []
    counts = [compare.counts(evidence, first, second) for first, second in pairs]
    adjusted = holm([one.p_value for one in counts])
    least = min(range(len(pairs)), key=lambda index: adjusted[index])
    told = sum(p_value < LEVEL for p_value in adjusted)
    (first, second), most = pairs[least], counts[least]
    return [
        f"{told} of {len(pairs)} orders differ from their own reversal over all questions; most unequal: "
        f"{first.name} against {second.name}, {most.first_only} to {most.second_only} questions (exact McNemar, Holm "
        f"{p_text(adjusted[least])})."
    ]
