"""Terminal drawings: a recursion over blocks of characters that each know the row where their line runs.

A block is entered on its left and left on its right at one row. Series put blocks side by side, groups stack them
between a fork and a join. Top-down drawings are the same recursion turned: blocks know a column instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from flowinfer.drawing.labels import draw, weight_text
from flowinfer.language.diagnostics import display_width
from flowinfer.spec import Flow, Parallel

_ASCII = str.maketrans("─│┌┐└┘├┤┬┴┼▶▼⊕→", "-|+++++++++>v+>")


@dataclass(frozen=True)
class Block:
    """Lines of equal display width, and the row (or column) that its line runs through."""

    lines: tuple[str, ...]
    axis: int
    forks: bool = False
    """Whether its line forks at once, so that no arrow points at its edge."""

    @property
    def width(self) -> int:
        """Return its display width."""
        return display_width(self.lines[0]) if self.lines else 0


def render(flow: Flow, *, width: int = 100, ascii: bool = False) -> str:
    """Draw a flow, left to right if that fits into `width` columns, else top-down."""
    block = draw(flow, _Wide())
    if block.width > width:
        block = min(block, draw(flow, _Tall()), key=lambda drawn: max(drawn.width, width))
    text = "\n".join(line.rstrip() for line in block.lines)
    return text.translate(_ASCII) if ascii else text


def _centred(text: str, width: int) -> str:
    free = width - display_width(text)
    return " " * (free // 2) + text + " " * (free - free // 2)


def _rule(length: int, axes: Sequence[int], middle: int, marks: str) -> list[str]:
    """Return the characters that fork one line into several, or join them.

    Args:
        axes: where the branches' lines are.
        middle: where the line outside is.
        marks: first corner, tee, last corner, straight, cross, tee without branch, bar; corners with the line outside.
    """
    first, tee, last, straight, cross, plain, bar, first_tee, last_tee = tuple(marks)

    def mark(at: int) -> str:
        is_middle = at == middle
        if not axes[0] <= at <= axes[-1]:
            return " "
        if len(axes) == 1:
            return straight
        if at in (axes[0], axes[-1]):
            corner, with_line = (first, first_tee) if at == axes[0] else (last, last_tee)
            return with_line if is_middle else corner
        if at in axes:
            return cross if is_middle else tee
        return plain if is_middle else bar

    return [mark(at) for at in range(length)]


class _Wide:
    """Draws left to right."""

    def box(self, title: str, detail: str = "", part: str = "") -> Block:
        """Return a box; its line runs through the title."""
        rows = [title, detail] if detail else [title]
        inner = max(display_width(row) for row in rows) + 2
        body = [f"│{_centred(row, inner)}│" for row in rows]
        return Block((f"┌{'─' * inner}┐", *body, f"└{'─' * inner}┘"), 1)

    def series(self, parts: Sequence[Block], joint: str = "──▶") -> Block:
        """Put blocks side by side, their lines on one row, joined by arrows."""
        above = max(part.axis for part in parts)
        height = above + max(len(part.lines) - part.axis for part in parts)
        rows = [""] * height
        for part in parts:
            top, blank = above - part.axis, " " * part.width
            lines = [blank] * top + list(part.lines) + [blank] * (height - top - len(part.lines))
            if part is not parts[0]:
                link = joint.replace("▶", "─") if part.forks else joint
                lines = [(link if row == above else " " * len(joint)) + line for row, line in enumerate(lines)]
            rows = [row + line for row, line in zip(rows, lines, strict=True)]
        return Block(tuple(rows), above, parts[0].forks)

    def group(self, group: Parallel, parts: Sequence[Block], title: str) -> Block:
        """Stack branches between a fork and a join; the group's line runs through the middle."""
        inner = max(part.width for part in parts)
        weights = [weight_text(group, branch) for branch in group.branches]
        tail = max(display_width(weight) for weight in weights)
        rows: list[str] = []
        axes: list[int] = []
        for part, weight in zip(parts, weights, strict=True):
            axes.append(len(rows) + part.axis)
            for index, line in enumerate(part.lines):
                on_line = index == part.axis
                fill = ("─" if on_line else " ") * (inner - part.width)
                note = f"─{weight}{'─' * (tail - display_width(weight))}─" if on_line else " " * (tail + 2)
                lead = ("─" if part.forks else "▶") if on_line else " "
                rows.append(lead + line + fill + note)
        middle = (axes[0] + axes[-1]) // 2
        fork, join = (_rule(len(rows), axes, middle, marks) for marks in ("┌├└─┼┤│┬┴", "┐┤┘─┼├│┬┴"))
        body = Block(tuple(f"{a}{row}{b}" for a, row, b in zip(fork, rows, join, strict=True)), middle, True)
        return self.series([body, self.box(title)], "─▶")


class _Tall:
    """Draws top-down."""

    def box(self, title: str, detail: str = "", part: str = "") -> Block:
        """Return a box; its line runs through its middle column."""
        block = _Wide().box(title, detail)
        return replace(block, axis=block.width // 2)

    def series(self, parts: Sequence[Block]) -> Block:
        """Put blocks under one another, their lines in one column, joined by arrows."""
        left = max(part.axis for part in parts)
        width = left + max(part.width - part.axis for part in parts)
        rows: list[str] = []
        for part in parts:
            if part is not parts[0]:
                rows += [_at(left, "│", width)] + [_at(left, "▼", width)] * (not part.forks)
            shift = left - part.axis
            rows += [" " * shift + line + " " * (width - shift - display_width(line)) for line in part.lines]
        return Block(tuple(rows), left, parts[0].forks)

    def group(self, group: Parallel, parts: Sequence[Block], title: str) -> Block:
        """Put branches side by side under a fork and over a join."""
        weights = [weight_text(group, branch) for branch in group.branches]
        height = max(len(part.lines) for part in parts)
        rows = [""] * height
        axes: list[int] = []
        notes = ""
        for part, weight in zip(parts, weights, strict=True):
            gap = "  " if axes else ""
            axes.append(display_width(notes + gap) + part.axis)
            room = max(part.width, part.axis + 2 + display_width(weight))
            for row in range(height):
                line = part.lines[row] if row < len(part.lines) else _at(part.axis, "│", part.width)
                rows[row] += gap + line + " " * (room - part.width)
            note = " " * part.axis + "│" + (f" {weight}" if weight else "")
            notes += gap + note + " " * (room - display_width(note))
        middle, width = (axes[0] + axes[-1]) // 2, display_width(notes)
        fork, join = ("".join(_rule(width, axes, middle, marks)) for marks in ("┌┬┐│┼┴─├┤", "└┴┘│┼┬─├┤"))
        marks = {axis: "│" if part.forks else "▼" for axis, part in zip(axes, parts, strict=True)}
        heads = "".join(marks.get(column, " ") for column in range(width))
        body = (fork, heads, *rows, *([notes] if any(weights) else []), join)
        return self.series([Block(body, middle, True), self.box(title)])


def _at(column: int, mark: str, width: int) -> str:
    return " " * column + mark + " " * (width - column - 1)
