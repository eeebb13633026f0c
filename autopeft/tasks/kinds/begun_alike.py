"""What several prompts begin with is read once: one row's keys and values stand for all."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from autopeft.graph import build_graph, is_rowwise_in, is_rowwise_on_logits
from autopeft.hybrid.modules import ROOT

__all__ = ["CACHES", "LEAST", "length_alike", "read_once"]

LEAST = 8
"""Tokens that prompts have to have in common."""

CACHES = ("cache", "past_key_values")
"""What transformers calls keys and values of earlier tokens, later and earlier."""


def length_alike(model: nn.Module, prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with, and something follows in each; 0 where they are few, or where
    what is attached does not act position by position, so that each row has to be read whole."""
    most = min(map(len, prompts)) - 1
    if len(prompts) == 1 or most < LEAST:
        return 0
    rows = torch.tensor([list(row[:most]) for row in prompts])
    found = int((rows == rows[:1]).all(dim=0).long().cumprod(dim=0).sum())
    return found if found >= LEAST and _may_share(model) else 0


def _may_share(model: Any) -> bool:
    """Prompts are filled up behind what they begin with. So positions must be given, and a window of
    attention would reach less far back."""
    config = model.config.get_text_config()
    windowed = getattr(config, "sliding_window", None) is not None and getattr(
        config, "use_sliding_window", True
    )
    if windowed or "position_ids" not in signature(model.base_model.forward).parameters:
        return False
    root: Any = getattr(model, ROOT, None)
    if root is None:
        return True
    if root.recipe is None or root.spec is None:  # several hybrids, each with rows of its own
        return False
    graph = build_graph(root.recipe, root.spec)
    if any(entry.traits.changes_length for entry in graph.entries.values()):
        return False
    return is_rowwise_on_logits(graph) and all(
        is_rowwise_in(graph, stack.name, layer) for stack in root.spec.stacks for layer in range(stack.layers)
    )


@torch.no_grad()
def read_once(model: Any, tokens: Sequence[int], rows: int, device: str | torch.device) -> dict[str, Any]:
    """The keys and values of these tokens for so many rows, as transformers' `generate` takes them; nothing
    where the model keeps none."""
    base = model.base_model
    name = next((n for n in CACHES if n in signature(base.forward).parameters), None)
    if name is None:
        return {}
    cache = DynamicCache(config=model.config)
    base(input_ids=torch.tensor([list(tokens)], device=device), use_cache=True, **{name: cache})
    if cache.get_seq_length() != len(tokens):
        return {}
    cache.batch_repeat_interleave(rows)
    return {name: cache}
