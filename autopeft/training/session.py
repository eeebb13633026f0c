"""A phase that drives itself: its steps, its rows, and the losses and gradients that it asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autopeft.method import Sample
from autopeft.tasks.kinds import Generation
from autopeft.training.forward import Forward
from autopeft.training.gradient import Gradient
from autopeft.training.losses import slice_rows
from autopeft.training.modes import evaluation_mode, learning
from autopeft.training.optimizer import PhaseOptimizer
from autopeft.training.written import Samples

__all__ = ["PhaseSession", "Steps"]

Batch = dict[str, Tensor]


@dataclass
class Steps:
    """The steps of a phase, taken one by one.

    Attributes:
        total: of the phase.
        taken: how many of them so far, those before a pause included.
        take: takes the step of this number, from 0, on a batch or on the next rows.
        ended: whether the training is to end.
    """

    total: int
    taken: int
    take: Callable[[int, Mapping[str, Tensor] | None], None]
    ended: Callable[[], bool]

    @property
    def over(self) -> bool:
        """Whether there will be no further one."""
        return self.taken == self.total or self.ended()

    def take_next(self, batch: Mapping[str, Tensor] | None = None) -> bool:
        """Take one, or say that none is left."""
        if self.over:
            return False
        self.take(self.taken, batch)
        self.taken += 1
        return True


@dataclass
class PhaseSession:
    """See `autopeft.method.Session`.

    Attributes:
        own: the phase's steps.
        optimizer: of the phase.
        backbone: the backbone's own parameters, by name.
        forward: the model's plain forward: states that come from the trunk have no gradient.
        gradient: of the training, whose loss, micro-batches and way out of full memory are shared.
        batches_of: gives batches of so many rows, by default the plan's.
        drawing: within, modules draw as they do in a step.
        learners: everything that may require gradients in this phase.
        writing: what the model writes to the phase's rows.
    """

    own: Steps
    optimizer: PhaseOptimizer
    backbone: Mapping[str, nn.Parameter]
    forward: Forward
    gradient: Gradient
    batches_of: Callable[[int | None], Iterator[Batch]]
    drawing: Callable[[], AbstractContextManager[None]]
    learners: Sequence[nn.Parameter]
    writing: Samples

    @property
    def steps(self) -> int:
        return self.own.total

    @property
    def taken(self) -> int:
        return self.own.taken

    @property
    def over(self) -> bool:
        return self.own.over

    @property
    def rows(self) -> int:
        return self.writing.plan.batch_size

    def step(self, batch: Mapping[str, Tensor] | None = None) -> bool:
        return self.own.take_next(batch)

    def write(
        self,
        rows: int | None = None,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        most: int | None = None,
    ) -> list[Sample]:
        return self.writing.write(rows, Generation(most, temperature, top_p))

    def batch(self, samples: Sequence[Sample]) -> Batch:
        return self.writing.batch(samples)

    def forget(self, parameters: Sequence[nn.Parameter]) -> None:
        self.optimizer.forget(parameters)

    def batches(self, rows: int | None = None) -> Iterator[Batch]:
        return self.batches_of(rows)

    def losses(self, batch: Mapping[str, Tensor], *, training: bool = False) -> Tensor:
        loss, found = self.gradient.loss, []
        mode = self.drawing() if training else evaluation_mode(self.forward.model)
        with mode, torch.no_grad():
            for start in range(0, len(batch["labels"]), self.gradient.micro_rows):
                part = slice_rows(batch, start, start + self.gradient.micro_rows)
                found.append(loss.each(self.forward(part), part))
        return torch.cat(found)

    def gradients(
        self, batch: Mapping[str, Tensor], wanted: Sequence[nn.Parameter], *, training: bool = False
    ) -> list[Tensor]:
        model = self.forward.model
        mode = self.drawing() if training else evaluation_mode(model)
        gradient = Gradient(
            self.forward, self.gradient.loss, micro_rows=self.gradient.micro_rows, device=self.gradient.device
        )
        for parameter in wanted:
            parameter.grad = None
        with mode, torch.enable_grad(), learning([*self.learners, *wanted], wanted):
            try:
                gradient.accumulate(batch, (), wanted)
                return [torch.zeros_like(p) if p.grad is None else p.grad for p in wanted]
            finally:
                self.gradient.micro_rows = gradient.micro_rows
                for parameter in wanted:
                    parameter.grad = None
