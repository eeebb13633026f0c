"""No import circle in the package, imports for type checking alone and those inside functions included."""

from __future__ import annotations

import sys
from pathlib import Path

import grimp
import networkx as nx
import pytest

ROOT = Path(__file__).parents[1]


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
    assert graph.number_of_edges() > 1000
    return graph


@pytest.mark.parametrize("depth", [None, 2], ids=["modules", "rooms"])
def test_nothing_imports_itself_around_corners(imports: nx.DiGraph, depth: int | None) -> None:
    graph = nx.DiGraph()
    for importer, imported in imports.edges:
        a, b = (".".join(name.split(".")[:depth]) for name in (importer, imported))
        if a != b and (depth is None or "autopeft" not in (a, b)):
            graph.add_edge(a, b)
    circles = [sorted(found) for found in nx.strongly_connected_components(graph) if len(found) > 1]
    assert circles == []
