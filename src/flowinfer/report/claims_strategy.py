"""Which strategy wins: composites above singles, S2P for knowledge, P2S for arithmetic."""

from __future__ import annotations

from flowinfer.paper.paths import Strategy
from flowinfer.report import compare
from flowinfer.report.claim import (
    LEVEL,
    Finding,
    Verdict,
    by_sign,
    difference,
    difference_text,
    mean_right,
    p_text,
    percent,
)
from flowinfer.report.evidence import Evidence, QuestionSet, best
from flowinfer.report.inference import Difference
from flowinfer.runs.stats import holm, paired


def composites_win(evidence: Evidence) -> Finding | None:
    """Composites above singles on average; what they are beside the best single and SI and PI is said with it."""
    composites, singles = evidence.of("S2P", "P2S"), evidence.of("single")
    if not composites or not singles:
        return None
    claim = "The composites S2P and P2S are above the single models on average"
    mine = mean_right(evidence, composites, evidence.datasets)
    found = difference(mine, mean_right(evidence, singles, evidence.datasets))
    if found is None:
        return Finding("composites", claim, "cannot be told", (_nothing(len(mine)),))
    count = f"Mean of {len(composites)} composite paths less mean of {len(singles)} singles"
    sentences = [f"{count}: {difference_text(found)}."]
    top = compare.best_single(evidence, None)
    if top and (over := difference(mine, mean_right(evidence, [top], evidence.datasets))):
        sentences.append(
            f"Less the best single ({top.name}, the best on these same questions): {difference_text(over)}."
        )
    for kind in ("SI", "PI"):
        others = evidence.of(kind)
        if others and (over := difference(mine, mean_right(evidence, others, evidence.datasets))):
            sentences.append(f"Less the mean of {len(others)} {kind} paths: {difference_text(over)}.")
    return Finding("composites", claim, by_sign(found), tuple(sentences))


def serial_first_for_knowledge(evidence: Evidence) -> Finding | None:
    """S2P is the strategy for knowledge (C-Eval)."""
    return _favourite(evidence, "S2P", "ceval", "knowledge-s2p", "S2P is best for knowledge (C-Eval)")


def parallel_first_for_arithmetic(evidence: Evidence) -> Finding | None:
    """P2S is the strategy for arithmetic (GSM8K)."""
    return _favourite(evidence, "P2S", "gsm8k", "arithmetic-p2s", "P2S is best for arithmetic (GSM8K)")


def _favourite(evidence: Evidence, kind: Strategy, task: str, key: str, claim: str) -> Finding | None:
    """Compare a strategy's mean over its paths with each other strategy's on a task; Holm over the comparisons."""
    others = [other for other in evidence.collaborations if other != kind]
    if not evidence.of(kind) or not others:
        return None
    sets = [dataset for dataset in evidence.datasets if dataset.task == task]
    mine = mean_right(evidence, evidence.of(kind), sets)
    tests: list[tuple[Strategy, Difference]] = []
    for other in others:
        if found := difference(mine, mean_right(evidence, evidence.of(other), sets)):
            tests.append((other, found))
    if not tests:
        return Finding(key, claim, "cannot be told", (_nothing(len(mine)),))
    adjusted = holm([found.p_value for _, found in tests])
    sentences = [
        f"{kind} less {other}, means over paths: {difference_text(found)}; Holm {p_text(p_value)}."
        for (other, found), p_value in zip(tests, adjusted, strict=True)
    ]
    for dataset in sets:
        sentences += _best_paths(evidence, kind, others, dataset)
    return Finding(key, claim, _judge(tests, adjusted, len(others)), tuple(sentences))


def _judge(tests: list[tuple[Strategy, Difference]], adjusted: tuple[float, ...], num_others: int) -> Verdict:
    """The claim holds if it beats every other strategy, and does not if any beats it."""
    if any(found.mean < 0 and p < LEVEL for (_, found), p in zip(tests, adjusted, strict=True)):
        return "does not hold"
    wins = sum(found.mean > 0 and p < LEVEL for (_, found), p in zip(tests, adjusted, strict=True))
    return "holds" if wins == num_others == 3 else "cannot be told"


def _best_paths(evidence: Evidence, kind: Strategy, others: list[Strategy], dataset: QuestionSet) -> list[str]:
    """Say what the best paths reach, which is what the paper compares, with a paired test against the next."""
    mine = best(evidence, evidence.of(kind), dataset)
    rivals = [wiring for other in others for wiring in evidence.of(other)]
    theirs = best(evidence, rivals, dataset)
    if mine is None or theirs is None:
        return []
    first, second = evidence.cells[mine.key, dataset.key], evidence.cells[theirs.key, dataset.key]
    counts = paired(first.verdicts, second.verdicts)
    return [
        f"Best paths on {dataset.label}, chosen on these same questions: {kind} {mine.name} "
        f"{percent(first.accuracy or 0)}, best of the others {theirs.strategy} {theirs.name} "
        f"{percent(second.accuracy or 0)}; {counts.first_only} to {counts.second_only} questions "
        f"(exact McNemar, {p_text(counts.p_value)}, n = {first.n})."
    ]


def _nothing(num: int) -> str:
    return f"{num} questions were answered whole by all paths that the claim compares: too few for a test."
