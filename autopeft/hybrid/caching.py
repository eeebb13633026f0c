"""Whether what is attached to a model lets it generate with a cache of keys and values."""

from __future__ import annotations

from torch import nn

from autopeft.graph import build_graph
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
    lengths = set[int]()
    for one in [part for part in root.children() if isinstance(part, Root)] or [root]:
        assert one.recipe is not None
        assert one.spec is not None
        graph, modules = build_graph(one.recipe, one.spec), dict(one.named_children())
        if not allows_cache(graph, modules, tokens):
            return False
        writes = graph.spec.stacks[-1].name
        lengths.add(
            sum(
                reserved_rows(modules[name], [site for site in entry.sites if site.stack == writes])
                for name, entry in graph.entries.items()
                if "prompt" in entry.ways
            )
        )
    return len(lengths) < 2
