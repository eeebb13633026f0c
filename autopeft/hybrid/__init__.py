"""A graph on a live model: attach, detach, save, load, merge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autopeft.hybrid.explicit import ExplicitRecipe, explicit_recipe
from autopeft.hybrid.hybrid import Hybrid, attach
from autopeft.hybrid.inputs import Artefact, pinned, with_inputs
from autopeft.hybrid.loading import load
from autopeft.hybrid.modules import build_modules, head_of
from autopeft.hybrid.of_task import of_task
from autopeft.hybrid.prediction import predictive
from autopeft.hybrid.store import deployed_tensors
from autopeft.hybrid.transferability import activated_neurons, log_evidence, neuron_overlap

if TYPE_CHECKING:
    from autopeft.hybrid.callback import HybridCallback

__all__ = [
    "Artefact",
    "ExplicitRecipe",
    "Hybrid",
    "HybridCallback",
    "activated_neurons",
    "attach",
    "build_modules",
    "deployed_tensors",
    "explicit_recipe",
    "head_of",
    "load",
    "log_evidence",
    "neuron_overlap",
    "of_task",
    "pinned",
    "predictive",
    "with_inputs",
]


def __getattr__(name: str) -> Any:
    """`HybridCallback` on first use: what the Trainer needs takes a third of a second to import."""
    if name != "HybridCallback":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from autopeft.hybrid.callback import HybridCallback

    return HybridCallback
