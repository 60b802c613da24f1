"""Which strategy wins: paired differences of means over paths, question by question."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from flowinfer.paper.claims import Claim
from flowinfer.paper.paths import Strategy
from flowinfer.paper.tables import LEVEL
from flowinfer.report import compare
from flowinfer.report.evidence import Evidence, QuestionSet, Wiring, best
from flowinfer.report.inference import Difference, paired_difference
from flowinfer.report.judged import Judged, Verdict, p_text, percent
from flowinfer.runs.stats import holm, paired


def above_singles(evidence: Evidence, claim: Claim) -> Judged | None:
    """Some strategies above singles on average; what they are beside the best single and the others is said with it."""
    paths, singles = evidence.of(*claim.kinds), evidence.of("single")
    if not paths or not singles:
        return None
    mine = _mean_right(evidence, paths, evidence.datasets)
    found = _less(mine, _mean_right(evidence, singles, evidence.datasets))
    if found is None:
        return _nothing(mine)
    sentences = [f"Mean of {len(paths)} composite paths less mean of {len(singles)} singles: {_text(found)}."]
    others: dict[str, Sequence[Wiring]] = {}
    if top := compare.best_single(evidence, None):
        others[f"Less the best single ({top.name}, the best on these same questions)"] = [top]
    for kind in evidence.collaborations:
        if kind not in claim.kinds:
            others[f"Less the mean of {len(evidence.of(kind))} {kind} paths"] = evidence.of(kind)
    for start, wirings in others.items():
        if over := _less(mine, _mean_right(evidence, wirings, evidence.datasets)):
            sentences.append(f"{start}: {_text(over)}.")
    told: Verdict = "holds" if found.mean > 0 else "does not hold"
    return Judged("cannot be told" if found.p_value >= LEVEL else told, tuple(sentences))


def above_the_others(evidence: Evidence, claim: Claim) -> Judged | None:
    """Compare a strategy's mean over its paths with each other strategy's on a task; Holm over the comparisons."""
    (kind,) = claim.kinds
    others = [other for other in evidence.collaborations if other != kind]
    if not evidence.of(kind) or not others:
        return None
    sets = [dataset for dataset in evidence.datasets if dataset.task == claim.task]
    mine = _mean_right(evidence, evidence.of(kind), sets)
    tests: dict[Strategy, Difference] = {}
    for other in others:
        if found := _less(mine, _mean_right(evidence, evidence.of(other), sets)):
            tests[other] = found
    if not tests:
        return _nothing(mine)
    adjusted = holm([found.p_value for found in tests.values()])
    sentences = [
        f"{kind} less {other}, means over paths: {_text(found)}; Holm {p_text(p_value)}."
        for (other, found), p_value in zip(tests.items(), adjusted, strict=True)
    ]
    for dataset in sets:
        sentences += _best_paths(evidence, kind, others, dataset)
    told = [found.mean > 0 for found, p in zip(tests.values(), adjusted, strict=True) if p < LEVEL]
    is_above_all = len(told) == len(others) == 3  # all other strategies of the paper
    verdict: Verdict = "does not hold" if not all(told) else "holds" if is_above_all else "cannot be told"
    return Judged(verdict, tuple(sentences))


def _best_paths(evidence: Evidence, kind: Strategy, others: Sequence[Strategy], dataset: QuestionSet) -> list[str]:
    """Say what the best paths reach, which is what the paper compares, with a paired test against the next."""
    mine, theirs = best(evidence, evidence.of(kind), dataset), best(evidence, evidence.of(*others), dataset)
    if mine is None or theirs is None:
        return []
    first, second = evidence.cells[mine.key, dataset.key], evidence.cells[theirs.key, dataset.key]
    counts = paired(first.verdicts, second.verdicts)
    return [
        f"Best paths on {dataset.label}, chosen on these same questions: {kind} {mine.name} "
        f"{percent(first.accuracy)}, best of the others {theirs.strategy} {theirs.name} "
        f"{percent(second.accuracy)}; {counts.first_only} to {counts.second_only} questions "
        f"(exact McNemar, {p_text(counts.p_value)}, n = {first.n})."
    ]


def _mean_right(evidence: Evidence, wirings: Sequence[Wiring], datasets: Sequence[QuestionSet]) -> dict[str, float]:
    """Return question -> mean of the verdicts of some paths, over the sets that all of them answered whole."""
    found: dict[str, float] = {}
    for dataset in datasets:
        verdicts = [cell.verdicts for wiring in wirings if (cell := evidence.whole(wiring, dataset))]
        if verdicts and len(verdicts) == len(wirings):
            for question in verdicts[0]:
                if all(question in one for one in verdicts):
                    found[f"{dataset.key}/{question}"] = statistics.fmean(one[question] for one in verdicts)
    return found


def _less(first: dict[str, float], second: dict[str, float]) -> Difference | None:
    """Return the mean of first less second over the questions of both."""
    return paired_difference([first[question] - second[question] for question in first if question in second])


def _text(found: Difference) -> str:
    mean, low, high = (f"{100 * value:+.1f}" for value in (found.mean, found.low, found.high))
    return f"{mean} points, 95 % interval {low} to {high} (paired t over {found.n} questions, {p_text(found.p_value)})"


def _nothing(mine: dict[str, float]) -> Judged:
    said = f"{len(mine)} questions were answered whole by all paths that the claim compares: too few for a test."
    return Judged("cannot be told", (said,))
