"""The composition graph: a recipe resolved on a backbone, checked before anything is built."""

from __future__ import annotations

from autopeft.graph.core import CompositionGraph, Entry, Leaf, Node, Tree, build_graph, child_spec

__all__ = ["CompositionGraph", "Entry", "Leaf", "Node", "Tree", "build_graph", "child_spec"]
