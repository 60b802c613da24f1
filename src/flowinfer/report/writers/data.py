"""A report as CSV tables and as one JSON object, for other programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from typing import Any

from flowinfer.report.build import Report, Section
from flowinfer.report.compare import Comparison
from flowinfer.report.table import Table, raw_rows

VERSION = 1

_FORMULA = ("=", "+", "@", "-", "＝", "＋", "＠", "－")
"""What begins a formula, in full width too."""


def table_csv(table: Table) -> str:
    """Return a table as CSV with raw values: shares between 0 and 1, nothing where there is no number."""
    rows = raw_rows(table)
    names = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _safe(value) for name, value in row.items()} for row in rows)
    return out.getvalue()


def report_json(report: Report) -> str:
    """Return everything as JSON."""
    data = {
        "version": VERSION,
        "title": report.title,
        "facts": dict(report.facts),
        "notes": list(report.notes),
        "sections": [_section(section) for section in report.sections],
    }
    return json.dumps(data, ensure_ascii=False, indent=1) + "\n"


def _safe(value: object) -> object:
    """Keep a spreadsheet from reading text as a formula."""
    if not isinstance(value, str):
        return value
    bare = value.lstrip()  # spreadsheets pass over tabs, line ends and blanks before a formula
    return f"'{value}" if value[:1] in ("\t", "\r", "\n") or (bare[:1] in _FORMULA and len(bare) > 1) else value


def _section(section: Section) -> Mapping[str, Any]:
    evidence = section.evidence
    return {
        "setup": section.setup,
        "paths": [vars(wiring) | {"whole": str(wiring.whole)} for wiring in evidence.wirings],
        "datasets": [vars(dataset) for dataset in evidence.datasets],
        "findings": [vars(finding) for finding in section.findings],
        "tables": {
            table.key: {
                "title": table.title,
                "caption": table.caption,
                "notes": table.notes,
                "rows": raw_rows(table),
            }
            for table in section.tables
        },
        "comparisons": [_comparison(one) for one in section.comparisons],
    }


def _comparison(one: Comparison) -> Mapping[str, Any]:
    return {
        "kind": one.kind,
        "path": one.wiring.key,
        "against": one.other.key,
        "dataset": one.dataset.key if one.dataset else None,
        "n": one.counts.n,
        "both": one.counts.both,
        "neither": one.counts.neither,
        "gained": one.gained,
        "lost": one.lost,
        "p": one.counts.p_value,
        "p_holm": one.p_holm,
    }
