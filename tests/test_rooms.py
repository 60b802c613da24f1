"""The house: rooms whose imports, those inside functions too, never go in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import networkx as nx

from tests.conftest import ROOT

_SOURCE = ROOT / "src"
_MODULES = {
    ".".join(path.relative_to(_SOURCE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in _SOURCE.rglob("*.py")
}
_MOST_TOP_FILES = 14


def _room(module: str) -> str:
    """Return the folder (in the engine: the folder or the file) that a module belongs to."""
    parts = module.split(".")
    return ".".join(parts[: 3 if parts[1:2] == ["engine"] else 2])


def _imported(module: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(_MODULES[module].read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in _MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in _MODULES:
            for alias in node.names:
                yield full if (full := f"{node.module}.{alias.name}") in _MODULES else node.module


def test_no_circle_of_imports_between_rooms() -> None:
    arrows = {(_room(module), _room(other)) for module in _MODULES for other in _imported(module)}
    rooms = nx.DiGraph((here, there) for here, there in arrows if here != there and "flowinfer" not in (here, there))
    assert len(rooms) > 20
    assert not [sorted(circle) for circle in nx.strongly_connected_components(rooms) if len(circle) > 1]


def test_few_files_stand_outside_a_room() -> None:
    assert len([name for name, path in _MODULES.items() if path.parent == _SOURCE / "flowinfer"]) <= _MOST_TOP_FILES
