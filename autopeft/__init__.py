"""AutoPEFT: search, compose and reuse hybrids of parameter-efficient fine-tuning methods under a parameter
budget.

The whole public API. Names are imported on first use, so that the command line starts without torch.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autopeft.backbones import spec_of
    from autopeft.counting import Budget, Counts, count
    from autopeft.errors import AutoPEFTError, UsageError
    from autopeft.graph import CompositionGraph, build_graph
    from autopeft.hybrid import Hybrid, MultiHybrid, attach, attach_many, load
    from autopeft.method import get_method, method_names, register
    from autopeft.recipe import Recipe
    from autopeft.search.api import SearchResult, search
    from autopeft.tasks import Task, load_task

__version__ = version("autopeft")

_HOMES = {
    "AutoPEFTError": "errors",
    "Budget": "counting",
    "CompositionGraph": "graph",
    "Counts": "counting",
    "Hybrid": "hybrid",
    "MultiHybrid": "hybrid",
    "Recipe": "recipe",
    "SearchResult": "search.api",
    "Task": "tasks",
    "UsageError": "errors",
    "attach": "hybrid",
    "attach_many": "hybrid",
    "build_graph": "graph",
    "count": "counting",
    "get_method": "method",
    "load": "hybrid",
    "load_task": "tasks",
    "method_names": "method",
    "register": "method",
    "spec_of": "backbones",
}

__all__ = [
    "AutoPEFTError",
    "Budget",
    "CompositionGraph",
    "Counts",
    "Hybrid",
    "MultiHybrid",
    "Recipe",
    "SearchResult",
    "Task",
    "UsageError",
    "__version__",
    "attach",
    "attach_many",
    "build_graph",
    "count",
    "get_method",
    "load",
    "load_task",
    "method_names",
    "register",
    "search",
    "spec_of",
]


def __getattr__(name: str) -> Any:
    if name == "search":
        return import_module("autopeft.search")  # the room, which is callable
    if name not in _HOMES:
        raise AttributeError(f"module 'autopeft' has no attribute {name!r}")
    value = getattr(import_module(f"autopeft.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
