"""Make a report of gathered evidence: one section for each group of settings."""

from __future__ import annotations

from dataclasses import dataclass

from flowinfer.report.cells import Cells
from flowinfer.report.compare import Comparison
from flowinfer.report.evidence import Evidence
from flowinfer.report.findings import Finding, findings
from flowinfer.report.table import Table
from flowinfer.report.tables import tables


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


def build(evidence: Evidence, against: str | None = None) -> Report:
    """Return the report of everything gathered.

    Args:
        against: whose numbers stand beside one's own: the paper's, or nobody's.
    """
    sections = []
    for group in evidence.groups():
        cells = Cells(group, against)
        sections.append(Section(group, tuple(cells.comparisons), tuple(tables(cells)), tuple(findings(group))))
    return Report(_title(evidence), tuple(_facts(evidence)), evidence.notes, tuple(sections))


def _title(evidence: Evidence) -> str:
    labels = ", ".join(dataset.label for dataset in evidence.datasets)
    paths = "path" if len(evidence.wirings) == 1 else "paths"
    return f"{len(evidence.wirings)} {paths} on {labels}"


def _facts(evidence: Evidence) -> list[tuple[str, str]]:
    models = dict.fromkeys(name for wiring in evidence.wirings for name in wiring.models)
    answers = sum(len(cell.records) for cell in evidence.cells.values())
    timed = sum(len(cell.timed) for cell in evidence.cells.values())
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
    return ", ".join(dict.fromkeys(wiring.settings.get(key, "-") for wiring in evidence.wirings))
