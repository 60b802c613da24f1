"""What a file and its imports declare, each name once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from flowinfer.errors import Span
from flowinfer.mistakes import Reporter
from flowinfer.syntax import (
    Defaults,
    Document,
    FlowStatement,
    Import,
    Let,
    Model,
    Name,
    Param,
    Prompt,
    parse,
)


@dataclass
class Declared:
    """Declarations by name, from the file and everything that it imports."""

    models: dict[str, Model] = field(default_factory=dict)
    prompts: dict[str, Prompt] = field(default_factory=dict)
    params: dict[str, Param] = field(default_factory=dict)
    lets: dict[str, Let] = field(default_factory=dict)
    defaults: list[Defaults] = field(default_factory=list)
    flow: FlowStatement | None = None
    folders: dict[str, Path] = field(default_factory=dict)
    """Model name -> folder that its local ref is relative to."""


class Loader:
    """Read a file and its imports, each once, and collect declarations."""

    def __init__(self, text: str, file: str, base: Path) -> None:
        self.report = Reporter(file, text.removeprefix("\ufeff"))
        self.declared = Declared()
        self._text, self._file, self._base = text, file, base
        self._done: set[Path] = set()
        self._open: list[Path] = []

    def load(self) -> Declared:
        """Read everything; problems go into the report."""
        document = parse(self._text, self._file)
        self.report.diagnostics += document.problems
        start = (self._base / Path(self._file).name).resolve()
        self._open.append(start)
        self._take(document, self._base, self.report)
        self._check_main(document)
        return self.declared

    def _check_main(self, document: Document) -> None:
        if self.declared.flow is None and not document.problems:
            lines = self.report.lines
            last = max((n for n, line in enumerate(lines, 1) if line.strip()), default=1)
            span = Span(self._file, last, 1, last, max(2, len(lines[last - 1]) + 1))
            self.report.error("E0020", "the file states no flow", span, "for example: Qwen -> (Yi | Ds)")

    def _take(self, document: Document, folder: Path, report: Reporter) -> None:
        for statement in document.statements:
            match statement:
                case FlowStatement():
                    self._flow(statement, report)
                case Import():
                    self._import(statement, folder, report)
                case Defaults():
                    self.declared.defaults.append(statement)
                case Model():
                    if self._is_new(statement.name, report):
                        self.declared.models[statement.name.text] = statement
                        self.declared.folders[statement.name.text] = folder
                case Prompt():
                    if self._is_new(statement.name, report, ("prompts",)):
                        self.declared.prompts[statement.name.text] = statement
                case Param():
                    if self._is_new(statement.name, report, ("params",)):
                        self.declared.params[statement.name.text] = statement
                case Let():
                    if self._is_new(statement.name, report):
                        self.declared.lets[statement.name.text] = statement

    def _flow(self, statement: FlowStatement, report: Reporter) -> None:
        if report is not self.report:
            hint = "an imported file holds declarations only; name the part: let x = ..."
            self._error(report, "E0108", "a flow in an imported file", statement.span, hint)
        elif self.declared.flow is not None:
            first = self.declared.flow.span.line
            hint = f"the first is in line {first}; name parts with let, or join them with '->'"
            self.report.error("E0021", "a second flow in one file", statement.span, hint)
        else:
            self.declared.flow = statement

    def _error(self, report: Reporter, code: str, message: str, span: Span, help: str) -> None:
        """Report with the source line of the file that the span is in."""
        report.error(code, message, span, help)
        if report is not self.report:
            self.report.diagnostics.append(report.diagnostics[-1])

    def _is_new(self, name: Name, report: Reporter, tables: tuple[str, ...] = ("models", "lets")) -> bool:
        for table in tables:
            before = getattr(self.declared, table).get(name.text)
            if before is not None:
                place = before.name.span
                where = f"line {place.line}" if place.file == name.span.file else f"{place.file}:{place.line}"
                hint = f"first declared in {where}; remove one of them"
                self._error(report, "E0104", f"'{name.text}' is declared twice", name.span, hint)
                return False
        return True

    def _import(self, statement: Import, folder: Path, report: Reporter) -> None:
        path = (folder / statement.path).resolve()
        if path in self._open:
            chain = " -> ".join(p.name for p in [*self._open[self._open.index(path) :], path])
            self._error(report, "E0106", f"import cycle: {chain}", statement.span, "remove one of these imports")
            return
        if path in self._done:
            return
        try:
            text = path.read_bytes().decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            reason = "is not UTF-8" if isinstance(error, UnicodeDecodeError) else "cannot be read"
            hint = f"looked for {folder / statement.path}; imports are relative to the importing file"
            self._error(report, "E0107", f"imported file '{statement.path}' {reason}", statement.span, hint)
            return
        shown = str(folder / statement.path)
        inner = Reporter(shown, text)
        document = parse(text, shown)
        self.report.diagnostics += document.problems
        self._open.append(path)
        self._take(document, path.parent, inner)
        self._open.pop()
        self._done.add(path)
