"""Tables for papers: LaTeX with booktabs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from flowinfer.report.table import Entry, Number, Reached, Table, Text, reached_parts, shown

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "²": r"\textsuperscript{2}",
    "[": "{[}",  # behind a line's end, [ begins an option and * a star
    "*": "{*}",
}
_BEGIN = r"""% Needs XeLaTeX or LuaLaTeX where names are Chinese (add \usepackage{xeCJK}).
\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage{booktabs,longtable,graphicx}
\usepackage[margin=2cm,landscape]{geometry}
\begin{document}
"""


def escape(text: str) -> str:
    """Return text that LaTeX sets as it is, on one line."""
    return re.sub(r'[\\{}$&#%_~^<>|"²\[*]', lambda found: _SPECIAL[found[0]], " ".join(text.split()))


def table_tex(table: Table) -> str:
    """Return a table to be read by `\\input`: a float, or a longtable where it has many rows."""
    sides = "".join("l" if isinstance(entry, Text) else "r" for entry in (table.rows[0] if table.rows else ()))
    head = " & ".join(escape(column.title) for column in table.columns) + r" \\"
    rows = [" & ".join(_entry(entry) for entry in row) + r" \\" for row in table.rows]
    caption = escape(f"{table.title}. {table.caption}")
    notes = "".join(f"\n\\par\\footnotesize {escape(note)}" for note in table.notes)
    form = _long if table.is_long else _float
    return form(sides, head, rows, rf"\caption{{{caption}}}\label{{tab:{table.key}}}", notes)


def document(title: str, tables: Sequence[str], figures: Sequence[tuple[str, str]]) -> str:
    """Return a document that shows all tables and figures."""
    lines = [_BEGIN, rf"\section*{{{escape(title)}}}"]
    lines += [rf"\input{{{name}}}" for name in tables]
    for file, caption in figures:
        lines += [
            r"\begin{figure}[htbp]\centering",
            rf"\includegraphics[width=.7\linewidth]{{{file}}}",
            rf"\caption{{{escape(caption)}}}\end{{figure}}",
        ]
    return "\n".join([*lines, r"\end{document}", ""])


def _float(sides: str, head: str, rows: Sequence[str], caption: str, notes: str) -> str:
    return "\n".join(
        [
            r"\begin{table}[htbp]\centering\small",
            caption,
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{{sides}}}",
            r"\toprule",
            head,
            r"\midrule",
            *rows,
            r"\bottomrule",
            rf"\end{{tabular}}}}{notes}",
            r"\end{table}",
            "",
        ]
    )


def _long(sides: str, head: str, rows: Sequence[str], caption: str, notes: str) -> str:
    return "\n".join(
        [
            r"{\footnotesize",
            rf"\begin{{longtable}}{{{sides}}}",
            caption + r" \\",
            r"\toprule",
            head,
            r"\midrule\endhead",
            *rows,
            r"\bottomrule",
            rf"\end{{longtable}}{notes}}}",
            "",
        ]
    )


def _entry(entry: Entry) -> str:
    match entry:
        case Text(text, is_flow=True):
            return rf"\texttt{{{escape(text)}}}"
        case Text(text):
            return escape(text)
        case Number(is_marked=True):
            return rf"\textbf{{{escape(shown(entry))}}}"
        case Number():
            return escape(shown(entry))
        case Reached():
            accuracy, interval, seconds, path, remark, paper = (escape(part) for part in reached_parts(entry))
            first = rf"\textbf{{{accuracy}}}" if entry.is_marked else accuracy
            path = rf"\texttt{{{path}}}" if path else ""
            return (
                r"\shortstack[r]{"
                + r"\\".join(part for part in (first, interval, seconds, path, remark, paper) if part)
                + "}"
            )
