"""Terminal drawings: a recursion over blocks of characters that each know the row where their line runs.

A block is entered on its left and left on its right at one row. Series put blocks side by side, groups stack them
between a fork and a join. Top-down drawings are the same recursion turned: blocks know a column instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flowinfer.drawing.labels import fuse_title, join_title, node_label, weight_text
from flowinfer.language.diagnostics import display_width
from flowinfer.spec import Flow, Node, Parallel, Part, Series

_ASCII = str.maketrans(
    {
        "─": "-",
        "│": "|",
        "┌": "+",
        "┐": "+",
        "└": "+",
        "┘": "+",
        "├": "+",
        "┤": "+",
        "┬": "+",
        "┴": "+",
        "┼": "+",
        "▶": ">",
        "▼": "v",
        "⊕": "+",
        "→": ">",
    }
)


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
    block = _wide_series([_box("question"), *_wide_stages(flow.root), _box("answer")])
    if block.width > width:
        tall = _tall_series([_box("question"), *_tall_stages(flow.root), _box("answer")])
        block = min(block, tall, key=lambda drawn: max(drawn.width, width))
    text = "\n".join(line.rstrip() for line in block.lines)
    return text.translate(_ASCII) if ascii else text


def _stages(part: Part) -> Sequence[Part]:
    return part.stages if isinstance(part, Series) else (part,)


def _box(title: str, detail: str = "") -> Block:
    """Return a box; its line runs through the title."""
    rows = [title, detail] if detail else [title]
    inner = max(display_width(row) for row in rows) + 2
    body = [f"│{_centred(row, inner)}│" for row in rows]
    return Block((f"┌{'─' * inner}┐", *body, f"└{'─' * inner}┘"), 1)


def _node_box(node: Node) -> Block:
    label = node_label(node)
    return _box(label.title, label.detail)


def _centred(text: str, width: int) -> str:
    free = width - display_width(text)
    return " " * (free // 2) + text + " " * (free - free // 2)


# Left to right


def _wide_stages(part: Part, *, is_end: bool = True) -> list[Block]:
    stages = _stages(part)
    return [_wide(stage, is_end=is_end and stage is stages[-1]) for stage in stages]


def _wide(part: Part, *, is_end: bool) -> Block:
    match part:
        case Node():
            return _node_box(part)
        case Series():
            return _wide_series(_wide_stages(part, is_end=is_end))
        case Parallel():
            return _wide_group(part, is_end=is_end)


def _wide_series(blocks: Sequence[Block], joint: str = "──▶") -> Block:
    """Put blocks side by side, their lines on one row, joined by arrows."""
    above = max(block.axis for block in blocks)
    below = max(len(block.lines) - block.axis for block in blocks)
    columns = [_shifted(block, above, above + below) for block in blocks]
    rows = []
    for row in range(above + below):
        text = columns[0][row]
        for block, column in zip(blocks[1:], columns[1:], strict=True):
            link = joint.replace("▶", "─") if block.forks else joint
            text += (link if row == above else " " * len(joint)) + column[row]
        rows.append(text)
    return Block(tuple(rows), above, blocks[0].forks)


def _shifted(block: Block, above: int, height: int) -> list[str]:
    blank = " " * block.width
    top = above - block.axis
    return [blank] * top + list(block.lines) + [blank] * (height - top - len(block.lines))


def _wide_group(group: Parallel, *, is_end: bool) -> Block:
    """Stack branches between a fork and a join; the group's line runs through the middle."""
    is_fuse = group.kind == "fuse"
    parts = [_wide_series(_wide_stages(branch.part, is_end=is_end)) for branch in group.branches]
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
    fork = _verticals(len(rows), axes, middle, "┌├└─┼┤│", is_left=True)
    join = _verticals(len(rows), axes, middle, "┐┤┘─┼├│", is_left=False)
    body = Block(tuple(f"{a}{row}{b}" for a, row, b in zip(fork, rows, join, strict=True)), middle, True)
    end = _box(fuse_title(group) if is_fuse else join_title(group, is_end=is_end))
    return _wide_series([body, end], "─▶")


