"""What a recipe takes, measured: a few steps of the real training on one batch, and a few forwards."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from autopeft.assets.precision import PRECISIONS
from autopeft.devices import held_memory
from autopeft.hybrid import attach
from autopeft.recipe import Recipe
from autopeft.resources.features import Shape
from autopeft.tasks.encode import EncodedSplit, EncodedTask
from autopeft.tasks.tokens import mask_of
from autopeft.training import TrainingPlan, train
from autopeft.training.contexts import evaluation_mode, head_kept
from autopeft.training.forward import Forward
from autopeft.training.metering import PeakMemory, clock, resident

__all__ = ["Bench", "Measured", "latency_of", "typical_rows"]

_FORWARDS = 3


@dataclass(frozen=True)
class Measured:
    """What a recipe took.

    Attributes:
        step_time: seconds of the fastest step but the first.
        latency: seconds of the fastest forward but the first.
        memory: bytes above what the process held before; `None` where it cannot be measured.
    """

    step_time: float
    latency: float
    memory: int | None


class Bench:
    """Measures recipes on one backbone with the batch of typical length of a task.

    Args:
        model: the backbone, with a head; it is left as it was.
        data: the rows; all steps see the same batch, the one whose padded length is the median.
        plan: how a trial trains; its steps are replaced.
        steps: steps of a measurement, the first not counted.
    """

    def __init__(
        self, model: PreTrainedModel, data: EncodedTask, plan: TrainingPlan, *, steps: int = 4
    ) -> None:
        self.model, self.steps = model, steps
        self.device = plan.torch_device()
        rows = typical_rows(data.train, plan.batch_size)
        batch = data.train.take(rows)
        self.data = EncodedTask(data.task, dict.fromkeys(data.splits, batch), data.max_length)
        self.plan = replace(plan, steps=steps, eval_every=None, patience=None, train_share=1.0)
        tokens = mask_of(batch.collate(np.arange(len(batch)), device=self.device)).shape[1]
        self.shape = Shape(len(batch), int(tokens), min(plan.micro_rows, len(batch)))

    @property
    def precision(self) -> str:
        """`fp32` or `bf16`, of the backbone's weights."""
        dtype = next(self.model.parameters()).dtype
        return next((name for name, one in PRECISIONS.items() if one == dtype), str(dtype))

    @property
    def measures_memory(self) -> bool:
        """Whether this machine tells how much memory a training takes at its peak."""
        return PeakMemory(self.device).bytes() is not None

    def base(self) -> int:
        """Bytes that the process holds with the backbone in use and nothing attached."""
        self._forwards()
        return self._held()

    def __call__(self, recipe: Recipe) -> Measured:
        """Measure a recipe.

        Raises:
            UsageError: it does not fit the model, or cannot be trained.
        """
        with head_kept(self.model), attach(self.model, recipe, seed=self.plan.seed) as hybrid:
            self._forwards(1)  # what is built at the first forward stays
            before = self._held()
            result = train(hybrid, self.data, self.plan)
            latency = self._forwards()
        memory = None if result.memory is None else max(0, result.memory - before)
        return Measured(min(result.step_seconds[1:] or result.step_seconds), latency, memory)

    def _held(self) -> int:
        return (resident() if self.device.type == "cpu" else held_memory(self.device)) or 0

    def _forwards(self, count: int = _FORWARDS) -> float:
        kind = self.data.task.task_kind
        return latency_of(self.model, self.data.train, kind, self.device, count=count)


def latency_of(
    model: nn.Module, rows: EncodedSplit, kind: Any, device: torch.device, *, count: int = _FORWARDS
) -> float:
    """Seconds of the fastest of `count` forwards of these rows as one batch, the first left out."""
    model.to(device)
    batch = rows.collate(np.arange(len(rows)), device=device)
    forward, seconds = Forward(model, kind=kind), list[float]()
    with evaluation_mode(model), torch.no_grad():
        for _ in range(count):
            start = clock(device)
            forward(batch)
            seconds.append(clock(device) - start)
    return min(seconds[1:] or seconds)


def typical_rows(split: EncodedSplit, batch_size: int) -> NDArray[np.int64]:
    """The batch of a training whose padded length is the median."""
    batches = split.batch_indices(batch_size, shuffle=True, seed=0, drop_last=len(split) >= batch_size)
    longest = [int(split.lengths[rows].max()) for rows in batches]
    return np.sort(batches[int(np.argsort(longest, kind="stable")[len(batches) // 2])])
