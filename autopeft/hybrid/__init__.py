"""A graph on a live model: attach, detach, save, load, merge."""

from __future__ import annotations

from autopeft.hybrid.callback import HybridCallback
from autopeft.hybrid.hybrid import Hybrid, attach
from autopeft.hybrid.loading import load
from autopeft.hybrid.multi import MultiHybrid, attach_many
from autopeft.hybrid.prediction import predictive
from autopeft.hybrid.store import deployed_state

__all__ = [
    "Hybrid",
    "HybridCallback",
    "MultiHybrid",
    "attach",
    "attach_many",
    "deployed_state",
    "load",
    "predictive",
]
