"""A graph on a live model: attach, detach, save, load, merge."""

from __future__ import annotations

from autopeft.hybrid.callback import HybridCallback
from autopeft.hybrid.hybrid import Hybrid, attach
from autopeft.hybrid.loading import load
from autopeft.hybrid.modules import build_modules, head_of
from autopeft.hybrid.multi import MultiHybrid, attach_many
from autopeft.hybrid.prediction import predictive
from autopeft.hybrid.store import deployed_state, deployed_tensors

__all__ = [
    "Hybrid",
    "HybridCallback",
    "MultiHybrid",
    "attach",
    "attach_many",
    "build_modules",
    "deployed_state",
    "deployed_tensors",
    "head_of",
    "load",
    "predictive",
]
