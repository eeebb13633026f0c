"""The optimizer of a phase: parameter groups, schedule and clipping."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from autopeft.hybrid.optimizer import FUSED, build_optimizer
from autopeft.hybrid.schedule import group_factor
from autopeft.recipe import TrainingSection
from autopeft.training.errors import NonFiniteLoss

__all__ = ["PhaseOptimizer"]


class PhaseOptimizer:
    """The recipe's optimizer over groups, each at its own rate times the schedule's factor.

    A group may have a `schedule` and a `warmup` in place of the recipe's, and with `clip: group` its gradient
    is clipped by itself, whatever the recipe does with the others.

    Attributes:
        inner: the optimizer itself.
        parameters: everything that it trains, in its own order.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        training: TrainingSection,
        steps: int,
        modules: Iterable[nn.Module] = (),
    ) -> None:
        groups = [g for g in groups if g["params"]]
        self.training = training
        self.steps = steps
        options = {"fused": True} if training.optimizer.name in FUSED else {}
        self.inner = build_optimizer(groups, training.optimizer, modules, **options)
        self.base_rates = [float(g["lr"]) for g in self.inner.param_groups]
        self.parameters: list[nn.Parameter] = [p for g in self.inner.param_groups for p in g["params"]]
        apart = [g for g in groups if "group" in (training.optimizer.clip, g.get("clip"))]
        alone = {id(p) for g in apart for p in g["params"]}
        together = [p for p in self.parameters if id(p) not in alone]
        self._clipped = [part for part in (together, *(list(g["params"]) for g in apart)) if part]

    def schedule(self, step: int) -> None:
        """Set every group's learning rate for `step` (0-based in the phase)."""
        for group, rate in zip(self.inner.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * group_factor(group, self.training, step, self.steps)

    @property
    def highest_rate(self) -> float:
        """The highest learning rate of any group at present."""
        return max(float(g["lr"]) for g in self.inner.param_groups)

    @property
    def rates(self) -> list[float]:
        """The present learning rate of each parameter."""
        return [float(g["lr"]) for g in self.inner.param_groups for _ in g["params"]]

    def forget(self, parameters: Sequence[nn.Parameter]) -> None:
        """Drop what is kept for these parameters: they go on as if they had not been trained before."""
        for parameter in parameters:
            self.inner.state.pop(parameter, None)

    def clip(self, step: int) -> None:
        """Scale the gradients down to the recipe's norm, together or each group's; zero leaves them alone.

        Raises:
            NonFiniteLoss: the norm of some gradient is NaN or infinite.
        """
        limit = self.training.max_grad_norm or float("inf")
        for parameters in self._clipped:
            norm = float(nn.utils.clip_grad_norm_(parameters, limit))
            if not norm < float("inf"):
                raise NonFiniteLoss("gradient's norm", norm, step + 1, self.highest_rate)
