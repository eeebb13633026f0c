"""No import circle in the package, imports for type checking alone and those inside functions included."""

from __future__ import annotations

import sys
from pathlib import Path

import grimp
import networkx as nx
import pytest

ROOT = Path(__file__).parents[1]


def circles(graph: nx.DiGraph) -> list[list[str]]:
    """Sets of modules that import each other, around any number of corners."""
    return sorted(sorted(found) for found in nx.strongly_connected_components(graph) if len(found) > 1)


@pytest.fixture(scope="module")
def imports() -> nx.DiGraph:
    """Who imports whom."""
    before = list(sys.path)
    sys.path.insert(0, str(ROOT))  # `methods` is installed under another name
    try:
        read = grimp.build_graph("autopeft", "methods", exclude_type_checking_imports=False, cache_dir=None)
    finally:
        sys.path[:] = before
    graph = nx.DiGraph()
    for module in read.modules:
        graph.add_edges_from((module, other) for other in read.find_modules_directly_imported_by(module))
    return graph


def test_no_module_imports_itself_around_corners(imports: nx.DiGraph) -> None:
    assert circles(imports) == []


def test_no_room_imports_itself_around_corners(imports: nx.DiGraph) -> None:
    rooms = nx.DiGraph()
    for module, other in imports.edges:
        room, next_room = (".".join(name.split(".")[:2]) for name in (module, other))
        if room != next_room and "autopeft" not in (room, next_room):
            rooms.add_edge(room, next_room)
    assert circles(rooms) == []


def test_all_kinds_of_imports_are_seen(imports: nx.DiGraph) -> None:
    """Else there would be no circle to be found."""
    assert imports.has_edge("autopeft.cli.methods", "autopeft.report.methods"), "inside a function"
    assert imports.has_edge("autopeft.nn.hypergradient", "autopeft.method"), "for type checking alone"
    assert circles(nx.DiGraph([("a", "b"), ("b", "c"), ("c", "a"), ("c", "d")])) == [["a", "b", "c"]]
