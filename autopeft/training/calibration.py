"""Stages beside the training, for methods that look at data: calibration before it, the conclusion after."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from autopeft.method import Concludes
from autopeft.tasks.encode import EncodedSplit, EncodedTask
from autopeft.tasks.kinds import Loss
from autopeft.training.contracts import Trainable
from autopeft.training.errors import OutOfMemory, ran_out_of_memory
from autopeft.training.forward import Forward
from autopeft.training.losses import logits_of
from autopeft.training.measurements import KeptMeasurements
from autopeft.training.modes import evaluation_mode, seeded, training_mode
from autopeft.training.plan import TrainingPlan
from autopeft.training.rows import rows_of

__all__ = ["TaskObjective", "conclude", "concluding", "prepare", "single_examples"]


class TaskObjective:
    """The loss and the logits of a batch, as `autopeft.method.Objective` asks for them.

    `forward` is what turns batches into logits, where it is not the model's plain one.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        forward: Callable[[Mapping[str, Tensor]], Tensor] | None = None,
    ) -> None:
        self.model = model
        self.loss = loss
        self.forward = forward

    def __call__(self, batch: dict[str, Tensor]) -> Tensor:
        """Mean loss of a labelled batch, differentiable."""
        return self.loss.mean(self.logits(batch), batch["labels"])

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        """Logits (rows, …), differentiable."""
        return logits_of(self.model, batch) if self.forward is None else self.forward(batch)


def single_examples(split: EncodedSplit, seed: int, device: torch.device) -> Iterator[dict[str, Tensor]]:
    """Every row once as a batch of its own, in an order drawn from `seed`."""
    for row in np.random.default_rng(seed).permutation(len(split)):
        yield split.collate([int(row)], device=device)


def prepare(hybrid: Trainable, data: EncodedTask, plan: TrainingPlan) -> None:
    """Let the methods that need it calibrate on training rows; nothing happens where none does.

    Runs in eval mode where a method does not ask for draws: the gradients are those of the deterministic
    model. Class weights count, as they do in training. What was measured is kept for later trials
    (`plan.shortcuts`). Generators and flags are as before afterwards.
    """
    if not hybrid.needs_prepare:
        return
    device = plan.torch_device()
    hybrid.model.to(device)
    plain = Forward(hybrid.model, kind=data.task.task_kind)
    objective = TaskObjective(hybrid.model, data.task.loss(), plain)
    with seeded(plan.seed, device), training_mode(hybrid.model, (), dropout=False):
        kept = KeptMeasurements(hybrid.model, data, plan)

        def batches(rows: int | None) -> Iterator[dict[str, Tensor]]:
            if rows == 1:
                return single_examples(data.train, plan.seed, device)
            size = plan.batch_size if rows is None else rows
            return plain.batches(data.train, size, shuffle=True, seed=plan.seed, device=device)

        hybrid.prepare(batches, objective, kept=kept)


def concluding(hybrid: Trainable) -> list[Concludes]:
    """The modules that learn something after training."""
    return [module for module in hybrid.modules.values() if isinstance(module, Concludes)]


def conclude(
    hybrid: Trainable,
    data: EncodedTask,
    plan: TrainingPlan,
    *,
    forward: Forward | None = None,
    micro_rows: int | None = None,
) -> None:
    """Let the methods that do learn what they learn after training, from the rows that were trained on;
    nothing happens where none does. `train` ends with it.

    Runs in eval mode with gradients; generators and flags are as before afterwards. `forward` defaults to the
    model's plain one, `micro_rows`, the rows at once, to the plan's; they are halved where memory does not
    suffice, and all starts again.

    Raises:
        OutOfMemory: it does not suffice for single rows.
    """
    modules = concluding(hybrid)
    if not modules:
        return
    device = plan.torch_device()
    hybrid.model.to(device)
    way = Forward(hybrid.model, kind=data.task.task_kind) if forward is None else forward
    objective = TaskObjective(hybrid.model, data.task.loss(), way)
    at_once = plan.micro_rows if micro_rows is None else micro_rows
    while True:
        try:
            for module in modules:
                batches = way.batches(
                    data.train,
                    at_once,
                    shuffle=True,
                    seed=plan.seed,
                    device=device,
                    among=rows_of(data.train, plan),
                )
                with seeded(plan.seed, device), evaluation_mode(hybrid.model), torch.enable_grad():
                    module.conclude(batches, objective)
            return
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
            if at_once == 1:
                raise OutOfMemory(
                    "What comes after training ran out of memory even with single rows; lower `max_length`, "
                    "or take a backbone in bf16."
                ) from error
        at_once = max(1, at_once // 2)
