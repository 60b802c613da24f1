"""Does the order of the models matter: hypothesis 1 for SI, and the independence of PI."""

from __future__ import annotations

from collections.abc import Sequence

from flowinfer.report import compare
from flowinfer.report.claim import LEVEL, Finding, Verdict, p_text, percent
from flowinfer.report.evidence import Cell, Evidence, QuestionSet, Wiring
from flowinfer.report.inference import Cochran, cochran_q
from flowinfer.report.strategies import deviation
from flowinfer.runs.stats import holm, paired

_ENOUGH = 24
"""Verdicts on telling questions from which on Q follows its chi-square well (Tate and Brown 1970)."""


def serial_depends_on_order(evidence: Evidence) -> Finding | None:
    """Hypothesis 1: what SI reaches depends on the order of its models. Cochran's Q over the orders."""
    wirings = _orders(evidence, "SI")
    if len(wirings) < 2:
        return None
    sentences = []
    tested = _tests(evidence, wirings)
    for place, test, _ in tested:
        sentences.append(f"{place}: {_range(evidence, wirings, place)}; {_q(test)}.")
    pairs = _reversals(evidence, wirings)
    if pairs:
        adjusted = holm([p_value for *_, p_value in pairs])
        least = min(range(len(pairs)), key=lambda index: adjusted[index])
        first, second, gained, lost, _ = pairs[least]
        told = sum(p_value < LEVEL for p_value in adjusted)
        sentences.append(
            f"{told} of {len(pairs)} orders differ from their own reversal over all questions; most unequal: "
            f"{first.name} against {second.name}, {gained} to {lost} questions (exact McNemar, Holm "
            f"{p_text(adjusted[least])})."
        )
    whole = tested[-1][1] if tested else None
    verdict: Verdict = "holds" if whole and whole.p_value < LEVEL else "cannot be told"
    if whole is None:
        sentences.append(f"0 question sets were answered whole by all {len(wirings)} orders, so nothing is tested.")
    return Finding("si-order", "Hypothesis 1: what SI reaches depends on the order", verdict, tuple(sentences))


def parallel_ignores_order(evidence: Evidence) -> Finding | None:
    """PI does not depend on the order: the same texts, question by question, else verdicts by Cochran's Q."""
    wirings = _orders(evidence, "PI")
    if len(wirings) < 2:
        return None
    same = num = 0
    for dataset in evidence.datasets:
        cells = [cell for wiring in wirings if (cell := evidence.whole(wiring, dataset))]
        if len(cells) == len(wirings):
            equal = _equal_texts(cells)
            same, num = same + sum(equal), num + len(equal)
    sentences = [f"{same} of {num} questions have the same answer, letter by letter, in all {len(wirings)} orders."]
    tested = _tests(evidence, wirings)
    sentences += [f"{place}: {_range(evidence, wirings, place)}; {_q(test)}." for place, test, _ in tested]
    verdict: Verdict = "cannot be told"
    if num and same == num:
        verdict = "holds"
    elif tested and tested[-1][1].p_value < LEVEL:
        verdict = "does not hold"
    elif num:
        sentences.append(
            f"{num - same} answers differ between orders, but no test at the level {LEVEL} finds the verdicts unequal."
        )
    return Finding("pi-order", "PI does not depend on the order", verdict, tuple(sentences))


def _orders(evidence: Evidence, strategy: str) -> list[Wiring]:
    return [wiring for wiring in evidence.wirings if wiring.strategy == strategy]


def _tests(evidence: Evidence, wirings: Sequence[Wiring]) -> list[tuple[str, Cochran, int]]:
    """Return Cochran's Q on each question set that all orders answered, and over all of them together (last)."""
    rows: list[list[bool]] = []
    found = []
    for dataset in evidence.datasets:
        own = _rows(evidence, wirings, dataset)
        if own:
            rows += own
            found.append((dataset.label, cochran_q(own), len(own)))
    if len(found) > 1:
        found.append((compare.ALL, cochran_q(rows), len(rows)))
    return found


def _rows(evidence: Evidence, wirings: Sequence[Wiring], dataset: QuestionSet) -> list[list[bool]]:
    cells = [cell for wiring in wirings if (cell := evidence.whole(wiring, dataset))]
    if len(cells) < len(wirings):
        return []
    common = [question for question in cells[0].verdicts if all(question in cell.verdicts for cell in cells)]
    return [[cell.verdicts[question] for cell in cells] for question in common]


def _range(evidence: Evidence, wirings: Sequence[Wiring], place: str) -> str:
    """Return from where to where the orders reach, and their deviation."""
    sets = [one for one in evidence.datasets if place in (one.label, compare.ALL)]
    reached: list[tuple[float, str]] = []
    for wiring in wirings:
        cells = [cell for one in sets if (cell := evidence.whole(wiring, one))]
        num = sum(cell.n for cell in cells)
        reached.append((sum(cell.correct for cell in cells) / num if num else 0.0, wiring.name))
    low, high = min(reached), max(reached)
    spread = deviation([value for value, _ in reached]) or 0.0
    if low[0] == high[0]:
        return f"all {len(wirings)} orders reach {percent(low[0])}"
    return f"from {percent(low[0])} ({low[1]}) to {percent(high[0])} ({high[1]}), deviation {100 * spread:.1f} points"


def _q(test: Cochran) -> str:
    if not test.num_telling:
        return f"no question tells the orders apart (0 telling questions, {test.degrees} degrees)"
    rough = ", a rough approximation at so few" if test.num_telling * (test.degrees + 1) < _ENOUGH else ""
    counts = f"{test.degrees} degrees, {test.num_telling} telling questions"
    return f"Cochran's Q = {test.q:.2f}, {counts}, {p_text(test.p_value)}{rough}"


def _reversals(evidence: Evidence, wirings: Sequence[Wiring]) -> list[tuple[Wiring, Wiring, int, int, float]]:
    found: list[tuple[Wiring, Wiring, int, int, float]] = []
    seen: set[str] = set()
    for wiring in wirings:
        other = compare.reversal(evidence, wiring)
        if other is None or other.key in seen or other.key == wiring.key:
            continue
        seen.add(wiring.key)
        counts = paired(compare.verdicts(evidence, wiring, None), compare.verdicts(evidence, other, None))
        found.append((wiring, other, counts.first_only, counts.second_only, counts.p_value))
    return found


def _equal_texts(cells: Sequence[Cell]) -> list[bool]:
    common = [question for question in cells[0].by_id if all(question in cell.by_id for cell in cells)]
    return [len({cell.by_id[question].trace.answer for cell in cells}) == 1 for question in common]
