"""A report as Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from flowinfer.paper.claims import PREFACE
from flowinfer.report.build import Report, Section
from flowinfer.report.table import Entry, Reached, Table, Text, pieces

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~])")


def write(report: Report, figures: Mapping[str, Sequence[tuple[str, str]]]) -> str:
    """Return the text.

    Args:
        figures: setup -> (file beside the text, caption).
    """
    parts = [f"# {escape(report.title)}", _facts(report)]
    if report.notes:
        parts.append("\n".join(["## What is missing", "", *(f"- {escape(note)}" for note in report.notes)]))
    for section in report.sections:
        parts += _section(section, figures.get(section.setup, ()))
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """Return text that Markdown shows as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def code(text: str) -> str:
    """Return text as code in a table cell: a fence longer than any run of backticks inside, `|` escaped."""
    text = " ".join(text.split())
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    padded = f" {text} " if text.startswith("`") or text.endswith("`") else text
    return f"{fence}{padded}{fence}".replace("|", "\\|")


def _facts(report: Report) -> str:
    return "\n".join(f"- {name}: {escape(value)}" for name, value in report.facts)


def _section(section: Section, figures: Sequence[tuple[str, str]]) -> list[str]:
    parts = [f"# {escape(section.setup)}"] if section.setup else []
    if section.findings:
        parts += ["## Findings", PREFACE]
        for finding in section.findings:
            lines = [f"**{escape(finding.claim)}: {finding.verdict}**", ""]
            parts.append("\n".join([*lines, *(f"- {escape(sentence)}" for sentence in finding.sentences)]))
    parts += [_table(table) for table in section.tables]
    if figures:
        parts.append("## Figures")
        parts += [f"![{escape(caption)}]({file})\n\n{escape(caption)}" for file, caption in figures]
    return parts


def _table(table: Table) -> str:
    head = "| " + " | ".join(escape(column.title) for column in table.columns) + " |"
    lines = [f"## {escape(table.title)}", "", escape(table.caption), "", head, "|---" * len(table.columns) + "|"]
    lines += ["| " + " | ".join(_entry(entry) for entry in row) + " |" for row in table.rows]
    if table.notes:
        lines += ["", *(f"- {escape(note)}" for note in table.notes)]
    return "\n".join(lines)


def _entry(entry: Entry) -> str:
    is_marked = not isinstance(entry, Text) and entry.is_marked
    parts = [code(piece.text) if piece.style == "flow" else escape(piece.text) for piece in pieces(entry)]
    if is_marked:
        parts[0] = f"**{parts[0]}**"
    return ("<br>" if isinstance(entry, Reached) else " ").join(parts)
