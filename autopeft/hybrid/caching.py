"""Whether what is attached to a model lets it generate with a cache of keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from autopeft.graph import CompositionGraph, build_graph
from autopeft.hybrid.modules import ROOT, Root
from autopeft.injection import allows_cache
from autopeft.method import reserved_rows

__all__ = ["generates_from_cache"]


def generates_from_cache(model: nn.Module, tokens: int) -> bool:
    """Whether `generate` of a model with what is attached to it works with `use_cache=True`. Of several
    hybrids each has to allow it, and their prompts in front of what is written have to be of one length.

    Args:
        tokens: of the shortest text that is written on.
    """
    root = getattr(model, ROOT, None)
    if root is None:
        return True
    several = [part for part in root.children() if isinstance(part, Root)]
    lanes = [(_graph(one), dict(one.named_children())) for one in several or [root]]
    return all(allows_cache(*lane, tokens) for lane in lanes) and len({_rows(*lane) for lane in lanes}) < 2


def _graph(root: Root) -> CompositionGraph:
    assert root.recipe is not None
    assert root.spec is not None
    return build_graph(root.recipe, root.spec)


def _rows(graph: CompositionGraph, modules: Mapping[str, Any]) -> int:
    """Rows that prompts reserve in the stack that writes."""
    stack = graph.spec.stacks[-1].name
    return sum(
        reserved_rows(modules[name], [site for site in entry.sites if site.stack == stack])
        for name, entry in graph.entries.items()
        if "prompt" in entry.ways
    )
