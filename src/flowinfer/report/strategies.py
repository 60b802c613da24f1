"""The paper's tables 4, 8, 9 and 10: strategies by task, over paths, best path and mean."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

from flowinfer.paper.paths import Strategy
from flowinfer.report import paper, scores
from flowinfer.report.compare import LEVEL, Comparison
from flowinfer.report.evidence import Evidence, QuestionSet, Wiring, best
from flowinfer.report.scores import Against
from flowinfer.report.table import Column, Entry, Number, Reached, Table, Text, marked_best

_TASK = Column("task", "task")
_TEST_NOTE = (
    "p: exact McNemar test against the best single; Holm's correction over all paths on the task, from which the best "
    "were chosen"
)


def strategies_by_task(evidence: Evidence, against: Against) -> Table | None:
    """Return table 4: singles, their mean (the baseline), and each strategy's best path, by task."""
    singles, kinds = evidence.of("single"), evidence.collaborations
    if not singles and not kinds:
        return None
    columns = [_TASK, *(Column(wiring.name, wiring.name) for wiring in singles)]
    columns += [Column("baseline", "mean of singles")] if singles else []
    columns += [Column(kind, f"{kind}, best path") for kind in kinds]
    rows: list[list[Reached]] = [_by_task(evidence, dataset, against) for dataset in evidence.datasets]
    names = [dataset.label for dataset in evidence.datasets]
    if len(rows) > 1:
        rows.append([scores.over_sets(column) for column in zip(*rows, strict=True)])
        names.append("mean")
        if against.is_paper:
            rows[-1] = _with_paper_means(evidence, rows[-1])
    return Table(
        "table-4-strategies",
        "Strategies by task",
        "Accuracy in %, its 95 % interval and number of questions, seconds per question (the paper's table 4).",
        tuple(columns),
        tuple((Text(name), *marked_best(row)) for name, row in zip(names, rows, strict=True)),
        (scores.BEST_NOTE, scores.MEAN_NOTE, *([paper.NOTE] if against.is_paper else [])),
    )


def _by_task(evidence: Evidence, dataset: QuestionSet, against: Against) -> list[Reached]:
    singles = evidence.of("single")
    row = [scores.of_cell(evidence.whole(wiring, dataset)) for wiring in singles]
    if against.is_paper:
        row = [
            scores.with_paper(entry, paper.single(wiring.models[0], dataset.task))
            for entry, wiring in zip(row, singles, strict=True)
        ]
    if singles:
        mean = scores.over_paths(evidence, singles, dataset)
        has_paper = against.is_paper and scores.has_papers_models(evidence)
        row.append(scores.with_paper(mean, paper.baseline(dataset.task)) if has_paper else mean)
    return row + [scores.of_best(evidence, kind, dataset, against) for kind in evidence.collaborations]


def _with_paper_means(evidence: Evidence, row: Sequence[Reached]) -> list[Reached]:
    is_whole = {dataset.task for dataset in evidence.datasets} == {"gsm8k", "ceval", "mathematics"}
    if not is_whole or not scores.has_papers_models(evidence):
        return list(row)
    cells = [paper.single(wiring.models[0], "mean") for wiring in evidence.of("single")]
    cells += [paper.baseline("mean")] if cells else []
    cells += [paper.best(kind, "mean") for kind in evidence.collaborations]
    return [scores.with_paper(entry, cell) for entry, cell in zip(row, cells, strict=True)]


def gains(evidence: Evidence, compared: Sequence[Comparison]) -> Table | None:
    """Return the differences of table 4: each strategy's best path less the singles' mean and the best single.

    Args:
        compared: all paths against the best single: its correction over all of them also covers the choice of the best.
    """
    if not evidence.of("single") or not evidence.collaborations:
        return None
    tests = {(one.wiring.key, one.dataset.key): one for one in compared if one.kind == "single" and one.dataset}
    rows = [
        row
        for dataset in evidence.datasets
        for kind in evidence.collaborations
        if (row := _gain(evidence, kind, dataset, tests)) is not None
    ]
    columns = [
        _TASK,
        Column("strategy", "strategy"),
        Column("path", "best path"),
        Column("gain_over_mean", "points over the mean of singles"),
        Column("seconds_over_mean", "seconds less the mean of singles"),
        Column("best_single", "best single"),
        Column("gain_over_best", "points over the best single"),
        Column("p", "McNemar p"),
        Column("p_holm", "p, Holm"),
    ]
    return Table(
        "table-4-gains",
        "Gains over the baseline",
        "Best path of each strategy less the mean of the singles and the best single, on the same questions.",
        tuple(columns),
        tuple(rows),
        (scores.BEST_NOTE, _TEST_NOTE),
    )


