"""The loop of one trial: plan, phases and events, calibration, scores.

`train` here trains a hybrid that is attached already; `autopeft.train` (see `fixed`) loads model and data,
attaches a recipe, trains it with this one, and keeps what came of it in a run folder.

Names are imported on first use, so that the declarations in `options` and `arguments` are read without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autopeft.training.calibration import conclude, prepare
    from autopeft.training.checkpoint import Checkpoint
    from autopeft.training.errors import NonFiniteLoss, OutOfMemory, PhaseError, ran_out_of_memory
    from autopeft.training.events import SilentTrainReporter, TrainInfo, TrainReporter
    from autopeft.training.loop import train
    from autopeft.training.phases import Phase
    from autopeft.training.plan import TrainingPlan
    from autopeft.training.result import TrainResult
    from autopeft.training.scoring import evaluate, predict, scores
    from autopeft.training.trial import TrialOutcome, full_fine_tuning, head_only, run_trial

_HOMES = {
    "Checkpoint": "checkpoint",
    "NonFiniteLoss": "errors",
    "OutOfMemory": "errors",
    "Phase": "phases",
    "PhaseError": "errors",
    "SilentTrainReporter": "events",
    "TrainInfo": "events",
    "TrainReporter": "events",
    "TrainResult": "result",
    "TrainingPlan": "plan",
    "TrialOutcome": "trial",
    "conclude": "calibration",
    "evaluate": "scoring",
    "full_fine_tuning": "trial",
    "head_only": "trial",
    "predict": "scoring",
    "prepare": "calibration",
    "ran_out_of_memory": "errors",
    "run_trial": "trial",
    "scores": "scoring",
    "train": "loop",
}

__all__ = [
    "Checkpoint",
    "NonFiniteLoss",
    "OutOfMemory",
    "Phase",
    "PhaseError",
    "SilentTrainReporter",
    "TrainInfo",
    "TrainReporter",
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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'autopeft.training' has no attribute {name!r}")
    value = getattr(import_module(f"autopeft.training.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
