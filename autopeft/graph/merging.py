"""Whether a graph can be folded into the backbone's own weights, known before anything is built."""

from __future__ import annotations

from collections.abc import Sequence

from autopeft.composition import get_composition
from autopeft.graph.core import CompositionGraph
from autopeft.graph.tree import Leaf, Tree
from autopeft.spec import BackboneSpec, Site

__all__ = ["REGION_ENDS", "first_unmergeable", "readers_of", "unmergeable"]

_READERS = {
    "attention": ("q", "k", "v", "qkv"),
    "cross_attention": ("cross_q",),
    "ffn": ("up", "gate_proj"),
}
"""The linear maps that read what a region reads."""


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


def readers_of(spec: BackboneSpec, norm: Site) -> tuple[Site, ...]:
    """The linear maps that read a norm in front of a sub-layer, all that do; none where that is not known.

    An FFN without a norm of its own reads that of the attention (Phi).
    """
    where = (norm.stack, norm.layer)
    regions = [norm.name.removesuffix("_norm")]
    if regions == ["attention"] and spec.find(*where, "ffn_norm") is None:
        regions += ["ffn"] if spec.find(*where, "ffn") is not None else []
    found: list[Site] = []
    for name in regions:
        region = spec.find(*where, name)
        maps = [site for m in _READERS[name] if (site := spec.find(*where, m)) is not None]
        if region is None or not region.pre_norm or not maps:
            return ()
        found += maps
    return tuple(found)


def unmergeable(graph: CompositionGraph) -> str | None:
    """Why a graph cannot be folded into the backbone's weights, as part of a sentence; `None` where it can.

    It is what `Hybrid.merge` finds on an unquantised model.
    """
    tree = first_unmergeable(graph)
    if isinstance(tree, Leaf):
        return f"{tree.name} cannot be folded into weights"
    if tree is not None:
        return f"{tree.name} depends on the input"
    # What is added to a norm without a bias goes into the maps that read it.
    acted_on = {
        site.key
        for entry in graph.entries.values()
        if "hook" in entry.ways
        for site in entry.sites
        if site.kind == "norm"
    }
    for site in graph.sites():
        if site.key in acted_on and not site.bias and not readers_of(graph.spec, site):
            return f"{site.path} has no bias, and nothing known reads it"
    return None
