"""The paper's claims, judged by one's own numbers: they hold, do not hold, or cannot be told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from flowinfer.report.compare import Comparison
from flowinfer.report.evidence import Evidence

Verdict = Literal["holds", "does not hold", "cannot be told"]


@dataclass(frozen=True)
class Finding:
    """One claim and what the numbers say about it."""

    key: str
    claim: str
    verdict: Verdict
    sentences: tuple[str, ...]
    """Each with its numbers and the test behind it."""


def findings(evidence: Evidence, compared: Sequence[Comparison]) -> list[Finding]:
    """Return the findings about a group of paths."""
    return []
