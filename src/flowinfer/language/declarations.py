"""What a file and its imports declare, each name once."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from flowinfer.errors import UnreadableFile
from flowinfer.files import MOST_FLOW_BYTES, read_text
from flowinfer.language.mistakes import MOST_LEVELS
from flowinfer.language.reporter import Reporter
from flowinfer.language.syntax import parse
from flowinfer.language.tree import (
    Defaults,
    Document,
    FlowStatement,
    Import,
    Let,
    Model,
    Name,
    Param,
    Prompt,
)

_SUFFIX = ".flow"


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
    bases: dict[str, Path] = field(default_factory=dict)
    """File as messages name it -> its folder."""


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
        self.report.extend(document.problems, document.num_untold)
        start = _resolved(self._base / Path(self._file).name)
        self._open.append(start)
        self._take(document, self._base)
        self._check_main(document)
        return self.declared

    def _check_main(self, document: Document) -> None:
        if self.declared.flow is None and not document.problems:
            span = self.report.last_line()
            self.report.error("E0020", "the file states no flow", span, "for example: Qwen -> (Yi | Ds)")

    def _take(self, document: Document, folder: Path) -> None:
        self.declared.bases[document.file] = folder
        for statement in document.statements:
            match statement:
                case FlowStatement():
                    self._flow(statement)
                case Import():
                    self._import(statement, folder)
                case Defaults():
                    self.declared.defaults.append(statement)
                case Model():
                    if self._is_new(statement.name):
                        self.declared.models[statement.name.text] = statement
                        self.declared.folders[statement.name.text] = folder
                case Prompt():
                    if self._is_new(statement.name, ("prompts",)):
                        self.declared.prompts[statement.name.text] = statement
                case Param():
                    if self._is_new(statement.name, ("params",)):
                        self.declared.params[statement.name.text] = statement
                case Let():
                    if self._is_new(statement.name):
                        self.declared.lets[statement.name.text] = statement

    def _flow(self, statement: FlowStatement) -> None:
        if statement.span.file != self._file:
            hint = "an imported file holds declarations only; name the part: let x = ..."
            self.report.error("E0108", "a flow in an imported file", statement.span, hint)
        elif self.declared.flow is not None:
            first = self.declared.flow.span.line
            hint = f"the first is in line {first}; name parts with let, or join them with '->'"
            self.report.error("E0021", "a second flow in one file", statement.span, hint)
        else:
            self.declared.flow = statement

    def _is_new(self, name: Name, tables: tuple[str, ...] = ("models", "lets")) -> bool:
        if not name.text.strip() or not name.text.isprintable():
            hint = "a name holds at least one letter, and no line breaks or other invisible characters"
            self.report.error("E0019", "a name that nobody can see", name.span, hint)
            return True
        for table in tables:
            before = getattr(self.declared, table).get(name.text)
            if before is not None:
                place = before.name.span
                where = f"line {place.line}" if place.file == name.span.file else f"{place.file}:{place.line}"
                hint = f"first declared in {where}; remove one of them"
                self.report.error("E0104", f"'{name.text}' is declared twice", name.span, hint)
                return False
        return True

    def _import(self, statement: Import, folder: Path) -> None:
        path = _resolved(folder / statement.path)
        if not statement.path.endswith(_SUFFIX) or path.suffix != _SUFFIX:  # no text of another file may be shown
            hint = f"only files whose names end in '{_SUFFIX}' are imported, and links to such"
            self.report.error("E0107", f"'{statement.path}' is no {_SUFFIX} file", statement.span, hint)
            return
        if path in self._open:
            chain = " -> ".join(p.name for p in [*self._open[self._open.index(path) :], path])
            self.report.error("E0106", f"import cycle: {chain}", statement.span, "remove one of these imports")
            return
        if path in self._done:
            return
        if len(self._open) > MOST_LEVELS:
            message = f"imports nested deeper than {MOST_LEVELS} levels"
            self.report.error("E0022", message, statement.span, "import what is needed where it is needed")
            return
        self._done.add(path)
        try:
            text = read_text(path, most_bytes=MOST_FLOW_BYTES)
        except UnreadableFile as error:
            hint = f"looked for {folder / statement.path}; imports are relative to the importing file"
            reason = f": {error.reason}" if os.path.exists(path) else ""
            message = f"imported file '{statement.path}' cannot be read{reason}"
            self.report.error("E0107", message, statement.span, hint)
            return
        shown = str(folder / statement.path)
        document = parse(text, shown)
        self.report.add_source(shown, text)
        self.report.extend(document.problems, document.num_untold)
        self._open.append(path)
        self._take(document, path.parent)
        self._open.pop()


def _resolved(path: Path) -> Path:
    try:
        return Path(os.path.realpath(path))  # unlike Path.resolve, it takes links in a ring
    except (OSError, ValueError):  # too long, or no path at all: reading it will say so
        return path
