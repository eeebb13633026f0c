"""The optimizer of a phase: parameter groups, schedule and clipping."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from autopeft.recipe import TrainingSection
from autopeft.training.errors import NonFiniteLoss
from autopeft.training.schedule import factor, warmup_steps

__all__ = ["PhaseOptimizer"]


class PhaseOptimizer:
    """AdamW over groups, each at its own rate times the schedule's factor."""

    def __init__(self, groups: Sequence[dict[str, Any]], training: TrainingSection, steps: int) -> None:
        groups = [g for g in groups if g["params"]]
        self.training = training
        self.steps = steps
        self.warmup = warmup_steps(training.warmup, steps)
        self.base_rates = [float(g["lr"]) for g in groups]
        self.parameters = [p for g in groups for p in g["params"]]
        self.adamw = torch.optim.AdamW([dict(g) for g in groups], fused=True)

    def schedule(self, step: int) -> None:
        """Set every group's learning rate for `step` (0-based in the phase)."""
        scale = factor(self.training.schedule, step, self.steps, self.warmup)
        for group, rate in zip(self.adamw.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * scale

    @property
    def highest_rate(self) -> float:
        """The highest learning rate of any group at present."""
        return max(float(g["lr"]) for g in self.adamw.param_groups)

    @property
    def rates(self) -> list[float]:
        """The present learning rate of each parameter."""
        return [float(g["lr"]) for g in self.adamw.param_groups for _ in g["params"]]

    def zero_grad(self) -> None:
        self.adamw.zero_grad(set_to_none=True)

    def clip(self, step: int) -> None:
        """Scale all gradients together to the recipe's norm; zero leaves them alone.

        Raises:
            NonFiniteLoss: the gradient's norm is NaN or infinite.
        """
        limit = self.training.max_grad_norm or float("inf")
        norm = float(nn.utils.clip_grad_norm_(self.parameters, limit))
        if not norm < float("inf"):
            raise NonFiniteLoss("gradient's norm", norm, step + 1, self.highest_rate)

    def step(self) -> None:
        self.adamw.step()
