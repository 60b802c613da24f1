"""flowinfer report: tables, figures and findings over many runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowinfer.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowinfer.report.build import Report


def command(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Run and sweep folders, their names, or a folder of them.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", metavar="DIR", help="Where to write; else FOLDER/report of one sweep, or ./report."
        ),
    ] = None,
    format_: Annotated[
        list[str] | None,
        typer.Option(
            "--format", metavar="html|md|csv|json|latex", help="Only these; repeat it, or list them with commas."
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="paper", help="Put the paper's numbers beside, where path and task are its own."),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object about what was written.")] = False,
) -> None:
    """Compare runs: tables in the paper's form, figures, paired tests, and findings."""
    from flowinfer.report.build import build
    from flowinfer.report.gather import gather
    from flowinfer.report.write import write

    forms = _forms(format_)
    if against not in (None, "paper"):
        raise UsageError(f"--against '{against}': expected 'paper'", help="the paper's are the only numbers kept here")
    report = build(gather(runs), against)
    notes = list(report.notes)
    written = write(report, _folder(runs, out), forms, on_note=notes.append)
    if json_:
        told = [
            {"setup": section.setup, "key": finding.key, "claim": finding.claim, "verdict": finding.verdict}
            for section in report.sections
            for finding in section.findings
        ]
        data = {"files": [str(path) for path in written], "notes": notes, "findings": told}
        print(json.dumps(data, ensure_ascii=False))
        return
    _tell(report, notes, written)


def _tell(report: Report, notes: Sequence[str], written: Sequence[Path]) -> None:
    print(report.title)
    for note in notes:
        print(f"note: {note}")
    for section in report.sections:
        if section.setup and section.findings:
            print(f"{section.setup}:")
        for finding in section.findings:
            print(f"{finding.verdict:<15} {finding.claim}")
    print(f"{len(written)} files, {written[0]} first")


def _folder(runs: list[str], out: Path | None) -> Path:
    if out is not None:
        return out
    from flowinfer.report.folders import locate

    found = locate(runs[0]) if len(runs) == 1 else []
    is_sweep = len(found) == 1 and (found[0] / "sweep.json").is_file()
    return found[0] / "report" if is_sweep else Path("report")


def _forms(given: list[str] | None) -> list[str]:
    from flowinfer.report.write import FORMS

    forms = [part.strip() for one in given or [] for part in one.split(",") if part.strip()] or list(FORMS)
    for form in forms:
        if form not in FORMS:
            raise UsageError(f"--format '{form}': expected one of {', '.join(FORMS)}")
    return forms
