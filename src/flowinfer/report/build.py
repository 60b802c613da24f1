"""Make a report of gathered evidence: one section for each group of settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flowinfer.report import changes, compare, cost, counts, findings, orders, strategies
from flowinfer.report.claim import Finding
from flowinfer.report.compare import Comparison
from flowinfer.report.evidence import Evidence
from flowinfer.report.scores import Against
from flowinfer.report.table import Table, has_numbers


@dataclass(frozen=True)
class Section:
    """Paths that may be compared with each other."""

    evidence: Evidence
    comparisons: tuple[Comparison, ...]
    tables: tuple[Table, ...]
    findings: tuple[Finding, ...]

    @property
    def setup(self) -> str:
        """Return the settings that set it apart, "" where there is one section."""
        return self.evidence.setup


@dataclass(frozen=True)
class Report:
    """Everything that writers show."""

    title: str
    facts: tuple[tuple[str, str], ...]
    """What was run: names and values."""
    notes: tuple[str, ...]
    """What is missing, and why."""
    sections: tuple[Section, ...]


def build(evidence: Evidence, against: Against) -> Report:
    """Return the report of everything gathered."""
    sections = tuple(_section(group, against) for group in evidence.groups())
    return Report(_title(evidence), tuple(_facts(evidence)), evidence.notes, sections)


def _section(evidence: Evidence, against: Against) -> Section:
    found = compare.comparisons(evidence)
    tables: list[Table | None] = [
        strategies.strategies_by_task(evidence, against),
        strategies.gains(evidence, found),
        cost.decomposition(evidence),
        orders.series_and_parallel(evidence, against),
        orders.composites(evidence, against),
        strategies.volatility(evidence),
        *strategies.best_and_mean(evidence),
        orders.all_paths(evidence, against),
        compare.table(found, "single"),
        compare.table(found, "reversal"),
        counts.endings(evidence),
        counts.agreement(evidence),
        changes.table(evidence, found),
    ]
    told = tuple(findings.findings(evidence))
    return Section(evidence, tuple(found), tuple(table for table in tables if table and has_numbers(table)), told)


def _title(evidence: Evidence) -> str:
    labels = ", ".join(dataset.label for dataset in evidence.datasets)
    paths = "path" if len(evidence.wirings) == 1 else "paths"
    return f"{len(evidence.wirings)} {paths} on {labels}"


def _facts(evidence: Evidence) -> list[tuple[str, str]]:
    models = list(dict.fromkeys(name for wiring in evidence.wirings for name in wiring.models))
    answers = sum(len(cell.records) for cell in evidence.cells.values())
    timed = sum(cell.num_timed for cell in evidence.cells.values())
    return [
        ("from", ", ".join(evidence.sources)),
        ("models", ", ".join(models)),
        ("zoo", _distinct(evidence, "zoo")),
        ("questions", ", ".join(f"{dataset.label} {dataset.num_asked}" for dataset in evidence.datasets)),
        ("answers", f"{answers}, of them timed at batch 1: {timed}"),
        ("max_tokens", _distinct(evidence, "max_tokens")),
        ("prompts", _distinct(evidence, "prompts")),
    ]


def _distinct(evidence: Evidence, key: str) -> str:
    values: Sequence[str] = [wiring.settings.get(key, "-") for wiring in evidence.wirings]
    return ", ".join(dict.fromkeys(values))
