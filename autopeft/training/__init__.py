"""The loop of one trial: plan, phases and events, calibration, scores."""

from __future__ import annotations

from autopeft.training.calibration import conclude, prepare
from autopeft.training.checkpoint import Checkpoint
from autopeft.training.errors import NonFiniteLoss, OutOfMemory, PhaseError, ran_out_of_memory
from autopeft.training.evaluate import evaluate, predict, scores
from autopeft.training.loop import TrainResult, train
from autopeft.training.phases import Phase
from autopeft.training.plan import TrainingPlan
from autopeft.training.trial import TrialOutcome, full_fine_tuning, head_only, run_trial

__all__ = [
    "Checkpoint",
    "NonFiniteLoss",
    "OutOfMemory",
    "Phase",
    "PhaseError",
    "TrainResult",
    "TrainingPlan",
    "TrialOutcome",
    "conclude",
    "evaluate",
    "full_fine_tuning",
    "head_only",
    "predict",
    "prepare",
    "ran_out_of_memory",
    "run_trial",
    "scores",
    "train",
]
