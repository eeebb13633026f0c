"""What a recipe takes of this machine: memory, time and a file, predicted before it is trained."""

from __future__ import annotations

from autopeft.resources.files import file_bytes
from autopeft.resources.limits import FIGURES, Figure, Limits, Resources
from autopeft.resources.prediction import Predictor, StepCost

__all__ = ["FIGURES", "Figure", "Limits", "Predictor", "Resources", "StepCost", "file_bytes"]
