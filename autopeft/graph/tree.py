"""The parts of a composition graph: entries, and the trees in which they act."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from autopeft.composition import ChildSpec, Way, input_width
from autopeft.method import ParameterCount, Traits
from autopeft.spec import Site

__all__ = ["Entry", "Leaf", "Node", "Tree", "child_spec"]


@dataclass(frozen=True)
class Entry:
    """A recipe entry on this backbone.

    Attributes:
        name: unique in the recipe.
        method: configured.
        sites: in the spec's order.
        count: its parameters.
        traits: those of the method.
        ways: how it acts, as its traits say.
        frozen: whether it acts with the values of an input and does not train.
    """

    name: str
    method: Any
    sites: tuple[Site, ...]
    count: ParameterCount
    traits: Traits
    ways: frozenset[Way]
    frozen: bool = False


@dataclass(frozen=True)
class Leaf:
    """One entry."""

    name: str


@dataclass(frozen=True)
class Node:
    """A composition over children."""

    name: str
    kind: str
    children: tuple[Tree, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    count: ParameterCount = ParameterCount(0, 0)  # noqa: RUF009 (frozen)


Tree = Leaf | Node


def child_spec(entries: Mapping[str, Entry], tree: Tree) -> ChildSpec:
    """The spec of a child for the composition above it; an inner composition has the ways and sites of all
    its children."""
    if isinstance(tree, Leaf):
        entry = entries[tree.name]
        traits = entry.traits
        return ChildSpec(
            tree.name,
            entry.name,
            entry.ways,
            entry.sites,
            traits.pretrained,
            int(traits.phased),
            resizes=traits.data_dependent,
            directed=traits.direction,
            remade=traits.remade,
            fed=getattr(entry.method, "fed_width", input_width),
            frozen=entry.frozen,
            part_size=getattr(entry.method, "part_size", None),
            searched=traits.searched,
        )
    inner = [child_spec(entries, c) for c in tree.children]
    sites = {s.key: s for c in inner for s in c.sites}
    ways: frozenset[Way] = frozenset(w for c in inner for w in c.ways)
    label = f"{tree.kind}({', '.join(c.label for c in inner)})"
    return ChildSpec(
        tree.name,
        label,
        ways,
        tuple(sites.values()),
        any(c.pretrained for c in inner),
        sum(c.phased for c in inner),
        resizes=any(c.resizes for c in inner),
        directed=any(c.directed for c in inner),
        remade=any(c.remade for c in inner),
        searched=any(c.searched for c in inner),
    )
