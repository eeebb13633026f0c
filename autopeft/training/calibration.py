"""Stages beside the training, for methods that look at data: calibration before it, the conclusion after."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from autopeft.devices import generators_kept
from autopeft.method import Concludes
from autopeft.tasks.encode import EncodedSplit, EncodedTask
from autopeft.tasks.kinds import Loss
from autopeft.training.batches import share_of_rows
from autopeft.training.contexts import evaluation_mode, training_mode
from autopeft.training.contracts import Trainable
from autopeft.training.forward import Forward
from autopeft.training.losses import logits_of, slice_rows
from autopeft.training.measurements import KeptMeasurements
from autopeft.training.memory import with_fewer_rows
from autopeft.training.plan import TrainingPlan

__all__ = ["TaskObjective", "conclude", "prepare", "single_examples"]

Batch = dict[str, Tensor]
_T = TypeVar("_T")


class TaskObjective:
    """The loss and the logits of a batch, as `autopeft.method.Objective` asks for them.

    `forward` is what turns batches into logits, where it is not the model's plain one. `micro_rows` are the
    rows at once where losses and gradients are asked for, by default all; they are halved where memory does
    not suffice.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        forward: Callable[[Mapping[str, Tensor]], Tensor] | None = None,
        micro_rows: int | None = None,
    ) -> None:
        self.model = model
        self.micro_rows = micro_rows
        self.loss = loss
        self.forward = forward

    def __call__(self, batch: Batch) -> Tensor:
        """Mean loss of a labelled batch, differentiable."""
        return self.loss.mean(self.logits(batch), batch)

    def logits(self, batch: Batch) -> Tensor:
        """Logits (rows, …), differentiable."""
        return logits_of(self.model, batch) if self.forward is None else self.forward(batch)

    def losses(self, batch: Batch) -> Tensor:
        """Loss of each row (rows,), without gradients."""

        def each(parts: Sequence[Batch]) -> Tensor:
            return torch.cat([self.loss.each(self.logits(part), part) for part in parts])

        with torch.no_grad():
            return self._in_parts(batch, each)

    def gradients(self, batch: Batch, wanted: Sequence[nn.Parameter]) -> list[Tensor]:
        """Gradient of the batch's mean loss for each of the `wanted`."""
        weight = self.loss.weight(batch)

        def added(parts: Sequence[Batch]) -> list[Tensor]:
            found: list[Tensor] = []
            for part in parts:
                loss = self.loss.total(self.logits(part), part) / weight
                gradients = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
                if not found:  # which are not added to zeros: these would be another copy
                    found = [gradient.float() for gradient in gradients]
                    continue
                for total, gradient in zip(found, gradients, strict=True):
                    total.add_(gradient)
            return found

        return self._in_parts(batch, added)

    def _in_parts(self, batch: Batch, act: Callable[[Sequence[Batch]], _T]) -> _T:
        """`act` on a batch in parts that memory suffices for; it starts again with smaller ones, from the
        same random state, where it does not."""
        rows = len(batch["labels"])
        first = min(self.micro_rows or rows, rows)

        def parts(size: int) -> _T:
            if size < first:
                self.micro_rows = size  # so many for the batches that follow too
            return act([slice_rows(batch, start, start + size) for start in range(0, rows, size)])

        return with_fewer_rows(parts, first, self.model, doing="Calibration")


class _Passes:
    """Batches of rows: each pass over them has an order of its own, drawn from `seed`."""

    def __init__(self, one: Callable[[int], Iterator[Batch]], seed: int) -> None:
        self._one, self._seed, self._begun = one, seed, 0

    def __iter__(self) -> Iterator[Batch]:
        number, self._begun = self._begun, self._begun + 1
        entropy = np.random.SeedSequence((self._seed, number))
        return self._one(int(entropy.generate_state(1)[0]) if number else self._seed)


def single_examples(split: EncodedSplit, seed: int, device: torch.device) -> Iterator[Batch]:
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
    objective = TaskObjective(hybrid.model, data.task.loss(), plain, plan.micro_rows)
    with generators_kept(device, seed=plan.seed), training_mode(hybrid.model, (), dropout=False):
        kept = KeptMeasurements(hybrid.model, data, plan)

        def batches(rows: int | None) -> Iterable[Batch]:
            # What one method measures must not depend on what another one has drawn.
            torch.manual_seed(plan.seed)
            if rows == 1:
                return _Passes(lambda seed: single_examples(data.train, seed, device), plan.seed)
            size = plan.batch_size if rows is None else rows
            return _Passes(
                lambda seed: plain.batches(data.train, size, shuffle=True, seed=seed, device=device),
                plan.seed,
            )

        hybrid.prepare(batches, objective, kept=kept)


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
    modules = [module for module in hybrid.trained_modules.values() if isinstance(module, Concludes)]
    if not modules:
        return
    device = plan.torch_device()
    hybrid.model.to(device)
    way = Forward(hybrid.model, kind=data.task.task_kind) if forward is None else forward
    objective = TaskObjective(hybrid.model, data.task.loss(), way)

    def learn(at_once: int) -> None:
        for module in modules:
            among, few = share_of_rows(data.train, plan), getattr(module, "conclusion_rows", None)
            if few is not None:
                among = np.random.default_rng(plan.seed).permutation(
                    np.arange(len(data.train)) if among is None else among
                )[:few]
            batches = way.batches(
                data.train, at_once, shuffle=True, seed=plan.seed, device=device, among=among
            )
            with generators_kept(device, seed=plan.seed), evaluation_mode(hybrid.model), torch.enable_grad():
                module.conclude(batches, objective)

    rows = plan.micro_rows if micro_rows is None else micro_rows
    with_fewer_rows(learn, rows, hybrid.model, doing="What comes after training")
