"""What acts on logits: one hook behind the map that yields them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from autopeft.graph import CompositionGraph
from autopeft.injection.bind import in_own_dtype
from autopeft.injection.dispatch import first_input

__all__ = ["LogitsHook", "logits_modules"]


def logits_modules(graph: CompositionGraph, modules: Mapping[str, nn.Module]) -> list[Any]:
    """The modules that act on logits, in file order."""
    return [modules[name] for name, entry in graph.entries.items() if "logits" in entry.ways]


class LogitsHook:
    """Adds what the modules make of the last map's input and output. Whatever narrows that map to some of the
    positions has done so before: the hook sees the map's own input."""

    def __init__(self, modules: Sequence[Any]) -> None:
        self.modules = list(modules)

    def after(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor:
        hidden, logits = first_input(args, kwargs), output
        for one in self.modules:
            output = output + in_own_dtype(one, one.logits, hidden, logits)
        return output
