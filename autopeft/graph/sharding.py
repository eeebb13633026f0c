"""Whether a graph can be trained over several processes, known before anything is built.

Each process has some of the rows of a step, and of each frozen layer a part that is put together while the
layer computes. What measures the whole backbone, goes its own way through the steps, or makes a term of the
loss of all rows together would do something else in each process.
"""

from __future__ import annotations

from collections.abc import Iterator

from autopeft.composition import get_composition
from autopeft.graph.core import CompositionGraph

__all__ = ["on_sharded", "on_sharded_entries"]


def on_sharded(graph: CompositionGraph) -> str | None:
    """Why a graph cannot be trained over several processes, as part of a sentence; `None` where it can."""
    return next((f"{name} {why}" for name, why in _reasons(graph)), None)


def on_sharded_entries(graph: CompositionGraph) -> int:
    """How many entries and compositions stand in the way, so that a search can tell what is nearer."""
    return sum(1 for _ in _reasons(graph))


def _reasons(graph: CompositionGraph) -> Iterator[tuple[str, str]]:
    for entry in graph.entries.values():
        traits = entry.traits
        if "calibration" in traits.needs:
            yield entry.name, "is calibrated on the whole backbone before training"
        elif traits.phased:
            yield entry.name, "trains in phases of its own"
        elif traits.batch_terms:
            yield entry.name, "has a term of the loss that is of all rows of a batch together"
    for node in graph.nodes():
        option = get_composition(node.kind).traits.batch_terms
        if option and node.options.get(option):
            yield node.name, f"has a term of the loss ({option}) that is of all rows of a batch together"
