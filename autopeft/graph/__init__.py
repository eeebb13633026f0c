"""The composition graph: a recipe resolved on a backbone, checked before anything is built."""

from __future__ import annotations

from autopeft.graph.core import CompositionGraph, Entry, Leaf, Node, Tree, build_graph, child_spec
from autopeft.graph.memo import Memo
from autopeft.graph.parts import Part, Parts, Shape, clash, hash_of, parts_of, total_of
from autopeft.graph.places import WHOLE

__all__ = [
    "WHOLE",
    "CompositionGraph",
    "Entry",
    "Leaf",
    "Memo",
    "Node",
    "Part",
    "Parts",
    "Shape",
    "Tree",
    "build_graph",
    "child_spec",
    "clash",
    "hash_of",
    "parts_of",
    "total_of",
]
