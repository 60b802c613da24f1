"""Put run and sweep folders together: which paths met which questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from flowinfer.errors import UsageError
from flowinfer.output.words import counted
from flowinfer.paper.numbers import TASKS
from flowinfer.paper.paths import STRATEGIES
from flowinfer.report.evidence import Cell, Evidence, QuestionSet, Wiring
from flowinfer.report.folders import Found, Reading, locate, read


def gather(named: Sequence[str]) -> Evidence:
    """Read folders and return what they hold.

    Args:
        named: run and sweep folders, names that `flowinfer show` understands, or folders of runs and sweeps.
    Raises:
        UsageError: one is not there, is none, or nothing was answered.
        DataError: one is damaged.
    """
    located = {name: locate(name) for name in named}
    sources = [folders[0].name if len(folders) == 1 else Path(name).resolve().name for name, folders in located.items()]
    reading = Reading()
    for folder in {folder.resolve(): folder for folders in located.values() for folder in folders}.values():
        read(folder, reading)
    answered = [found for found in reading.found if found.records]
    if not answered:
        raise UsageError(
            f"nothing has been answered in {', '.join(repr(name) for name in named)}",
            help="go on with it: `flowinfer sweep --resume NAME`, or the same `flowinfer exec` with --resume",
        )
    notes = list(reading.notes)
    empty = len(reading.found) - len(answered)
    if empty:
        notes.append(f"{counted(empty, 'run')} without an answer left out")
    kept = _latest(answered, notes)
    datasets, wirings = _datasets(kept, notes), _wirings(kept)
    cells = {}
    for one in kept:
        pair = wirings[one.flow, one.plan].key, datasets[one.label, one.fingerprint].key
        cells[pair] = Cell(*pair, one.run, one.records, one.num_asked, one.timed)
    evidence = Evidence(tuple(wirings.values()), tuple(datasets.values()), cells, sources=tuple(sources))
    return replace(evidence, notes=(*notes, *_gaps(evidence)))


def _latest(found: Sequence[Found], notes: list[str]) -> list[Found]:
    """Of several runs of a path on the same questions keep the latest of those with the most verdicts."""
    kept: dict[tuple[str, ...], Found] = {}
    for one in sorted(found, key=lambda one: one.started):
        identity = (one.flow, one.plan, one.label, one.fingerprint)
        before = kept.get(identity)
        if before is not None:
            notes.append(f"{one.name} on {one.label} was run more than once: the latest whole run counts")
        if before is None or _num_verdicts(one) >= _num_verdicts(before):
            kept[identity] = one
    order = {id(one): index for index, one in enumerate(found)}
    return sorted(kept.values(), key=lambda one: order[id(one)])


def _num_verdicts(found: Found) -> int:
    return sum(record.score is not None for record in found.records)


def _datasets(found: Sequence[Found], notes: list[str]) -> dict[tuple[str, str], QuestionSet]:
    """Tell question sets apart by their fingerprints; sets of one name get numbers."""
    seen = list(dict.fromkeys((one.label, one.fingerprint) for one in found))
    names = {one.label: one.dataset for one in found}
    seen.sort(key=lambda pair: (_rank(names[pair[0]]), pair[0]))
    times = Counter(label for label, _ in seen)
    sets: dict[tuple[str, str], QuestionSet] = {}
    for label, group in groupby(seen, key=lambda pair: pair[0]):
        for number, pair in enumerate(group, start=1):
            one = next(one for one in found if (one.label, one.fingerprint) == pair)
            shown = f"{label} #{number}" if times[label] > 1 else label
            kind = one.records[0].question.kind
            sets[pair] = QuestionSet(f"d{len(sets) + 1}", one.dataset, shown, kind, one.num_asked, one.fingerprint)
    for label, count in times.items():
        if count > 1:
            sizes = ", ".join(str(sets[pair].num_asked) for pair in sets if pair[0] == label)
            notes.append(f"{label}: {count} different sets of questions ({sizes}), kept apart and not compared")
    return sets


def _rank(name: str) -> int:
    return TASKS.index(name) if name in TASKS else len(TASKS)


def _wirings(found: Sequence[Found]) -> dict[tuple[str, str], Wiring]:
    firsts: dict[tuple[str, str], Found] = {}
    for one in found:
        firsts.setdefault((one.flow, one.plan), one)
    ranks = (*STRATEGIES, None)
    ordered = sorted(firsts.items(), key=lambda item: ranks.index(item[1].strategy))
    made: dict[tuple[str, str], Wiring] = {}
    for index, (identity, one) in enumerate(ordered, start=1):
        twins = sum(wiring.flow == one.flow and wiring.settings == one.settings for wiring in made.values())
        name = f"{one.name} #{twins + 1}" if twins else one.name
        made[identity] = Wiring(f"w{index}", one.strategy, one.models, one.flow, name, dict(one.settings), one.whole)
    return made


def _gaps(evidence: Evidence) -> list[str]:
    """Say what the numbers lack."""
    notes = []
    for wiring in evidence.wirings:
        for dataset in evidence.datasets:
            cell = evidence.cell(wiring, dataset)
            if cell and not cell.is_whole:
                failed = f", {cell.tally.failed} failed" if cell.tally.failed else ""
                notes.append(
                    f"{wiring.name} on {dataset.label}: {cell.n} of {cell.num_asked} questions have a verdict{failed};"
                    " shown, but in no mean, best path or finding"
                )
    cells = evidence.cells.values()
    untimed = sum(not cell.timed for cell in cells)
    if untimed == len(cells):
        notes.append("no seconds: nothing was timed at batch 1 without cached steps, so they are shown as -")
    elif untimed:
        notes.append(
            f"{untimed} of {len(cells)} pairs of path and data set were not timed: their seconds are shown as -"
        )
    for dataset in evidence.datasets:
        num_timed = max((len(cell.timed) for cell in cells if cell.dataset == dataset.key), default=0)
        if 0 < num_timed < dataset.num_asked:
            notes.append(f"{dataset.label}: seconds are means over {num_timed} of {dataset.num_asked} questions")
        timed = {frozenset(r.question.id for r in c.timed) for c in cells if c.timed and c.dataset == dataset.key}
        if len(timed) > 1:
            notes.append(f"{dataset.label}: seconds of different paths were taken on different questions")
    return notes
