"""Calibration before training: single training examples and the loss, for methods that look at data first."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from autopeft.tasks.encode import EncodedSplit, EncodedTask
from autopeft.training.contracts import Trainable
from autopeft.training.losses import TaskLoss, logits_of
from autopeft.training.measurements import KeptMeasurements
from autopeft.training.modes import seeded, training_mode
from autopeft.training.plan import TrainingPlan

__all__ = ["TaskObjective", "prepare", "single_examples"]


class TaskObjective:
    """The loss and the logits of a batch, as `autopeft.method.Objective` asks for them."""

    def __init__(self, model: nn.Module, loss: TaskLoss) -> None:
        self.model = model
        self.loss = loss

    def __call__(self, batch: dict[str, Tensor]) -> Tensor:
        """Mean loss of a labelled batch, differentiable."""
        return self.loss.mean(self.logits(batch), batch["labels"])

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        """Logits (rows, classes), differentiable."""
        return logits_of(self.model, batch)


def single_examples(split: EncodedSplit, seed: int, device: torch.device) -> Iterator[dict[str, Tensor]]:
    """Every row once as a batch of its own, in an order drawn from `seed`."""
    for row in np.random.default_rng(seed).permutation(len(split)):
        yield split.collate([int(row)], device=device)


def prepare(hybrid: Trainable, data: EncodedTask, plan: TrainingPlan) -> None:
    """Let the methods that need it calibrate on training rows; nothing happens where none does.

    Runs in eval mode: the gradients are those of the deterministic model. Class weights count, as they do
    in training. What was measured is kept for later trials (`plan.shortcuts`). Generators and flags are as
    before afterwards.
    """
    if not hybrid.needs_prepare:
        return
    device = plan.torch_device()
    hybrid.model.to(device)
    objective = TaskObjective(hybrid.model, TaskLoss(data.task.kind, data.task.class_weights))
    with seeded(plan.seed, device), training_mode(hybrid.model, (), dropout=False):
        kept = KeptMeasurements(hybrid.model, data, plan)
        hybrid.prepare(single_examples(data.train, plan.seed, device), objective, kept=kept)
