"""How a graph lies in the stacks: the lowest layer that it alters, and what it asks of the last one."""

from __future__ import annotations

from autopeft.composition import get_composition
from autopeft.graph.core import CompositionGraph

__all__ = ["first_layer", "is_rowwise_in", "is_rowwise_on_logits"]


def first_layer(graph: CompositionGraph) -> int:
    """The index of the first layer that differs from the bare backbone's, over the stacks one after the
    other.

    Sites outside the layers (embeddings) and methods on tensors of the whole model make it 0; with nothing
    attached, and with what acts on logits alone, it is the number of layers. A calibrated mask may leave more
    layers alone; see `autopeft.injection.depth` for what a live hybrid alters.
    """
    total = sum(stack.layers for stack in graph.spec.stacks)
    starts: dict[str, int] = {}
    below = 0
    for stack in graph.spec.stacks:
        starts[stack.name] = below
        below += stack.layers
    lowest = total
    for entry in graph.entries.values():
        if not entry.sites and entry.ways - {"logits"}:
            return 0
        for site in entry.sites:
            lowest = min(lowest, 0 if site.layer is None else starts[site.stack] + site.layer)
    return lowest


def is_rowwise_in(graph: CompositionGraph, stack: str, layer: int) -> bool:
    """Whether everything that acts in a layer does so position by position.

    Weight methods and prefixes always do; a gate averages over the positions, as a route may, and what takes
    the place of a layer may choose among them.
    """
    for site in graph.sites():
        if (site.stack, site.layer) != (stack, layer):
            continue
        for tree in graph.trees_at(site):
            if any(e.ways & {"hook", "region"} and not e.traits.rowwise for e in graph.leaves(tree)):
                return False
            if not all(get_composition(node.kind).traits.rowwise for node in graph.nodes(tree)):
                return False
    return True


def is_rowwise_on_logits(graph: CompositionGraph) -> bool:
    """Whether what is added to the logits of a position depends on what their map reads there alone."""
    return all(e.traits.rowwise for e in graph.entries.values() if "logits" in e.ways)
