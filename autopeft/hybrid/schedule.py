"""Learning-rate schedules: pure functions of the step, and the recipe's inside `transformers.Trainer`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from torch.optim.lr_scheduler import LambdaLR

from autopeft.errors import UsageError, near
from autopeft.method import shortened
from autopeft.recipe import TrainingSection

__all__ = ["SCHEDULES", "RecipeSchedule", "Schedule", "factor", "group_factor"]

Schedule = Literal["linear", "cosine", "constant"]
SCHEDULES = ("linear", "cosine", "constant")


def factor(schedule: str, step: int, total: int, share: float) -> float:
    """The factor on every group's learning rate at `step` (0-based) of `total`.

    Warm-up has w steps, a share of all, rounded down; at least one step runs at the full rate. It climbs
    linearly through 1/(w+1) … w/(w+1); the step after it runs at 1. Then `linear` falls to 1/(total − w) at
    the last step, `cosine` follows ½(1 + cos πt), `constant` stays. No step runs at zero, so none is wasted.

    Raises:
        UsageError: the schedule is unknown.
    """
    if schedule not in SCHEDULES:
        raise UsageError(
            f"A schedule is one of {', '.join(SCHEDULES)}, but got {schedule!r}.{near(schedule, SCHEDULES)}"
        )
    warmup = min(int(share * total), total - 1)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule == "constant":
        return 1.0
    progress = (step - warmup) / (total - warmup)
    return 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))


def group_factor(group: Mapping[str, Any], training: TrainingSection, step: int, total: int) -> float:
    """`factor` for an optimizer group: by its own `schedule` and `warmup` where it has them, else the
    recipe's. A rate that is `meant_for` more steps is higher (`autopeft.method.shortened`)."""
    name, share = group.get("schedule", training.schedule), group.get("warmup", training.warmup)
    return factor(name, step, total, share) * shortened(group.get("meant_for", 0), total)


class RecipeSchedule:
    """The schedule of a recipe as what `LambdaLR` multiplies the rate of a group by.

    How many steps there are is known when a training begins (`begin`). Until then there is step 0 alone, at
    the full rate.

    Attributes:
        name: of the schedule.
        warmup: share of the steps with a rising rate.
        meant_for: how many steps the group's rate is meant for; 0 for any number.
        total: steps of the training, once it has begun.
    """

    def __init__(self, training: TrainingSection, group: Mapping[str, Any] | None = None) -> None:
        own = group or {}
        self.name: str = own.get("schedule", training.schedule)
        self.warmup: float = own.get("warmup", training.warmup)
        self.meant_for: int = own.get("meant_for", 0)
        self.total: int | None = None

    @classmethod
    def over(cls, optimizer: torch.optim.Optimizer, training: TrainingSection) -> LambdaLR:
        """The scheduler of all groups of an optimizer, each with a schedule of its own where it has one."""
        return LambdaLR(optimizer, [cls(training, group) for group in optimizer.param_groups])

    def __call__(self, step: int) -> float:
        if self.total is None:
            if step:
                raise UsageError(
                    "The recipe's schedule does not know how many steps there are; give the Trainer the "
                    "callback too: `Trainer(…, **hybrid.for_trainer())` does."
                )
            return 1.0
        # A scheduler looks one step past the end.
        part = factor(self.name, min(step, self.total), self.total, self.warmup)
        return part * shortened(self.meant_for, self.total)

    @staticmethod
    def begin(scheduler: LambdaLR, step: int, total: int) -> None:
        """Set the length of the training and every rate for `step`, where it begins or goes on."""
        scheduler.last_epoch = step
        for schedule in scheduler.lr_lambdas:
            cast(RecipeSchedule, schedule).total = total
        bases = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        rates = [float(base) * schedule(step) for base, schedule in bases]
        for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        scheduler._last_lr = list(rates)
