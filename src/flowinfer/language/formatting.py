"""The canonical layout of a `.flow` text. Formatting twice changes nothing more, and comments stay."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence

from flowinfer.errors import FlowError
from flowinfer.language.characters import NAME
from flowinfer.language.diagnostics import display_width
from flowinfer.language.syntax import parse
from flowinfer.language.texts import quote, requote
from flowinfer.language.tree import (
    Branch,
    Call,
    Chain,
    Comment,
    Defaults,
    Document,
    FlowStatement,
    Group,
    Import,
    Let,
    Model,
    Name,
    Option,
    Param,
    Prompt,
    Stage,
    Statement,
    Value,
)

_WIDTH = 100
_MENDED = frozenset({"E0002", "E0008"})
"""Slips that formatting itself puts right."""
_MARKS = {"fuse": "|", "answers": "&", "choice": "/"}
_RESERVED = frozenset({"model", "prompt", "param", "defaults", "let", "import", "as"})


def format_text(text: str, file: str = "<flow>") -> str:
    """Return a text in the canonical layout.

    Raises:
        FlowError: it has mistakes that formatting cannot put right.
    """
    document = parse(text, file)
    if document.codes - _MENDED or not document.is_whole:
        bad = [d for d in document.problems if d.code not in _MENDED]
        raise FlowError(bad or document.problems, num_untold=document.num_untold)
    return _Writer(document).write()


class _Writer:
    def __init__(self, document: Document) -> None:
        self._document = document
        self._comments = deque(document.comments)
        self._lines: list[str] = []
        self._last_line = 0
        """Line of the source that was written last."""

    def write(self) -> str:
        for statement in self._document.statements:
            span = statement.span
            trailing = []
            for comment in self._comments_until(span.end_line):
                if comment.line < span.line:
                    self._comment(comment)
                elif comment.is_alone or comment.line < span.end_line:
                    self._comment(Comment(comment.text, span.line, True))
                else:
                    trailing.append(f"  {_comment_text(comment)}")
            self._separate(span.line)
            self._lines += (format_statement(statement) + "".join(trailing)).split("\n")
            self._last_line = span.end_line
        for comment in self._comments:
            self._comment(comment)
        return "\n".join(self._lines) + "\n" if self._lines else ""

    def _comments_until(self, line: int) -> Iterator[Comment]:
        while self._comments and self._comments[0].line <= line:
            yield self._comments.popleft()

    def _comment(self, comment: Comment) -> None:
        self._separate(comment.line)
        self._lines.append(_comment_text(comment))
        self._last_line = comment.line

    def _separate(self, line: int) -> None:
        """Keep one blank line where the source has any."""
        if self._lines and line > self._last_line + 1:
            self._lines.append("")


def _comment_text(comment: Comment) -> str:
    body = comment.text[1:]
    return "#" + (body if not body or body[0] in " !#" else f" {body}")


def format_statement(statement: Statement) -> str:
    """Return one statement in the canonical layout."""
    match statement:
        case Model():
            head = f"model {_name(statement.name)} = {_value(statement.ref)}"
            return head + (" " + _settings(statement.options, len(head) + 1) if statement.options else "")
        case Prompt():
            return f"prompt {_name(statement.name)} = {_value(statement.template)}"
        case Param():
            default = f" = {_value(statement.default)}" if statement.default else ""
            return f"param {_name(statement.name)}: {statement.type.text}{default}"
        case Defaults():
            return "defaults " + _settings(statement.options, 9)
        case Let():
            return f"let {_name(statement.name)} = " + _chain(statement.chain, 0)
        case Import():
            return f"import {quote(statement.path)}"
        case FlowStatement():
            return _chain(statement.chain, 0)


def _chain(chain: Chain, indent: int) -> str:
    flat = " -> ".join(_flat(stage) for stage in chain.stages)
    if display_width(flat) + indent <= _WIDTH and "\n" not in flat:
        return flat
    joint = "\n" + " " * indent + "-> "
    return joint.join(_broken(stage, indent) for stage in chain.stages)


def _broken(stage: Stage, indent: int) -> str:
    """Return a stage over several lines if it does not fit on one."""
    flat = _flat(stage)
    if isinstance(stage, Call) or (display_width(flat) + indent <= _WIDTH and "\n" not in flat):
        return flat
    inner = " " * (indent + 4)
    mark = _MARKS[stage.kind]
    branches = f"\n{inner}{mark} ".join(_branch(branch, _chain(branch.chain, indent + 6)) for branch in stage.branches)
    return f"(\n{inner}  {branches}\n{' ' * indent}){_suffix(stage)}"


def _flat(stage: Stage) -> str:
    if isinstance(stage, Call):
        return _name(stage.name) + _suffix(stage)
    mark = f" {_MARKS[stage.kind]} "
    branches = (_branch(b, " -> ".join(_flat(s) for s in b.chain.stages)) for b in stage.branches)
    return f"({mark.join(branches)}){_suffix(stage)}"


def _branch(branch: Branch, chain: str) -> str:
    return chain if branch.weight is None else f"{chain}:{_weight(branch)}"


def _weight(branch: Branch) -> str:
    """Return a weight in few digits, or as written where those would change it."""
    short = f"{branch.weight:g}"
    return short if float(short) == branch.weight and short != "inf" else branch.weight_text


def _suffix(stage: Call | Group) -> str:
    options = "[" + ", ".join(_option(option) for option in stage.options) + "]" if stage.options else ""
    times = f"*{stage.times.raw}" if isinstance(stage, Group) and stage.times else ""
    return times + options + (f" as {_name(stage.label)}" if stage.label else "")


def _settings(options: Sequence[Option], used: int) -> str:
    if not options:
        return "{}"
    flat = "{ " + ", ".join(_option(option) for option in options) + " }"
    if "\n" not in flat and used + display_width(flat) <= _WIDTH:
        return flat
    return "{\n" + "".join(f"    {_option(option)},\n" for option in options) + "}"


def _option(option: Option) -> str:
    return f"{option.key}={_value(option.value)}"


def _value(value: Value) -> str:
    if value.kind == "list":
        return "[" + ", ".join(_value(item) for item in value.data) + "]"
    if value.kind == "applied":
        return f"{value.data[0]}({_name(value.data[1])})"
    return requote(value.raw) if value.kind == "string" else value.raw


def _name(name: Name) -> str:
    is_plain = re.fullmatch(NAME, name.text) and name.text not in _RESERVED
    if is_plain:
        return name.text
    return quote(name.text)
