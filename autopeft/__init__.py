"""AutoPEFT: search, compose and reuse hybrids of parameter-efficient fine-tuning methods under a parameter
budget.

The whole public API. Names are imported on first use, so that the command line starts without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autopeft.assets import load_model
    from autopeft.backbones import spec_of
    from autopeft.counting import Budget, Counts, count
    from autopeft.errors import AutoPEFTError, UsageError
    from autopeft.export.api import Evaluation, Exported, evaluate, export, predict
    from autopeft.export.chat import Chat, chat
    from autopeft.graph import CompositionGraph, build_graph
    from autopeft.hybrid import Hybrid, attach, load
    from autopeft.method import get_method, method_names, register
    from autopeft.recipe import Recipe
    from autopeft.search.api import SearchResult, search
    from autopeft.search.portfolio.recommend import Recommendation, recommend
    from autopeft.tasks import Task, load_task
    from autopeft.training.fixed import FixedOutcome, train

    __version__: str

_HOMES = {
    "AutoPEFTError": "errors",
    "Budget": "counting",
    "Chat": "export.chat",
    "CompositionGraph": "graph",
    "Counts": "counting",
    "Evaluation": "export.api",
    "Exported": "export.api",
    "FixedOutcome": "training.fixed",
    "Hybrid": "hybrid",
    "Recipe": "recipe",
    "Recommendation": "search.portfolio.recommend",
    "SearchResult": "search.api",
    "Task": "tasks",
    "UsageError": "errors",
    "attach": "hybrid",
    "build_graph": "graph",
    "chat": "export.chat",
    "count": "counting",
    "evaluate": "export.api",
    "get_method": "method",
    "load": "hybrid",
    "load_model": "assets",
    "load_task": "tasks",
    "method_names": "method",
    "predict": "export.api",
    "recommend": "search.portfolio.recommend",
    "register": "method",
    "spec_of": "backbones",
    "train": "training.fixed",
}
_ROOMS = ("export", "search")  # packages that are functions of the same name as well

__all__ = [
    "AutoPEFTError",
    "Budget",
    "Chat",
    "CompositionGraph",
    "Counts",
    "Evaluation",
    "Exported",
    "FixedOutcome",
    "Hybrid",
    "Recipe",
    "Recommendation",
    "SearchResult",
    "Task",
    "UsageError",
    "__version__",
    "attach",
    "build_graph",
    "chat",
    "count",
    "evaluate",
    "export",
    "get_method",
    "load",
    "load_model",
    "load_task",
    "method_names",
    "predict",
    "recommend",
    "register",
    "search",
    "spec_of",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"autopeft.{name}")
    if name == "__version__":
        # What reads it takes longer to import than the rest, and only then is Ctrl-C heard (see `cli`).
        value = import_module("importlib.metadata").version("autopeft")
    elif name in _HOMES:
        value = getattr(import_module(f"autopeft.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module 'autopeft' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
