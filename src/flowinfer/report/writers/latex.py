"""Tables for papers: LaTeX with booktabs.

A paper that reads single tables by `\\input` needs the packages booktabs, longtable and graphicx.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from flowinfer.report.table import Entry, Reached, Table, Text, pieces

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
    '"': r"{\char34}",  # \textquotedbl is not in every encoding
    "--": "-{}-",
    "²": r"\textsuperscript{2}",
    "[": "{[}",  # behind a line's end, [ begins an option and * a star
    "*": "{*}",
}
_BEGIN = r"""%% Needs %s.
\documentclass{article}
\usepackage%s
\usepackage{booktabs,longtable,graphicx}
\usepackage[margin=2cm,landscape]{geometry}
\begin{document}
\setlength{\LTcapwidth}{\linewidth}
"""
_LATIN = ("pdfLaTeX, XeLaTeX or LuaLaTeX", "[T1]{fontenc}")
_CHINESE = ("XeLaTeX or LuaLaTeX: some names are not Latin", "[scheme=plain]{ctex}")
_FLOATS_AT_ONCE = 6
"""LaTeX holds back a limited number of floats."""


def escape(text: str) -> str:
    """Return text that LaTeX sets as it is, on one line."""
    text = "".join(letter for letter in " ".join(text.split()) if letter.isprintable())
    return re.sub(r'--|[\\{}$&#%_~^<>|"²\[*]', lambda found: _SPECIAL[found[0]], text)


def table_tex(table: Table, label: str) -> str:
    """Return a table to be read by `\\input`: a float, or a longtable where it has many rows.

    Args:
        label: what `\\ref` calls it, behind `tab:`; unique in a document.
    """
    kept = [index for index, column in enumerate(table.columns) if not column.is_command]
    sides = "".join("l" if isinstance(table.rows[0][index], Text) else "r" for index in kept) if table.rows else ""
    head = " & ".join(escape(table.columns[index].title) for index in kept) + r" \\"
    rows = [" & ".join(_entry(row[index]) for index in kept) + r" \\" for row in table.rows]
    if any(isinstance(entry, Reached) for row in table.rows for entry in row):
        rows = [*(row + "[2pt]" for row in rows[:-1]), *rows[-1:]]  # stacks of lines need air between them
    caption = escape(f"{table.title}. {table.caption}")
    notes = "".join(f"\n\\par\\footnotesize {escape(note)}" for note in table.notes)
    form = _long if table.is_long else _float
    return form(sides, head, rows, rf"\caption{{{caption}}}\label{{tab:{label}}}", notes)


def document(title: str, tables: Mapping[str, str], figures: Sequence[tuple[str, str]]) -> str:
    """Return a document that shows all tables and figures.

    Args:
        tables: file beside the document -> what it holds.
        figures: file beside the document, and caption.
    """
    shown = [
        "\\begin{figure}[htbp]\\centering\n"
        rf"\includegraphics[width=.7\linewidth]{{{file}}}" + "\n"
        rf"\caption{{{escape(caption)}}}\end{{figure}}"
        for file, caption in figures
    ]
    parts = [rf"\section*{{{escape(title)}}}", *(rf"\input{{{name}}}" for name in tables), *shown]
    groups = [parts[start : start + _FLOATS_AT_ONCE] for start in range(0, len(parts), _FLOATS_AT_ONCE)]
    body = "\n\\clearpage\n".join("\n".join(group) for group in groups)
    everything = "".join([title, *tables.values(), *(caption for _, caption in figures)])
    is_latin = all(ord(letter) < 0x250 or 0x2010 <= ord(letter) <= 0x2026 for letter in everything)
    return "\n".join([_BEGIN % (_LATIN if is_latin else _CHINESE), body, r"\end{document}", ""])


def _float(sides: str, head: str, rows: Sequence[str], caption: str, notes: str) -> str:
    lines = [
        r"\begin{table}[htbp]\centering\small",
        caption,
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{sides}}}",
        *(r"\toprule", head, r"\midrule", *rows, r"\bottomrule"),
        rf"\end{{tabular}}}}{notes}",
        r"\end{table}",
    ]
    return "\n".join([*lines, ""])


def _long(sides: str, head: str, rows: Sequence[str], caption: str, notes: str) -> str:
    lines = [
        r"{\footnotesize",
        rf"\begin{{longtable}}{{{sides}}}",
        caption + r" \\",
        *(r"\toprule", head, r"\midrule\endfirsthead"),
        *(r"\toprule", head, r"\midrule\endhead", *rows, r"\bottomrule"),
        rf"\end{{longtable}}{notes}}}",
    ]
    return "\n".join([*lines, ""])


def _entry(entry: Entry) -> str:
    parts = [
        rf"\texttt{{{escape(piece.text)}}}" if piece.style == "flow" else escape(piece.text) for piece in pieces(entry)
    ]
    if not isinstance(entry, Text) and entry.is_marked:
        parts[0] = rf"\textbf{{{parts[0]}}}"
    if not isinstance(entry, Reached):
        return " ".join(parts)
    stack = r"\\".join(parts)
    return rf"\begin{{tabular}}[t]{{@{{}}r@{{}}}}{stack}\end{{tabular}}"
