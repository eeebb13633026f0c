"""Whether what is attached to a model lets it generate with a cache of keys and values."""

from __future__ import annotations

from torch import nn

from autopeft.graph import build_graph
from autopeft.hybrid.modules import ROOT, Root
from autopeft.injection import allows_cache

__all__ = ["generates_from_cache"]


def generates_from_cache(model: nn.Module, tokens: int) -> bool:
    """Whether `generate` of a model with what is attached to it works with `use_cache=True`.

    Args:
        tokens: of the shortest text that is written on.
    """
    root: Root | None = getattr(model, ROOT, None)
    if root is None:
        return True
    return allows_cache(build_graph(root.recipe, root.spec), dict(root.named_children()), tokens)
