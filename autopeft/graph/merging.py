"""What of a graph cannot be folded into the backbone's own weights, known before anything is built."""

from __future__ import annotations

from collections.abc import Sequence

from autopeft.composition import get_composition
from autopeft.graph.core import CompositionGraph
from autopeft.graph.tree import Leaf, Tree
from autopeft.spec import Site

__all__ = ["NORM_READERS", "REGION_ENDS", "first_unmergeable", "norms_without_readers", "unmergeable"]

NORM_READERS = {
    "attention": ("q", "k", "v", "qkv"),
    "cross_attention": ("cross_q",),
    "ffn": ("up", "gate_proj"),
}
"""The linear maps that read the norm in front of a region, where it comes before the sub-layer."""


REGION_ENDS = {"attention": "o", "cross_attention": "cross_o", "ffn": "down"}
"""The linear map whose output is what a region yields."""


def first_unmergeable(graph: CompositionGraph, trees: Sequence[Tree] | None = None) -> Tree | None:
    """The first entry or composition of these trees (default: of all), parents first, that cannot be folded
    into weights; `None` without any."""
    stack = list(graph.trees if trees is None else trees)
    while stack:
        tree = stack.pop(0)
        if isinstance(tree, Leaf):
            if not graph.entries[tree.name].traits.mergeable:
                return tree
            continue
        if not get_composition(tree.kind).traits.mergeable:
            return tree
        stack[:0] = tree.children
    return None


def norms_without_readers(graph: CompositionGraph) -> tuple[Site, ...]:
    """Norms without a bias that something acts on, and behind which no known maps could take what is
    added."""
    acted_on = {
        s.key for e in graph.entries.values() if "hook" in e.ways for s in e.sites if s.kind == "norm"
    }
    return tuple(
        site
        for site in graph.sites()
        if site.key in acted_on and not site.bias and not _has_readers(graph, site)
    )


def _has_readers(graph: CompositionGraph, norm: Site) -> bool:
    region = norm.name.removesuffix("_norm")
    own = graph.spec.find(norm.stack, norm.layer, region)
    readers = (graph.spec.find(norm.stack, norm.layer, name) for name in NORM_READERS[region])
    return own is not None and bool(own.pre_norm) and any(site is not None for site in readers)


def unmergeable(graph: CompositionGraph) -> str | None:
    """Why a graph cannot be folded into the backbone's weights, as part of a sentence; `None` where it can.

    It is what `Hybrid.merge` finds on an unquantised model.
    """
    tree = first_unmergeable(graph)
    if isinstance(tree, Leaf):
        return f"{tree.name} cannot be folded into weights"
    if tree is not None:
        return f"{tree.name} depends on the input"
    norms = norms_without_readers(graph)
    return f"{norms[0].path} has no bias, and nothing known reads it" if norms else None
