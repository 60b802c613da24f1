"""The console that tables and bars are shown on: every text as it is, never read as markup or emoji codes."""

from __future__ import annotations

import sys
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from flowinfer.output.terminal import GuardedStream, visible


class PlainConsole(Console):
    """A rich console that is safe to print any text on; style goes by `style=` and by `plain`.

    Args:
        stderr: on standard error, not output.
        file: where to instead.
        soft_wrap: leave breaking long lines to the terminal.
    """

    def __init__(self, *, stderr: bool = False, file: TextIO | None = None, soft_wrap: bool = True) -> None:
        stream = sys.stderr if stderr else sys.stdout
        if file is None and isinstance(stream, GuardedStream):
            file = _Past(stream)  # type: ignore[assignment]  # as much of a stream as rich uses
        super().__init__(stderr=stderr, file=file, soft_wrap=soft_wrap, highlight=False, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a text that is shown as it is."""
        return super().render_str(visible(text), **(options | {"markup": False, "emoji": False, "highlight": False}))


def plain(text: str, style: str = "") -> Text:
    """Return a text in a style, for titles and where only a part has one; nothing in it steers or is markup."""
    return Text(visible(text), style=style)


class _Past:
    """A guarded stream as rich writes to it."""

    def __init__(self, stream: GuardedStream) -> None:
        self._stream = stream
        self.write = stream.write_made

    def __getattr__(self, name: str) -> Any:  # whatever a stream has
        return getattr(self._stream, name)
