"""Whether a decoding step can go on from keys and values in a cache, known before a model runs.

What reads a text as a whole is another when the text has grown, and the cache holds what it was before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from autopeft.composition import is_of_the_source
from autopeft.graph import CompositionGraph
from autopeft.method import Slot
from autopeft.spec import Site, StackSpec

__all__ = ["allows_cache", "moving", "not_kept"]


def not_kept(stack: StackSpec, late: Iterable[Slot]) -> str:
    """Why rows in front of layers cannot be in a cache, in words; empty where they can. Every position sees
    them, but where a window slides its layer keeps the last keys alone, and where rows leave behind their
    layer caches of the layers are of different lengths, of which a model asks the first alone."""
    late = tuple(late)
    if any(slot.leaves for slot in late):
        return "stand in one layer alone, so that the caches of the layers have different lengths"
    if stack.window is not None and any(slot.adds for slot in late):
        return "slide out of the window of keys and values that its cache keeps"
    return ""


def moving(slots: Iterable[Slot], *, sees_text: bool, tokens: int) -> str:
    """Why a prompt of a causal stack is another when its text has grown, in words; empty where it stays.

    Args:
        slots: the rows that it fills.
        sees_text: whether it is made of the text.
        tokens: of the shortest text.
    """
    slots = tuple(slots)
    behind = max((slot.offset for slot in slots if slot.anchor == "front"), default=0)
    if behind > tokens:
        return f"stands behind the first {behind} tokens of a text that had {tokens}"
    if any(slot.anchor == "end" for slot in slots):
        return "stands at the end of the text"
    return "depends on the text" if sees_text else ""


def allows_cache(graph: CompositionGraph, modules: Mapping[str, Any], tokens: int) -> bool:
    """Whether each decoding step under a graph can go on from keys and values in a cache.

    An encoder reads its text once, so that only what acts in causal stacks counts.

    Args:
        modules: of the graph's entries and compositions, by name.
        tokens: of the shortest text, before the first step.
    """
    return not _moves(graph, modules, tokens) and not _pools(graph, modules)


def _moves(graph: CompositionGraph, modules: Mapping[str, Any], tokens: int) -> bool:
    """Whether a prompt of a causal stack is another when its text has grown."""
    for name, entry in graph.entries.items():
        sites = [site for site in entry.sites if graph.spec.stack(site.stack).causal]
        prompting = sites if "prompt" in entry.ways else []
        slots = [slot for site in prompting for slot in modules[name].slots(site)]
        if sites and moving(slots, sees_text=entry.traits.sees_text, tokens=tokens):
            return True
        late = [site for site in prompting if site.layer is not None]
        if any(not_kept(graph.spec.stack(s.stack), modules[name].slots(s)) for s in late):
            return True
    return False


def _pools(graph: CompositionGraph, modules: Mapping[str, Any]) -> bool:
    """Whether a composition looks at a causal stack's sequence as a whole."""

    def counts(site: Site) -> bool:
        # Keys and values of the source are kept as they are.
        return graph.spec.stack(site.stack).causal and not is_of_the_source(site)

    for node in graph.nodes():
        pools = getattr(modules[node.name], "pools", None)
        if pools is not None and any(pools(s) for e in graph.leaves(node) for s in e.sites if counts(s)):
            return True
    return False
