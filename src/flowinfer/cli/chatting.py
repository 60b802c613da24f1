"""A conversation as it is typed: answers as they are written, and what begins with a slash."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flowinfer.cli.entries import Entries
from flowinfer.cli.inputs import show_error
from flowinfer.cli.traced import traced
from flowinfer.errors import FlowInferError, UsageError
from flowinfer.files import write_whole
from flowinfer.language.nearness import near_or_all
from flowinfer.output.console import PlainConsole, plain
from flowinfer.output.terminal import visible_line
from flowinfer.serving.bodies import check_options
from flowinfer.serving.conversation import SETTINGS, Conversation, Exchange, options_of
from flowinfer.serving.events import Event
from flowinfer.serving.partner import Partner
from flowinfer.serving.problems import Problem
from flowinfer.serving.telling import Piece


class AnswerEnded(KeyboardInterrupt):
    """Somebody wants no more of an answer, or another line."""


class Leave(Exception):
    """Somebody wants to leave."""


class Chat:
    """Talk with a partner until the entries end.

    Args:
        partner: who answers.
        settings: see `Conversation`.
        is_typed: whether somebody sits there; else answers are all that is printed.
    """

    def __init__(self, partner: Partner, settings: Mapping[str, Any], *, is_typed: bool) -> None:
        self._partner, self._is_typed = partner, is_typed
        self._is_shown = is_typed and sys.stdout.isatty()
        self._entries = Entries(is_typed=is_typed, prompts=self._is_shown)
        self._talk = Conversation(dict(settings))
        self._events: list[Event] = []
        """Of the last answer."""
        self._saved: set[Path] = set()
        self._console = PlainConsole()
        self._commands: Mapping[str, tuple[str, str, Callable[[str], None]]] = {
            "/help": ("", "this list", self._help),
            "/trace": (
                "",
                "the last answer stage by stage: prompts, texts, and tokens that heads disagreed about",
                self._trace,
            ),
            "/flow": (
                "[NAME]",
                "let another flow answer from now on: a file, or a name; alone: which there are",
                self._flow,
            ),
            "/set": ("[NAME=[VALUE]]", f"{', '.join(SETTINGS)}; without a value: the flow's own", self._set),
            "/save": ("FILE", "write the conversation: FILE.md to read, FILE.jsonl a message a line", self._save),
            "/new": ("", "begin another conversation", self._new),
            "/quit": ("", "leave, as Ctrl-D does", self._quit),
        }

    def run(self) -> int:
        """Answer entry after entry; return how many failed."""
        num_failed = 0
        while True:
            try:
                entry = self._entries.next(f"{visible_line(self._partner.flow)}> ")
                if entry is None:
                    break
                self._take(entry)
            except AnswerEnded:
                print()
            except Leave:
                return num_failed
            except FlowInferError as error:
                if error.exit_code == 0 or not error.exit_code:
                    raise
                num_failed += 1
                show_error(error)
        if self._is_shown:
            print()
        return num_failed

    def _take(self, entry: str) -> None:
        """Do or ask what was said."""
        name, _, rest = entry.partition(" ")
        if not entry.startswith("/"):
            if entry.strip():
                self._ask(entry)
        elif name in self._commands:
            self._commands[name][2](rest.strip())
        else:
            near = near_or_all(name, self._commands, "commands")
            raise UsageError(f"no command '{name}'", help=f"{near}; a question may begin with a space")

    def _ask(self, question: str) -> None:
        shown, self._events = _Shown(self._console, self._partner.flow, shows_thoughts=self._is_shown), []
        is_ended = False
        try:
            reason = self._partner.ask(self._talk.body(question), shown.hear, self._events)
        except AnswerEnded:
            reason, is_ended = "ended", True
        finally:
            shown.end()
        if self._is_typed and reason != "stop":
            print({"length": "(max_tokens reached)", "ended": "(ended)"}.get(reason, f"({reason})"), file=sys.stderr)
        if shown.answer or not is_ended:
            self._talk.exchanges.append(Exchange(question, shown.answer, self._partner.flow))

    def _help(self, rest: str) -> None:
        for name, (what, meaning, _) in self._commands.items():
            print(f"{f'{name} {what}':<22} {meaning}")
        print('Ctrl-C ends an answer. A line that ends with \\ goes on; """ begins and ends several lines.')

    def _trace(self, rest: str) -> None:
        if not self._events:
            raise UsageError("there is no answer to trace", help="ask first; a server of another kind tells no traces")
        for line in traced(self._events):
            print(line)

    def _flow(self, rest: str) -> None:
        if rest:
            self._partner.turn_to(rest)
        else:
            for name in self._partner.flows():
                print(("* " if name == self._partner.flow else "  ") + name)

    def _set(self, rest: str) -> None:
        settings = self._talk.settings
        if not rest:
            for name in SETTINGS:
                print(f"{name} = {_shown(settings[name])}" if name in settings else f"{name}: the flow's own")
            return
        name, equals, text = (part.strip() for part in rest.partition("="))
        if name not in SETTINGS:
            raise UsageError(f"no setting '{name}'", help=near_or_all(name, SETTINGS, "settings"))
        if not equals:
            raise UsageError(
                f"/set {name}: expected NAME=VALUE", help=f"/set {name}=... or, for the flow's own, /set {name}="
            )
        found = {key: value for key, value in settings.items() if key != name}
        if text:
            found[name] = _value(name, text)
            try:
                check_options(options_of(found))
            except Problem as problem:
                raise UsageError(problem.message) from None
        self._talk.settings = found

    def _save(self, rest: str) -> None:
        path = Path(rest).expanduser()
        if path.suffix not in (".md", ".jsonl"):
            raise UsageError("expected the name of a file to write", help="/save FILE.md or /save FILE.jsonl")
        if os.path.lexists(path) and path.resolve() not in self._saved:
            raise UsageError(f"'{rest}' is there already", help="another name")
        text = self._talk.to_markdown() if path.suffix == ".md" else self._talk.to_jsonl()
        try:
            write_whole(path, text.encode("utf-8", "replace"))
        except OSError as error:
            raise UsageError(f"{rest}: cannot be written: {(error.strerror or str(error)).lower()}") from None
        self._saved.add(path.resolve())

    def _new(self, rest: str) -> None:
        self._talk.exchanges.clear()
        self._events = []

    def _quit(self, rest: str) -> None:
        raise Leave


class _Shown:
    """An answer as it is shown: what earlier stages write, and thoughts, only to somebody who sits there."""

    def __init__(self, console: PlainConsole, flow: str, *, shows_thoughts: bool) -> None:
        self._console, self._flow, self._shows_thoughts = console, flow, shows_thoughts
        self._style = "" if os.environ.get("NO_COLOR") else "dim"
        self._has_thoughts = False
        self.answer = ""

    def hear(self, piece: Piece) -> None:
        """Show what is new."""
        if piece.thought and self._shows_thoughts:
            self._has_thoughts = True
            self._console.print(plain(piece.thought, self._style), end="")
        if not piece.text:
            return
        if self._has_thoughts and not self.answer:
            self._console.print(plain(f"[{self._flow}]\n", self._style), end="")
        self.answer += piece.text
        print(piece.text, end="", flush=True)

    def end(self) -> None:
        """End its last line."""
        if self.answer or self._has_thoughts:
            print(flush=True)


def _value(name: str, text: str) -> Any:  # JSON
    """Return a value as typed: a number, a list or a text in quotes as JSON has it, anything else as it stands."""
    if name == "system":
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _shown(value: Any) -> str:  # JSON
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