def _verticals(height: int, axes: Sequence[int], middle: int, marks: str, *, is_left: bool) -> list[str]:
    """Return the column of characters that forks one line into several, or joins them.

    Args:
        axes: rows of the branches' lines.
        middle: row of the line outside.
        marks: corner at the top, tee, corner at the bottom, straight, cross, tee without branch, bar.
    """
    top, tee, bottom, straight, cross, plain, bar = tuple(marks)
    column = []
    for row in range(height):
        has_branch, is_middle = row in axes, row == middle
        inside = axes[0] < row < axes[-1]
        if len(axes) == 1:
            column.append(straight if has_branch else " ")
        elif row == axes[0]:
            column.append("┬" if is_middle else top)
        elif row == axes[-1]:
            column.append("┴" if is_middle else bottom)
        elif inside:
            column.append(cross if has_branch and is_middle else tee if has_branch else plain if is_middle else bar)
        else:
            column.append(" ")
    return column


# Top-down


def _tall_stages(part: Part, *, is_end: bool = True) -> list[Block]:
    stages = _stages(part)
    return [_tall(stage, is_end=is_end and stage is stages[-1]) for stage in stages]


def _tall(part: Part, *, is_end: bool) -> Block:
    match part:
        case Node():
            return _upright(_node_box(part))
        case Series():
            return _tall_series(_tall_stages(part, is_end=is_end))
        case Parallel():
            return _tall_group(part, is_end=is_end)


def _upright(block: Block) -> Block:
    """Return a box whose line runs through its middle column."""
    return Block(block.lines, block.width // 2)


def _tall_series(blocks: Sequence[Block]) -> Block:
    """Put blocks under one another, their lines in one column, joined by arrows."""
    upright = [
        _upright(block) if block.lines[0].startswith("┌") and len(block.lines) <= 4 else block for block in blocks
    ]
    left = max(block.axis for block in upright)
    width = left + max(block.width - block.axis for block in upright)
    rows: list[str] = []
    for index, block in enumerate(upright):
        if index:
            rows += [_at(left, "│", width)] + [_at(left, "▼", width)] * (not block.forks)
        shift = left - block.axis
        rows += [" " * shift + line + " " * (width - shift - display_width(line)) for line in block.lines]
    return Block(tuple(rows), left, blocks[0].forks)


def _at(column: int, mark: str, width: int) -> str:
    return " " * column + mark + " " * (width - column - 1)


def _tall_group(group: Parallel, *, is_end: bool) -> Block:
    """Put branches side by side under a fork and over a join."""
    parts = [_tall_series(_tall_stages(branch.part, is_end=is_end)) for branch in group.branches]
    weights = [weight_text(group, branch) for branch in group.branches]
    height = max(len(part.lines) for part in parts)
    rows = [""] * height
    axes: list[int] = []
    notes: list[str] = []
    width = 0
    for index, (part, weight) in enumerate(zip(parts, weights, strict=True)):
        gap = 2 if index else 0
        axes.append(width + gap + part.axis)
        room = max(part.width, part.axis + 2 + display_width(weight))
        for row in range(height):
            line = part.lines[row] if row < len(part.lines) else _at(part.axis, "│", part.width)
            rows[row] += " " * gap + line + " " * (room - part.width)
        notes.append(" " * gap + " " * part.axis + "│" + (f" {weight}" if weight else ""))
        notes[-1] += " " * (gap + room - display_width(notes[-1]))
        width += gap + room
    middle = (axes[0] + axes[-1]) // 2
    fork = _horizontal(width, axes, middle, "┌┬┐", "┴", "┼")
    marks = {axis: "│" if part.forks else "▼" for axis, part in zip(axes, parts, strict=True)}
    heads = "".join(marks.get(column, " ") for column in range(width))
    join = _horizontal(width, axes, middle, "└┴┘", "┬", "┼")
    body = [fork, heads, *rows, *(["".join(notes)] if any(weights) else []), join]
    title = fuse_title(group) if group.kind == "fuse" else join_title(group, is_end=is_end)
    return _tall_series([Block(tuple(body), middle, True), _upright(_box(title))])


def _horizontal(width: int, axes: Sequence[int], middle: int, marks: str, plain: str, cross: str) -> str:
    first, tee, last = tuple(marks)
    row = []
    for column in range(width):
        has_branch, is_middle = column in axes, column == middle
        if len(axes) == 1:
            row.append("│" if has_branch else " ")
        elif column == axes[0]:
            row.append("├" if is_middle else first)
        elif column == axes[-1]:
            row.append("┤" if is_middle else last)
        elif axes[0] < column < axes[-1]:
            row.append(cross if has_branch and is_middle else tee if has_branch else plain if is_middle else "─")
        else:
            row.append(" ")
    return "".join(row)