def _gain(
    evidence: Evidence, kind: Strategy, dataset: QuestionSet, tests: Mapping[tuple[str, str], Comparison]
) -> tuple[Entry, ...] | None:
    chosen = best(evidence, evidence.of(kind), dataset)
    test = tests.get((chosen.key, dataset.key)) if chosen else None
    if chosen is None or test is None:
        return None
    mine, mean = evidence.cells[chosen.key, dataset.key], scores.over_paths(evidence, evidence.of("single"), dataset)
    is_comparable = mine.accuracy is not None and mean.accuracy is not None and mean.remark is None
    gain = (mine.accuracy or 0.0) - (mean.accuracy or 0.0) if is_comparable else None
    longer = None if mine.seconds is None or mean.seconds is None else mine.seconds - mean.seconds
    return (
        Text(dataset.label),
        Text(kind),
        Text(chosen.name, is_flow=True),
        Number(gain, "points"),
        Number(longer, "seconds"),
        Text(test.other.name),
        Number(test.points, "points"),
        Number(test.counts.p_value, "p"),
        Number(test.p_holm, "p", is_marked=test.p_holm < LEVEL),
    )


def volatility(evidence: Evidence) -> Table | None:
    """Return table 8: over the paths of a strategy, mean and standard deviation of accuracy and seconds."""
    rows: list[tuple[Entry, ...]] = []
    for kind in evidence.collaborations:
        found = [scores.over_sets(_on_all(evidence, wiring)) for wiring in evidence.of(kind)]
        known = [entry for entry in found if entry.accuracy is not None]
        accuracies = [entry.accuracy for entry in known if entry.accuracy is not None]
        seconds = [entry.seconds for entry in known if entry.seconds is not None]
        whole = seconds if len(seconds) == len(known) else []
        rows.append(
            (
                Text(kind),
                Number(len(known), "count"),
                Number(_mean(accuracies), "percent"),
                Number(_mean(whole), "seconds"),
                Number(deviation(accuracies), "percent"),
                Number(deviation(whole), "seconds"),
                Number(min(accuracies, default=None), "percent"),
                Number(max(accuracies, default=None), "percent"),
            )
        )
    columns = [
        Column("strategy", "strategy"),
        Column("num_paths", "paths"),
        Column("mean_accuracy", "mean accuracy %"),
        Column("mean_seconds", "mean seconds"),
        Column("sd_accuracy", "deviation of accuracy"),
        Column("sd_seconds", "deviation of seconds"),
        Column("lowest", "lowest %"),
        Column("highest", "highest %"),
    ]
    notes = ("each path counts with its mean over the question sets; sample deviation (n - 1)",)
    caption = "Mean and standard deviation over the paths of each strategy (the paper's table 8)."
    return (
        Table("table-8-volatility", "Volatility over paths", caption, tuple(columns), tuple(rows), notes)
        if rows
        else None
    )


def best_and_mean(evidence: Evidence) -> list[Table]:
    """Return tables 9 and 10: best path and mean over paths by task, accuracy and seconds."""
    if not evidence.collaborations:
        return []
    columns = [_TASK]
    for kind in evidence.collaborations:
        columns += [Column(f"{kind}_best", f"{kind} best"), Column(f"{kind}_mean", f"{kind} mean")]
    accuracy: list[tuple[Entry, ...]] = []
    seconds: list[tuple[Entry, ...]] = []
    for dataset in evidence.datasets:
        found: list[Reached] = []
        for kind in evidence.collaborations:
            found.append(replace(scores.of_best(evidence, kind, dataset, Against()), path=None))
            found.append(scores.over_paths(evidence, evidence.of(kind), dataset))
        accuracy.append((Text(dataset.label), *(_accuracy(entry) for entry in found)))
        seconds.append((Text(dataset.label), *(Number(entry.seconds, "seconds") for entry in found)))
    return [
        Table(
            "table-9-accuracy",
            "Accuracy of the best path and mean over paths",
            "Accuracy in % with its 95 % interval (the paper's table 9).",
            tuple(columns),
            tuple(accuracy),
            (scores.BEST_NOTE, scores.MEAN_NOTE),
        ),
        Table(
            "table-10-seconds",
            "Seconds of the most accurate path and mean over paths",
            "Seconds per question (the paper's table 10).",
            tuple(columns),
            tuple(seconds),
        ),
    ]


def deviation(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation, None below two values."""
    return statistics.stdev(values) if len(values) > 1 else None


def _on_all(evidence: Evidence, wiring: Wiring) -> list[Reached]:
    return [scores.of_cell(evidence.whole(wiring, dataset)) for dataset in evidence.datasets]


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _accuracy(entry: Reached) -> Number:
    if entry.accuracy is None:
        return Number(None, "percent")
    return Number(entry.accuracy, "percent", entry.low, entry.high, entry.n)
